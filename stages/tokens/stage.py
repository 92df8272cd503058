"""The ``tokenizer`` and ``tokenize`` sections of a study file and their two stages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from stages.stage import Artifact, Config, Context, Stage, StageError, Summary


class TokenizerConfig(Config):
    """Which tokenizer: ``bpe`` is trained on the training documents (byte-level, digits one by one), ``bytes`` has
    one token per byte, ``file`` takes any tokenizer.json.

    Every kind ends as one tokenizer.json with an end-of-document and a padding token.
    """

    kind: Literal["bpe", "bytes", "file"]
    vocab_size: int | None = Field(default=None, ge=258, description="bpe: size with the 256 bytes and two specials")
    train_bytes: int = Field(
        default=20_000_000, ge=1, description="bpe: training text read at most, evenly over documents"
    )
    path: str | None = Field(default=None, description="file: path of a tokenizer.json; relative to the study file")
    pin: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$", description="file: digest of the file")
    eos_token: str | None = Field(default=None, description="file: token that ends a document")
    pad_token: str | None = Field(default=None, description="file: token that pads (default: the eos token)")

    @model_validator(mode="after")
    def _fields_of_kind(self) -> TokenizerConfig:
        if (self.kind == "bpe") != (self.vocab_size is not None):
            raise ValueError(f"vocab_size = {self.vocab_size}: kind bpe needs it, the other kinds have their own")
        for name in ("path", "eos_token"):
            if (self.kind == "file") != (getattr(self, name) is not None):
                raise ValueError(
                    f"{name} = {getattr(self, name)!r}: kind file needs it, the other kinds have no use for it"
                )
        if self.kind != "file" and (self.pin or self.pad_token):
            raise ValueError("pin and pad_token have an effect with kind file only; remove them")
        return self

    def key_fields(self) -> dict[str, Any]:
        """A file counts by its digest, not by where it lies."""
        return self.model_dump(mode="json", exclude={"path"})


def pin_tokenizer(config: TokenizerConfig, base_dir: Path) -> TokenizerConfig:
    """The config with the file's digest. Raises StageError where the file is missing or is not the pinned one."""
    if config.path is None:
        return config
    path = base_dir / config.path
    if not path.is_file():
        raise StageError(
            "no such file", field="tokenizer.path", value=config.path, fix=f"put a tokenizer.json at {path}"
        )
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    if config.pin not in (None, digest):
        raise StageError(
            f"the file now has the digest {digest}",
            field="tokenizer.pin",
            value=config.pin,
            fix="write the new digest, or restore the file",
        )
    return config.model_copy(update={"path": str(path), "pin": digest})


def vocabulary_size(config: TokenizerConfig) -> int | None:
    """Size of the pinned tokenizer's vocabulary as far as it is known without making it; None for ``bpe``, which may
    find fewer tokens than it was asked for.

    Raises StageError for a file that is no tokenizer.json or lacks a named token.
    """
    if config.kind != "file":
        return 258 if config.kind == "bytes" else None
    assert config.path is not None
    not_one = "a tokenizer.json as Hugging Face's tokenizers write it"
    try:
        body = json.loads(Path(config.path).read_text(encoding="utf-8"))
        entries = body["model"]["vocab"]
        tokens = {entry if isinstance(entries, dict) else entry[0] for entry in entries}  # Unigram: [token, score]
        tokens |= {token["content"] for token in body.get("added_tokens") or ()}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise StageError(
            "not a tokenizer", field="tokenizer.path", value=config.path, allowed=not_one, fix="give such a file"
        ) from error
    for field, token in (("eos_token", config.eos_token), ("pad_token", config.pad_token)):
        if token is not None and token not in tokens:
            special = ", ".join(t["content"] for t in body.get("added_tokens") or ()) or "any token of its vocabulary"
            raise StageError(
                f"{config.path} has no such token", field=f"tokenizer.{field}", value=token, allowed=special[:300],
                fix="name one it has",
            )  # fmt: skip
    return len(tokens)


class Tokenizer(Stage[TokenizerConfig]):
    """Documents in, tokenizer.json out."""

    name = "tokenizer"
    code_version = 1
    inputs = ("documents",)
    uses = ("stages.corpus",)

    def run(self, config: TokenizerConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        from stages.tokens.tokenizer import make_tokenizer

        return make_tokenizer(config, inputs["documents"], output, context)


class TokenizeConfig(Config):
    """How documents become sequences.

    A sequence is ``sequence_length`` tokens, a whole number of segments, and never crosses documents. The last,
    shorter piece of a document is padded (and masked) if it fills at least ``min_tail_share`` of a sequence, else
    dropped and counted (0 pads every one, 1 drops every one); evaluation documents keep every token.
    """

    sequence_length: int = Field(ge=2, description="tokens")
    segment_length: int = Field(ge=1, description="tokens per segment (N)")
    min_tail_share: float = Field(default=0.5, ge=0, le=1)
    shard_bytes: int = Field(
        default=64 * 2**20,
        ge=1,
        description="size of an Arrow shard, 5 bytes a token: a second or so from object storage",
    )

    @model_validator(mode="after")
    def _whole_segments(self) -> TokenizeConfig:
        if self.sequence_length % self.segment_length:
            lower = self.sequence_length // self.segment_length * self.segment_length
            raise ValueError(
                f"sequence_length = {self.sequence_length}: must be a multiple of segment_length = "
                f"{self.segment_length} (nearest: {lower or self.segment_length} or {lower + self.segment_length})"
            )
        return self


class Tokenize(Stage[TokenizeConfig]):
    """Documents and tokenizer in, Arrow shards out."""

    name = "tokenize"
    code_version = 2
    inputs = ("documents", "tokenizer")
    uses = ("stages.corpus",)

    def run(self, config: TokenizeConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        from stages.tokens.tokenize import tokenize

        return tokenize(config, inputs["documents"], inputs["tokenizer"], output, context)


TOKENIZER = Tokenizer()
TOKENIZE = Tokenize()
