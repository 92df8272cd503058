"""Settings of tokenizer and tokenize, as they stand in a study file, and what they pin."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from stages.data.pinned import Pin
from stages.stage import Config


class TokenizerConfig(Config):
    """Which tokenizer: ``bpe`` is trained on the training documents (byte-level, numbers cut into ``number_digits``
    digits), ``bytes`` has one token per byte, ``file`` takes any tokenizer.json, ``hub`` that of a repository on the
    Hugging Face Hub.

    Every kind ends as one tokenizer.json with an end-of-document and a padding token. Strings in documents that look
    like control tokens (``</s>``) are text: only the study itself puts control tokens between documents.
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
    pin: Pin | None = Field(default=None, description="file: digest of the file")
    eos_token: str | None = Field(default=None, description="file, hub: token that ends a document")
    pad_token: str | None = Field(default=None, description="file, hub: token that pads (default: the eos token)")
    bos_token: str | None = Field(
        default=None,
        description="file, hub: token that begins a document (default: the one that the file itself puts before a "
        'text, if it does; "": none)',
    )
    chat_template: bool = Field(
        default=False,
        description="file, hub: prompts of evaluate and ablate are a user's message by the tokenizer's chat template, "
        "whose tokens are within the length",
    )
    chat_pin: Pin | None = Field(default=None, description="file: digest of the chat template")

    @model_validator(mode="after")
    def _fields_of_kind(self) -> TokenizerConfig:
        needed = {"bpe": {"vocab_size"}, "file": {"path", "eos_token"}, "hub": {"path", "revision", "eos_token"}}
        possible = {
            "bpe": {"train_bytes", "number_digits"},
            "file": {"pin", "pad_token", "bos_token", "chat_template"}
            | ({"chat_pin"} if self.chat_template else set()),
            "hub": {"pad_token", "bos_token", "chat_template"},
        }
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
        """A file counts by its digest, not by where it lies; a repository by its name and commit; a chat template where
        it is used."""
        unused = set() if self.chat_template else {"chat_template", "chat_pin"}
        return self.model_dump(mode="json", exclude=unused | ({"path"} if self.kind == "file" else set()))


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
