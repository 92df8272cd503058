"""``config.json`` of Llama and the families next to it, both ways: importable without torch.

Reads what transformers 4 and 5 write: ``rope_scaling`` beside ``rope_theta``, or both inside ``rope_parameters``. It
writes the older spelling, which both read.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

from model.config import AttentionBias, ModelConfig, RopeScaling, TrunkConfig

BLOCK = "infini_study"
"""Field of config.json that holds the whole ModelConfig; also the ``model_type`` of arms that Llama cannot compute."""

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SCALINGS = ("linear", "llama3", "yarn", "dynamic", "longrope")
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32, "max_window_layers": 28},
    "qwen3": {"num_key_value_heads": 32, "max_window_layers": 28, "head_dim": 128},
    "smollm3": {"num_key_value_heads": 4, "rope_theta": 2e6, "tie_word_embeddings": True},
    "olmo2": {"rms_norm_eps": 1e-5},
}
"""model_type -> what a config.json means that does not say so, where that is not what it means of a Llama."""
_MOST_LAYERS = 10_000
"""Lists with an entry for each layer are made before the weights are read."""
_CLASSES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
    "olmo2": "Olmo2",
}


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint's folder. Raises ValueError where it is missing or no JSON object."""
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file (allowed: a folder with config.json and *.safetensors)")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # brackets a thousand deep
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
    family = str(fields.get("model_type"))
    _only(fields, "model_type", None, tuple(_FAMILIES), source)
    fields = _FAMILIES[family] | fields
    _check_types(fields, source)
    for name, usual in {
        "hidden_act": "silu",
        "mlp_bias": False,
        "partial_rotary_factor": 1.0,
        "quantization_config": None,
    }.items():
        _only(fields, name, usual, (usual,), source)
    if family == "llama":
        _only(fields, "sliding_window", None, (None,), source)
    layers: int = fields["num_hidden_layers"]
    slides = fields.get("use_sliding_window") and fields.get("sliding_window") and not fields.get("layer_types")
    if family != "mistral" and slides and (fields.get("max_window_layers") or 0) < layers:  # layers from that one on
        _only(fields, "use_sliding_window", False, (False,), source)
    for kind in fields.get("layer_types") or ():
        if kind != "full_attention" and family != "mistral":
            raise ValueError(f"{source}/config.json: layer_types: {kind!r} (allowed: 'full_attention')")
    bias = "qkv" if family == "qwen2" else "qkvo" if fields.get("attention_bias") and family != "mistral" else "none"
    theta, scaling = _rope(fields, source)
    try:
        trunk = TrunkConfig(
            dim=fields["hidden_size"],
            layers=layers,
            heads=fields["num_attention_heads"],
            kv_heads=fields.get("num_key_value_heads"),
            head_dim=fields.get("head_dim"),
            ffn_dim=fields["intermediate_size"],
            rope_theta=theta,
            rope_scaling=scaling,
            norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
            tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
            attention_bias=cast(AttentionBias, bias),
            qk_norm="head" if family == "qwen3" else "whole" if family == "olmo2" else "none",
            norm_position="after" if family == "olmo2" else "before",
            nope_layers=_nope(fields, layers, source) if family == "smollm3" else (),
            sliding_window=fields.get("sliding_window") if family == "mistral" else None,
        )
    except ValueError as error:
        raise ValueError(f"{source}/config.json: {str(error).removeprefix(f'{source}/config.json: ')}") from error
    return trunk, int(fields["vocab_size"])


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint's folder: one, or those that its index lists. Raises ValueError where there
    is none, or one is missing."""
    names, index = [WEIGHTS], directory / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            if not names or not all(isinstance(name, str) for name in names):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{index}: not an index of safetensors: no weight_map of names and files") from error
    for name in names:
        if (directory / name).is_file():
            continue
        pickled = next(iter(sorted(directory.glob("pytorch_model*.bin"))), None)
        if pickled is not None and not index.is_file():
            raise ValueError(
                f"{pickled}: pickled weights are not read (allowed: safetensors). Fix: infini-study import "
                f"{directory} NEW_FOLDER"
            )
        raise ValueError(f"{directory / name}: no such file (allowed: safetensors, in one file or with an index)")
    return [directory / name for name in names]


def _only(fields: dict[str, Any], name: str, usual: Any, allowed: tuple[Any, ...], source: Path) -> None:
    value = fields.get(name, usual)
    if value not in allowed:
        raise ValueError(f"{source}/config.json: {name} = {value!r} (allowed: {', '.join(map(repr, allowed))})")


def _check_types(fields: dict[str, Any], source: Path) -> None:
    """Raises ValueError for a value of another type than the field has in transformers."""

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1

    def number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")

    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    optional = (
        "num_key_value_heads",
        "head_dim",
        "sliding_window",
        "no_rope_layer_interval",
        "max_position_embeddings",
        "original_max_position_embeddings",
    )
    wholes = {**{name: fields.get(name) for name in needed}, **_present(fields, optional)}
    flags = _present(fields, ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"))
    objects = _present(fields, ("rope_scaling", "rope_parameters"))
    lists = _present(fields, ("layer_types", "no_rope_layers"))
    numbers = _present(fields, ("rope_theta",)) | {"rms_norm_eps": fields.get("rms_norm_eps", 1e-6)}
    for kinds, fits, allowed in (
        (wholes, whole, "a whole number >= 1"),
        (numbers, number, "a number > 0"),
        (flags, lambda value: isinstance(value, bool), "true, false"),
        (objects, lambda value: isinstance(value, dict), "an object"),
        (lists, lambda value: isinstance(value, list), "a list"),
    ):
        for name, value in kinds.items():
            if not fits(value):
                raise ValueError(f"{source}/config.json: {name} = {value!r} (allowed: {allowed})")
    if fields["num_hidden_layers"] > _MOST_LAYERS:
        value = fields["num_hidden_layers"]
        raise ValueError(f"{source}/config.json: num_hidden_layers = {value} (allowed: 1 to {_MOST_LAYERS})")
    for name, rope in objects.items():
        for part, value in rope.items():
            plain = value is None or isinstance(value, str if part in ("type", "rope_type") else bool) or number(value)
            if not plain and not (isinstance(value, list) and all(map(number, value))):
                raise ValueError(
                    f"{source}/config.json: {name}.{part} = {value!r} (allowed: a number, one for all layers)"
                )


def _present(fields: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: fields[name] for name in names if fields.get(name) is not None}


def _nope(fields: dict[str, Any], layers: int, source: Path) -> tuple[int, ...]:
    """SmolLM3: no_rope_layers has 1 for layers with RoPE; without it every so many-th layer has none."""
    every = fields.get("no_rope_layer_interval") or 4
    rotates = fields.get("no_rope_layers") or [int((layer + 1) % every != 0) for layer in range(layers)]
    if len(rotates) != layers or not all(value in (0, 1) for value in rotates):
        raise ValueError(
            f"{source}/config.json: no_rope_layers = {rotates} (allowed: 0 or 1 for each of {layers} layers)"
        )
    return tuple(layer for layer in range(layers) if not rotates[layer])


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
    if kind == "dynamic":  # counts from the longest position, whatever else stands there
        rope["original_max_position_embeddings"] = longest
    elif kind != "linear":
        before = before or rope.get("original_max_position_embeddings") or longest
        rope["original_max_position_embeddings"] = before
        if kind in ("yarn", "longrope") and "factor" not in rope and longest and before:
            rope["factor"] = longest / before
    if "factor" not in rope:
        raise ValueError(f"{where}.factor is missing (allowed: a number >= 1)")
    unknown = set(rope) - {field.name for field in dataclasses.fields(RopeScaling)}
    if unknown:
        raise ValueError(f"{where}.{sorted(unknown)[0]} is not known for rope_type = {kind!r}")
    rope = {name: tuple(value) if isinstance(value, list) else value for name, value in rope.items()}
    try:
        return theta, RopeScaling(type=kind, **rope)
    except ValueError as error:
        raise ValueError(f"{source}/config.json: {error}") from error


def llama_fields(config: ModelConfig, like: dict[str, Any] | None = None) -> dict[str, Any]:
    """The config.json of ``config``: Llama's fields and the ``infini_study`` block.

    Full attention is a Llama, or what the trunk's family is, and says so; every other arm has a ``model_type`` of its
    own, lest a program that does not know the arm takes it for a Llama and computes something else.
    (``LlamaForCausalLM`` asked for by name still opens either, without what Llama lacks.) like: config.json of the
    model it was made from, whose fields that do not change the computation (special tokens, longest position) are
    carried over.
    """
    trunk, family = config.trunk, family_of(config)
    own: dict[str, Any] = {
        "architectures": [f"{_CLASSES[family]}ForCausalLM" if family else "InfiniStudyForCausalLM"],
        "model_type": family or BLOCK,
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
        "attention_bias": trunk.attention_bias != "none",
        "mlp_bias": False,
    }
    if family == "mistral":
        own["sliding_window"] = trunk.sliding_window
    if family == "smollm3":
        own["no_rope_layers"] = [int(layer not in trunk.nope_layers) for layer in range(trunk.layers)]
    # transformers' own defaults would name tokens 1 and 2, whatever the tokenizer says they are
    fields: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
    if trunk.rope_scaling is not None:
        scaling = trunk.rope_scaling.given()
        scaling = {"rope_type": scaling.pop("type"), **scaling}
        # transformers 5 stumbles over the older spelling where it does not know the family
        own |= {"rope_scaling": scaling} if family else {"rope_parameters": scaling | {"rope_theta": trunk.rope_theta}}
        before = trunk.rope_scaling.original_max_position_embeddings
        if before is not None:
            grown = 1.0 if trunk.rope_scaling.type == "dynamic" else trunk.rope_scaling.factor
            fields["max_position_embeddings"] = round(before * grown)
    fields |= {name: value for name, value in (like or {}).items() if name not in _NOT_CARRIED}
    return fields | own | {BLOCK: config.to_dict()}


def family_of(config: ModelConfig) -> str | None:
    """The ``model_type`` of transformers that computes ``config``, of full attention alone; None: only our own code."""
    trunk = config.trunk
    if config.mixer.kind != "full":
        return None
    options = {
        "attention_bias": trunk.attention_bias,
        "qk_norm": trunk.qk_norm,
        "norm_position": trunk.norm_position,
        "nope_layers": bool(trunk.nope_layers),
        "sliding_window": trunk.sliding_window is not None,
    }
    plain: dict[str, Any] = {"attention_bias": "none", "qk_norm": "none", "norm_position": "before"}
    plain |= {"nope_layers": False, "sliding_window": False}
    biased = trunk.attention_bias == "qkvo"
    bias = {"attention_bias": "qkvo" if biased else "none"}
    known: dict[str, dict[str, Any]] = {
        "llama": bias,
        "mistral": {"sliding_window": True},
        "qwen2": {"attention_bias": "qkv"},
        "qwen3": {"qk_norm": "head"} | bias,
        "smollm3": {"nope_layers": True} | bias,
        "olmo2": {"qk_norm": "whole", "norm_position": "after"} | bias,
    }
    return next((family for family, changed in known.items() if options == plain | changed), None)


_NOT_CARRIED = {
    "auto_map",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "rope_scaling",
    "rope_parameters",
    "original_max_position_embeddings",
    "sliding_window",
    "quantization_config",
    "_name_or_path",
    BLOCK,
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "no_rope_layers",
    "no_rope_layer_interval",
}
"""Fields of another config.json that hold only there, or that ours states in its own way."""
