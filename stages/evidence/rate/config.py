"""Settings of the stage ``rate``, as they stand in a study file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, model_validator

from stages.data.pinned import Pin, pin_folder
from stages.stage import Config, StageError


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


def without_transformers(field: str) -> StageError | None:
    """The error where the library that reads local models is missing."""
    if importlib.util.find_spec("transformers") is not None:
        return None
    return StageError(
        "local models are read by the package transformers, which is not installed",
        field=field,
        value="transformers",
        fix="pip install 'infini-study[rate]'",
    )


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
    described = _described(Path(path), field)
    if isinstance(model, BertScore):
        _has_layer(described, model.layer, model.path)
    if isinstance(model, Nli):
        entailment(described.get("id2label"), model.path)
    return model.model_copy(update={"path": path, "pin": digest})


def _described(folder: Path, field: str) -> dict[str, Any]:
    """config.json of a model's folder. Raises StageError where there is none that is JSON."""
    inner = folder / "0_Transformer"
    file = (inner if inner.is_dir() else folder) / "config.json"
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "holds no config.json" if isinstance(error, OSError) else "its config.json is not JSON"
        raise StageError(
            reason,
            field=f"{field}.path",
            value=str(folder),
            fix="name the folder of a model as Hugging Face lays it out",
        ) from error
    return value if isinstance(value, dict) else {}


def _has_layer(described: dict[str, Any], layer: int, path: str) -> None:
    """Raises StageError for a layer that the encoder does not have (0: its embeddings)."""
    layers = described.get("num_hidden_layers")
    if isinstance(layers, int) and not -layers - 1 <= layer <= layers:
        raise StageError(
            f"the encoder in {path} has no such layer",
            field="rate.bertscore.layer",
            value=layer,
            allowed=f"0 to {layers}, or -1 to {-layers - 1} from the end",
        )


def entailment(id2label: Any, path: str) -> int:
    """Place of the label that begins with ``entail``. Raises StageError where there is none."""
    said = id2label.items() if isinstance(id2label, dict) else ()
    labels = {int(i): str(name).lower() for i, name in said if str(i).isdecimal()}
    found = next((i for i, name in labels.items() if name.startswith("entail")), None)
    if found is None:
        raise StageError(
            "the model has no label that says entailment",
            field="rate.nli.path",
            value=path,
            allowed=f"a label entailment; it has {', '.join(labels.values()) or 'none'}",
            fix="name a model of natural-language inference",
        )
    return found
