"""A tokenizer before its step has run, for what a plan can say of it."""

from __future__ import annotations

from typing import Any

from stages.tokens.load import StudyTokenizer
from stages.tokens.stage import TokenizerConfig, read_tokenizer
from stages.tokens.tokenizer import read_library


class _Bytes:
    """Counts as the byte tokenizer does; its ids are the bytes."""

    def encode(self, text: str, add_special_tokens: bool = False) -> Any:
        return type("Encoding", (), {"ids": list(text.encode())})


def preview(config: TokenizerConfig) -> StudyTokenizer | None:
    """The tokenizer that ``config`` (pinned) will give, with lengths that are right; None where they are not known yet:
    for one that is still to be trained, and for a repository that cannot be reached now."""
    if config.kind == "bytes":
        return StudyTokenizer(_Bytes(), 258, 1, 0)
    content = None if config.kind == "bpe" else read_tokenizer(config, needed=False)
    if content is None:
        return None
    backend = read_library(str(config.path), content)
    backend.no_padding()
    backend.no_truncation()
    eos = backend.token_to_id(config.eos_token)
    return StudyTokenizer(backend, backend.get_vocab_size(), eos, eos)
