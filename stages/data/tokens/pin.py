"""Tokenizers from outside: pinned by digest or commit, read as they were pinned."""

from __future__ import annotations

import json
import os
from pathlib import Path

from stages.data.pinned import agreed, digest_of
from stages.data.tokens.chat import ChatTemplate, template_beside
from stages.data.tokens.config import TokenizerConfig
from stages.data.tokens.library import read_library, rows
from stages.stage import StageError


def pin_tokenizer(config: TokenizerConfig, base_dir: Path) -> TokenizerConfig:
    """The config with the file's place and digest. Raises StageError where the file is missing or not the pinned one,
    and where the Hub says that it has none."""
    if config.kind == "hub":
        from stages.data.tokens.hub import tokenizer_json

        tokenizer_json(config, needed=False)
        return config
    if config.path is None:
        return config
    said = place = config.path
    if "://" not in place:
        path = base_dir / Path(os.path.expanduser(place))
        place = str(path / "tokenizer.json" if path.is_dir() else path)
    config = config.model_copy(update={"path": place})
    content = read_tokenizer(config, said=said)
    assert content is not None
    pins = {"pin": agreed(digest_of(content), config.pin, field="tokenizer.pin")}
    if config.chat_template:
        template = chat_template(config)
        template.around(read_library(place, content), field="tokenizer.chat_template")
        what = "the chat template"
        pins["chat_pin"] = agreed(template.digest, config.chat_pin, field="tokenizer.chat_pin", what=what)
    return config.model_copy(update=pins)


def read_tokenizer(config: TokenizerConfig, *, needed: bool = True, said: str | None = None) -> bytes | None:
    """The bytes of the tokenizer.json of kinds ``file`` (pinned) and ``hub``; None where the Hub cannot be reached and
    the file is not ``needed``. Raises StageError where there is none; ``said``: the path as the study file has it."""
    if config.kind == "hub":
        from stages.data.tokens.hub import tokenizer_json

        found = tokenizer_json(config, needed=needed)
        return None if found is None else found.read_bytes()
    assert config.path is not None
    try:
        if "://" in config.path:
            import fsspec

            with fsspec.open(config.path, "rb") as file:
                return bytes(file.read())
        return Path(config.path).read_bytes()
    except Exception as error:  # each kind of storage raises its own
        raise StageError(
            "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}",
            field="tokenizer.path",
            value=said or config.path,
            allowed="a tokenizer.json or a folder that holds one",
            fix=f"put a tokenizer.json at {config.path}",
        ) from error


def chat_template(config: TokenizerConfig) -> ChatTemplate:
    """The chat template beside the tokenizer.json of kinds ``file`` and ``hub``."""
    return template_beside(lambda name: _beside(config, name))


def _beside(config: TokenizerConfig, name: str) -> bytes | None:
    if config.kind == "hub":
        from stages.data.tokens.hub import file_beside

        return file_beside(config, name)
    assert config.path is not None
    place = f"{config.path.rpartition('/')[0] or '.'}/{name}"
    try:
        if "://" in place:
            import fsspec

            with fsspec.open(place, "rb") as file:
                return bytes(file.read())
        return Path(place).read_bytes()
    except FileNotFoundError:
        return None


def vocabulary_size(config: TokenizerConfig) -> int | None:
    """Rows of an embedding for the pinned tokenizer (its largest id and one), as far as known without making it; None
    for ``bpe``, which may find fewer tokens than it was asked for, and for a repository that cannot be reached now.

    Raises StageError for a file that is no tokenizer.json or lacks a named token.
    """
    if config.kind in ("bytes", "bpe"):
        return 258 if config.kind == "bytes" else None
    content = read_tokenizer(config, needed=False)
    if content is None:
        return None
    not_one = "a tokenizer.json as Hugging Face's tokenizers write it"
    try:
        body = json.loads(content)
        entries = body["model"]["vocab"]
        tokens = {entry if isinstance(entries, dict) else entry[0] for entry in entries}  # Unigram: [token, score]
        tokens |= {token["content"] for token in body.get("added_tokens") or ()}
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise StageError(
            "not a tokenizer", field="tokenizer.path", value=config.path, allowed=not_one, fix="give such a file"
        ) from error
    named = (("eos_token", config.eos_token), ("pad_token", config.pad_token), ("bos_token", config.bos_token or None))
    for field, token in named:
        if token is not None and token not in tokens:
            special = ", ".join(t["content"] for t in body.get("added_tokens") or ()) or "any token of its vocabulary"
            raise StageError(
                f"{config.path} has no such token",
                field=f"tokenizer.{field}",
                value=token,
                allowed=special[:300],
                fix="name one it has",
            )
    return rows(read_library(str(config.path), content))
