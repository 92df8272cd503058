"""The shape of a Llama-family checkpoint, read from its ``config.json`` alone: importable without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.config import TrunkConfig


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint's folder. Raises ValueError where it is missing or no JSON object."""
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file (allowed: a folder with config.json and *.safetensors)")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: not the configuration of a model (allowed: a JSON object)")
    return fields


def shape(fields: dict[str, Any], source: Path) -> tuple[TrunkConfig, int]:
    """(trunk, vocabulary size) of ``fields``, the config.json of the folder ``source``.

    Raises ValueError naming field, value and what is allowed, for anything this decoder would compute differently.
    """
    rope = fields.get("rope_parameters") or {}  # transformers 5 gathers theta and scaling here
    scaling = fields.get("rope_scaling") or rope
    only: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "model_type": (fields.get("model_type"), ("llama", "mistral")),
        "rope_scaling.rope_type": (scaling.get("rope_type", scaling.get("type", "default")), ("default",)),
        "hidden_act": (fields.get("hidden_act", "silu"), ("silu",)),
        "attention_bias": (fields.get("attention_bias", False), (False,)),
        "mlp_bias": (fields.get("mlp_bias", False), (False,)),
        "sliding_window": (fields.get("sliding_window"), (None,)),
        "quantization_config": (fields.get("quantization_config"), (None,)),
    }
    for name, (value, allowed) in only.items():
        if value not in allowed:
            raise ValueError(f"{source}/config.json: {name} = {value!r} (allowed: {', '.join(map(repr, allowed))})")
    trunk = TrunkConfig(
        dim=_field(fields, "hidden_size", source),
        layers=_field(fields, "num_hidden_layers", source),
        heads=_field(fields, "num_attention_heads", source),
        kv_heads=fields.get("num_key_value_heads"),
        head_dim=fields.get("head_dim"),
        ffn_dim=_field(fields, "intermediate_size", source),
        rope_theta=float(fields.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
        tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
    )
    return trunk, _field(fields, "vocab_size", source)


def _field(fields: dict[str, Any], name: str, source: Path) -> int:
    if not isinstance(fields.get(name), int):
        raise ValueError(f"{source}/config.json: {name} = {fields.get(name)!r} (allowed: a whole number)")
    return int(fields[name])
