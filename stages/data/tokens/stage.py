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
    """Which tokenizer: ``bpe`` is trained on the training documents (byte-level, numbers cut into ``number_digits``
    digits), ``bytes`` has one token per byte, ``file`` takes any tokenizer.json, ``hub`` that of a repository on the
    Hugging Face Hub.

    Every kind ends as one tokenizer.json with an end-of-document and a padding token.
    """

    kind: Literal["bpe", "bytes", "file", "hub"]
    vocab_size: int | None = Field(default=None, ge=258, description="bpe: size with the 256 bytes and two specials")
    train_bytes: int = Field(
        default=20_000_000, ge=1, description="bpe: training text read at most, evenly over documents"
    )
    number_digits: Literal[1, 2, 3] = Field(
        default=1,
        description="bpe: a run of digits is cut from its left into pieces of at most so many, and every such piece is "
        "one token whatever the training text, also with a space in front (1: digit by digit, without the space)",
    )
    path: str | None = Field(
        default=None,
        description="file: a tokenizer.json or a folder with one (relative to the study file, or a URL); hub: its id",
    )
    revision: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{40}$", description="hub: commit of the repository (a branch can move)"
    )
    pin: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$", description="file: digest of the file")
    eos_token: str | None = Field(default=None, description="file, hub: token that ends a document")
    pad_token: str | None = Field(default=None, description="file, hub: token that pads (default: the eos token)")

    @model_validator(mode="after")
    def _fields_of_kind(self) -> TokenizerConfig:
        needed = {"bpe": {"vocab_size"}, "file": {"path", "eos_token"}, "hub": {"path", "revision", "eos_token"}}
        possible = {"bpe": {"train_bytes", "number_digits"}, "file": {"pin", "pad_token"}, "hub": {"pad_token"}}
        here = needed.get(self.kind, set())
        for name in sorted(here):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is missing: kind {self.kind} needs {', '.join(sorted(here))}")
        for name, field in type(self).model_fields.items():
            if name != "kind" and name not in here | possible.get(self.kind, set()):
                value = getattr(self, name)
                if value != field.default:
                    raise ValueError(f"{name} = {value!r} has no effect with kind {self.kind}; remove it")
        if self.vocab_size is not None and self.vocab_size < self.smallest:
            raise ValueError(
                f"vocab_size = {self.vocab_size}: must be at least {self.smallest} with number_digits = "
                f"{self.number_digits} (bytes, specials and numbers of up to {self.number_digits} digits)"
            )
        return self

    @property
    def smallest(self) -> int:
        """Tokens a ``bpe`` vocabulary has before any training."""
        numbers = sum(10**digits for digits in range(1, self.number_digits + 1))
        return 258 if self.number_digits == 1 else 258 + 2 * numbers - 10

    def key_fields(self) -> dict[str, Any]:
        """A file counts by its digest, not by where it lies; a repository by its name and commit."""
        return self.model_dump(mode="json", exclude={"path"} if self.kind == "file" else set())


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
        path = base_dir / Path(place).expanduser()
        place = str(path / "tokenizer.json" if path.is_dir() else path)
    config = config.model_copy(update={"path": place})
    content = read_tokenizer(config, said=said)
    assert content is not None
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    if config.pin not in (None, digest):
        raise StageError(
            f"the file now has the digest {digest}",
            field="tokenizer.pin",
            value=config.pin,
            fix="write the new digest, or restore the file",
        )
    return config.model_copy(update={"pin": digest})


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


def vocabulary_size(config: TokenizerConfig) -> int | None:
    """Size of the pinned tokenizer's vocabulary as far as it is known without making it; None for ``bpe``, which may
    find fewer tokens than it was asked for, and for a repository that cannot be reached now.

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
    code_version = 2
    inputs = ("documents",)

    def run(self, config: TokenizerConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        from stages.data.tokens.tokenizer import make_tokenizer

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

    def run(self, config: TokenizeConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        from stages.data.tokens.tokenize import tokenize

        return tokenize(config, inputs["documents"], inputs["tokenizer"], output, context)


TOKENIZER = Tokenizer()
TOKENIZE = Tokenize()
