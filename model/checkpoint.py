"""Weights on disk in Hugging Face's Llama layout: ``config.json`` and ``model.safetensors``.

A folder written by ``save`` also opens with ``transformers.LlamaForCausalLM`` (which leaves out the gates): config.json
carries Llama's fields plus an ``infini_study`` block with the whole ModelConfig.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.decoder import Decoder
from model.llama import read_config, shape

BLOCK = "infini_study"
HEAD = "lm_head.weight"


def save(decoder: Decoder, directory: str | Path) -> None:
    """Write config.json and model.safetensors (tied heads once) into ``directory``, made if absent."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {_to_hf(name): tensor.detach().cpu().contiguous() for name, tensor in decoder.state_dict().items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    dtype = str(decoder.embed_tokens.weight.dtype).removeprefix("torch.")
    text = json.dumps(_llama_fields(decoder.config) | {"torch_dtype": dtype, BLOCK: decoder.config.to_dict()}, indent=1)
    (directory / "config.json").write_text(text + "\n")


def load(directory: str | Path, device: torch.device | str = "cpu") -> Decoder:
    """The decoder that ``save`` wrote. Raises ValueError for a folder of another origin (use ``graft``), or for missing
    or foreign tensors."""
    directory = Path(directory)
    fields = read_config(directory)
    if BLOCK not in fields:
        raise ValueError(
            f"{directory}/config.json: no {BLOCK!r} block, so it does not name a mixer. Fix: graft() one onto it"
        )
    config = ModelConfig.from_dict(fields[BLOCK])
    return _fill(config, {_from_hf(n): t for n, t in _read_tensors(directory).items()}, directory, seed=0).to(device)


def graft(directory: str | Path, mixer: MixerConfig, *, seed: int, device: torch.device | str = "cpu") -> Decoder:
    """A base checkpoint's trunk under another mixer: every arm of a study starts from the same tensors.

    directory: a folder of ``save``, or any Llama-family one of Hugging Face's. Parameters the base does not have are
    initialised from ``seed``; those the new mixer does not have (gates) are left behind.
    """
    directory = Path(directory)
    fields = read_config(directory)
    if BLOCK in fields:
        base = ModelConfig.from_dict(fields[BLOCK])
        tensors, trunk, vocab_size = _read_tensors(directory), base.trunk, base.vocab_size
        tensors = {_from_hf(name): tensor for name, tensor in tensors.items()}
    else:
        tensors, trunk, vocab_size = import_hf(directory)
    trunk_only = {name: tensor for name, tensor in tensors.items() if not _is_own(name)}
    config = ModelConfig(trunk=trunk, mixer=mixer, vocab_size=vocab_size)
    return _fill(config, trunk_only, directory, seed=seed).to(device)


def import_hf(source: str | Path) -> tuple[dict[str, Tensor], TrunkConfig, int]:
    """A Llama-family folder: (state dict in the decoder's names, trunk, vocabulary size), float32.

    Raises ValueError naming field, value and what is allowed, for anything this decoder would compute differently.
    """
    source = Path(source)
    fields = read_config(source)
    trunk, vocab_size = shape(fields, source)
    tensors = {_from_hf(name): tensor.float() for name, tensor in _read_tensors(source).items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    if trunk.tie_embeddings:
        tensors.pop(HEAD, None)
    return tensors, trunk, vocab_size


def _llama_fields(config: ModelConfig) -> dict[str, Any]:
    trunk = config.trunk
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
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
        # transformers' own defaults would name tokens 1 and 2, whatever the tokenizer says they are
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _fill(config: ModelConfig, tensors: dict[str, Tensor], source: Path, *, seed: int) -> Decoder:
    """A decoder with ``tensors`` in place; own parameters that are not among them keep their initial values."""
    decoder = Decoder(config, seed=seed)
    for name, own in decoder.state_dict().items():
        if name in tensors and tensors[name].shape != own.shape:
            found, wanted = (" x ".join(map(str, t.shape)) for t in (tensors[name], own))
            raise ValueError(f"{source}: {name} is {found}, its config.json says {wanted}")
    result = decoder.load_state_dict(tensors, strict=False)
    missing = [name for name in result.missing_keys if not _is_own(name)]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"{source}/model.safetensors does not fit its config.json: "
            f"missing {missing[:3] or 'nothing'}, not known here {result.unexpected_keys[:3] or 'nothing'}"
        )
    return decoder


def _is_own(name: str) -> bool:
    """A parameter of the mixer itself, not of the Llama trunk."""
    return ".self_attn." in name and not name.endswith("_proj.weight")


def _to_hf(name: str) -> str:
    return name if name == HEAD else f"model.{name}"


def _from_hf(name: str) -> str:
    return name.removeprefix("model.")


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the shards that model.safetensors.index.json lists."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    tensors: dict[str, Tensor] = {}
    for name in names:
        if not (directory / name).is_file():
            raise ValueError(f"{directory / name}: no such file (allowed: safetensors, in one file or with an index)")
        try:
            tensors |= load_file(directory / name)
        except SafetensorError as error:
            raise ValueError(f"{directory / name}: not a safetensors file, or a part of one: {error}") from error
    return tensors
