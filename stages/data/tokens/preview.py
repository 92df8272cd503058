"""A tokenizer before its step has run, for what a plan can say of it."""

from __future__ import annotations

from typing import Any

from stages.data.tokens.config import TokenizerConfig
from stages.data.tokens.library import read_library, rows, text_only
from stages.data.tokens.load import StudyTokenizer
from stages.data.tokens.pin import chat_template, read_tokenizer
from stages.data.tokens.tokenizer import begin_id, byte_level, token_id


class _Bytes:
    """Counts as the byte tokenizer does; its ids are the bytes."""

    def encode(self, text: str, add_special_tokens: bool = False) -> Any:
        return type("Encoding", (), {"ids": list(text.encode())})


class _Pieces:
    """Counts the pieces (words, numbers, marks) that a tokenizer splits a text into; a token never holds two."""

    def __init__(self, pre_tokenizer: Any) -> None:
        self._pre_tokenizer = pre_tokenizer

    def encode(self, text: str, add_special_tokens: bool = False) -> Any:
        return type("Encoding", (), {"ids": list(range(len(self._pre_tokenizer.pre_tokenize_str(text))))})


def preview(config: TokenizerConfig) -> StudyTokenizer | None:
    """The tokenizer that ``config`` (pinned) will give, with lengths that are right; for one still to be trained the
    shortest they can be. None for a repository that cannot be reached now."""
    if config.kind == "bytes":
        return StudyTokenizer(_Bytes(), 258, 1, 0)
    if config.kind == "bpe":
        return StudyTokenizer(_Pieces(byte_level(config.number_digits).pre_tokenizer), config.vocab_size or 258, 1, 0)
    content = read_tokenizer(config, needed=False)
    if content is None:
        return None
    backend = read_library(str(config.path), content)
    backend.no_padding()
    backend.no_truncation()
    assert config.eos_token is not None
    eos = token_id(backend, "eos_token", config.eos_token)
    field = "tokenizer.chat_template"
    chat = chat_template(config).around(backend, field=field) if config.chat_template else None
    return StudyTokenizer(text_only(backend), rows(backend), eos, eos, begin_id(backend, config), chat)
