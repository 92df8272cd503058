"""Settings of the stage ``rate``, as they stand in a study file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, model_validator

from stages.data.pinned import Pin, pin_folder
from stages.stage import Config


class LocalModel(Config):
    """A model in a local folder, in Hugging Face's layout. It counts by its digest, not by where it lies."""

    path: str = Field(description="folder, relative to the study file")
    pin: Pin | None = Field(default=None, description="digest of the folder")

    def key_fields(self) -> dict[str, Any]:
        return {name: value for name, value in super().key_fields().items() if name != "path"}


class Embedding(LocalModel):
    """A sentence-transformers folder (a transformer, pooling, normalization). Cosine of summary and reference."""


class BertScore(LocalModel):
    """An encoder. F1 of greedily matched token vectors (Zhang et al., 2020), without idf and without rescaling."""

    layer: int = Field(default=-1, description="hidden layer whose vectors are matched; -1: the last")


class Nli(LocalModel):
    """A sequence classifier with a label ``entailment``. Faithful: is each sentence of the summary entailed by some
    window of the book? Covered: is each sentence of the reference entailed by some window of the summary?"""

    window_words: int = Field(default=250, ge=10, description="words of a window; windows overlap by half")
    windows: int = Field(default=8, ge=1, description="windows asked per sentence: those that share most of its words")


class RateConfig(Config):
    """The study file's ``rate:`` section. A model that is not named is not measured."""

    embedding: Embedding | None = None
    bertscore: BertScore | None = None
    nli: Nli | None = None

    @model_validator(mode="after")
    def _something(self) -> RateConfig:
        if not any((self.embedding, self.bertscore, self.nli)):
            raise ValueError("rate names no model: has no effect (allowed: embedding, bertscore, nli: at least one)")
        return self


M = TypeVar("M", bound=LocalModel)


def pin_models(config: RateConfig, base_dir: Path) -> RateConfig:
    """The config with absolute paths and digests. Raises StageError for a missing folder or another than the pinned."""
    found = {name: pinned(getattr(config, name), base_dir, f"rate.{name}") for name in RateConfig.model_fields}
    return config.model_copy(update=found)


def pinned(model: M | None, base_dir: Path, field: str) -> M | None:
    """One model with its absolute path and digest."""
    if model is None:
        return None
    path, digest = pin_folder(model.path, base_dir, model.pin, field=field, kind="model")
    return model.model_copy(update={"path": path, "pin": digest})
