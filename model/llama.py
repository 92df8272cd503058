"""``config.json`` of Llama-family checkpoints, both ways: importable without torch.

Reads what transformers 4 and 5 write: ``rope_scaling`` beside ``rope_theta``, or both inside ``rope_parameters``. Of a
Llama it writes the older spelling, which both read.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from model.config import ModelConfig, RopeScaling, TrunkConfig

BLOCK = "infini_study"
"""Field of config.json that holds the whole ModelConfig; also the ``model_type`` of arms that Llama cannot compute."""

_SCALINGS = ("linear", "llama3", "yarn")
# what a config.json that does not say so means, where that depends on the family
_DEFAULTS: dict[str, dict[str, Any]] = {"llama": {}, "mistral": {"num_key_value_heads": 8, "sliding_window": 4096}}


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
    if BLOCK in fields:  # one of our own, of whatever arm
        own = ModelConfig.from_dict(fields[BLOCK])
        return own.trunk, own.vocab_size
    family = fields.get("model_type")
    only: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "model_type": (family, tuple(_DEFAULTS)),
        "hidden_act": (fields.get("hidden_act", "silu"), ("silu",)),
        "attention_bias": (fields.get("attention_bias", False), (False,)),
        "mlp_bias": (fields.get("mlp_bias", False), (False,)),
        "sliding_window": (fields.get("sliding_window", _DEFAULTS.get(str(family), {}).get("sliding_window")), (None,)),
        "partial_rotary_factor": (fields.get("partial_rotary_factor", 1.0), (1.0,)),
        "quantization_config": (fields.get("quantization_config"), (None,)),
    }
    for name, (value, allowed) in only.items():
        if value not in allowed:
            raise ValueError(f"{source}/config.json: {name} = {value!r} (allowed: {', '.join(map(repr, allowed))})")
    theta, scaling = _rope(fields, source)
    trunk = TrunkConfig(
        dim=_field(fields, "hidden_size", source),
        layers=_field(fields, "num_hidden_layers", source),
        heads=_field(fields, "num_attention_heads", source),
        kv_heads=fields.get("num_key_value_heads", _DEFAULTS[str(family)].get("num_key_value_heads")),
        head_dim=fields.get("head_dim"),
        ffn_dim=_field(fields, "intermediate_size", source),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
        tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
    )
    return trunk, _field(fields, "vocab_size", source)


def _rope(fields: dict[str, Any], source: Path) -> tuple[float, RopeScaling | None]:
    """theta and scaling, each from where transformers 5 would take it if it stands in several places."""
    name = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
    rope = dict(fields.get(name) or {})
    theta = float(rope.pop("rope_theta", None) or fields.get("rope_theta") or 10000.0)
    older = rope.pop("type", None)
    kind: Any = rope.pop("rope_type", None) or older or "default"
    partial = rope.pop("partial_rotary_factor", 1.0)
    where = f"{source}/config.json: {name}"
    if partial != 1.0:
        raise ValueError(f"{where}.partial_rotary_factor = {partial!r} (allowed: 1.0)")
    rope = {key: value for key, value in rope.items() if value is not None}
    if kind == "default":
        return theta, None
    if kind not in _SCALINGS:
        raise ValueError(f"{where}.rope_type = {kind!r} (allowed: 'default', {', '.join(map(repr, _SCALINGS))})")
    longest, before = fields.get("max_position_embeddings"), fields.get("original_max_position_embeddings")
    if kind != "linear":
        before = before or rope.get("original_max_position_embeddings") or longest
        rope["original_max_position_embeddings"] = before
        if kind == "yarn" and "factor" not in rope and longest and before:
            rope["factor"] = longest / before
    if "factor" not in rope:
        raise ValueError(f"{where}.factor is missing (allowed: a number >= 1)")
    unknown = set(rope) - {field.name for field in dataclasses.fields(RopeScaling)}
    if unknown:
        raise ValueError(f"{where}.{sorted(unknown)[0]} is not known for rope_type = {kind!r}")
    try:
        return theta, RopeScaling(type=kind, **rope)
    except ValueError as error:
        raise ValueError(f"{source}/config.json: {error}") from error


def llama_fields(config: ModelConfig, like: dict[str, Any] | None = None) -> dict[str, Any]:
    """The config.json of ``config``: Llama's fields and the ``infini_study`` block.

    Full attention is a Llama and says so; every other arm has a ``model_type`` of its own, lest a program that does
    not know the arm takes it for a Llama and computes something else. (``LlamaForCausalLM`` asked for by name still
    opens either, without what Llama lacks.) like: config.json of the model it was made from, whose fields that do not
    change the computation (special tokens, longest position) are carried over.
    """
    trunk = config.trunk
    full = config.mixer.kind == "full"
    own: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM" if full else "InfiniStudyForCausalLM"],
        "model_type": "llama" if full else BLOCK,
        "vocab_size": config.vocab_size,
        "hidden_size": trunk.dim,
        "num_hidden_layers": trunk.layers,
        "num_attention_heads": trunk.heads,
        "num_key_value_heads": trunk.n_kv_heads,
        "head_dim": trunk.d_head,
        "intermediate_size": trunk.d_ffn,
        "hidden_act": "silu",
        "rms_norm_eps": trunk.norm_eps,
        "rope_theta": trunk.rope_theta,
        "tie_word_embeddings": trunk.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
    }
    # transformers' own defaults would name tokens 1 and 2, whatever the tokenizer says they are
    fields: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
    if trunk.rope_scaling is not None:
        scaling = trunk.rope_scaling.given()
        scaling = {"rope_type": scaling.pop("type"), **scaling}
        # transformers 5 stumbles over the older spelling where it does not know the family
        own |= {"rope_scaling": scaling} if full else {"rope_parameters": scaling | {"rope_theta": trunk.rope_theta}}
        if trunk.rope_scaling.original_max_position_embeddings is not None:
            longest = round(trunk.rope_scaling.original_max_position_embeddings * trunk.rope_scaling.factor)
            fields["max_position_embeddings"] = longest
    fields |= {name: value for name, value in (like or {}).items() if name not in _NOT_CARRIED}
    return fields | own | {BLOCK: config.to_dict()}


_NOT_CARRIED = {
    "auto_map", "torch_dtype", "dtype", "transformers_version", "rope_scaling", "rope_parameters",
    "original_max_position_embeddings", "sliding_window", "quantization_config", "_name_or_path", BLOCK,
}  # fmt: skip
"""Fields of another config.json that hold only there, or that ours states in its own way."""


def _field(fields: dict[str, Any], name: str, source: Path) -> int:
    if not isinstance(fields.get(name), int):
        raise ValueError(f"{source}/config.json: {name} = {fields.get(name)!r} (allowed: a whole number)")
    return int(fields[name])
