"""Settings of the evaluation, as they stand in a study file."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from model.config import MixerConfig
from stages.data.pinned import pin_file
from stages.data.tasks.config import RetrievalConfig
from stages.stage import Config


class PerplexityConfig(Config):
    """Which held-out documents are scored, and the position buckets of the answer."""

    splits: tuple[Literal["validation", "test"], ...] = Field(default=("test",), min_length=1)
    max_documents: int | None = Field(default=None, ge=1, description="per split; a stable sample by hashed id")
    max_documents_per_source: int | None = Field(
        default=None, ge=1, description="per split and source of the corpus, so that each is among those scored"
    )
    min_tokens_per_document: int = Field(default=2, ge=2, description="shorter documents are left out, counted")
    max_tokens_per_document: int | None = Field(default=None, ge=2, description="longer documents are cut here")
    buckets: tuple[int, ...] | None = Field(
        default=None, description="first token of each position bucket, from 0 (default: 0, 64, 128, 256, ...)"
    )

    @field_validator("buckets")
    @classmethod
    def _ascending(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (value[:1] != (0,) or any(a >= b for a, b in pairwise(value))):
            raise ValueError(f"buckets = {list(value)}: allowed are ascending token positions that start with 0")
        return value

    @model_validator(mode="after")
    def _shortest_below_longest(self) -> PerplexityConfig:
        longest = self.max_tokens_per_document
        if longest is not None and self.min_tokens_per_document > longest:
            raise ValueError(
                f"min_tokens_per_document = {self.min_tokens_per_document}: must be at most max_tokens_per_document = "
                f"{longest}, where longer documents are cut"
            )
        return self

    def key_fields(self) -> dict[str, Any]:
        """``max_documents_per_source`` counts where it is set."""
        fields = super().key_fields()
        if self.max_documents_per_source is None:
            fields.pop("max_documents_per_source")
        return fields

    def edges(self, longest: int) -> list[int]:
        """Bucket borders [0, ..., longest] in tokens."""
        starts = list(self.buckets or [0, *(64 << i for i in range(max(0, (longest - 1).bit_length() - 6)))])
        return [start for start in starts if start < longest] + [longest]


class EvaluateSettings(Config):
    """The study file's ``evaluate:`` section. ``seed`` draws prompts: the same for every arm and training seed."""

    perplexity: PerplexityConfig = PerplexityConfig()
    retrieval: RetrievalConfig
    seed: int = Field(default=0, ge=0)
    dtype: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16: matrix products in bfloat16, memory and gates in float32"
    )

    def key_fields(self) -> dict[str, Any]:
        """``dtype`` counts where it is not float32."""
        fields = super().key_fields()
        if self.dtype == "fp32":
            fields.pop("dtype")
        return fields


class EvaluateConfig(EvaluateSettings):
    """One model. ``mixer``: what a base, which has none of the arms', is read under; None: the trained model's own."""

    mixer: MixerConfig | None = None


def pinned_prompts(section: EvaluateSettings, folder: Path) -> EvaluateSettings:
    """``section`` with the files of ``retrieval.files`` found from ``folder``, pinned by digest and read once. Raises
    StageError for one that is not there, is another one, or holds no prompts."""
    if not section.retrieval.files:
        return section
    from stages.data.tasks.files import prompts_of

    files = {}
    for name, file in section.retrieval.files.items():
        field = f"evaluate.retrieval.files.{name}"
        path, pin = pin_file(file.path, folder, file.pin, field=field, kind="JSON Lines")
        files[name] = file.model_copy(update={"path": path, "pin": pin})
        prompts_of(name, files[name])
    retrieval = section.retrieval.model_copy(update={"files": files})
    return section.model_copy(update={"retrieval": retrieval})
