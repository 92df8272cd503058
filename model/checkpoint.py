"""Weights on disk in the layout of Hugging Face's Llama and its relatives: ``config.json`` and ``model.safetensors``,
in one file or in shards.

What full attention wrote, any program for its family reads. What other arms wrote opens with ``LlamaForCausalLM`` too
(which leaves out what Llama lacks), and as itself with ``load``, or with transformers' Auto classes after
``model.export``. Tensors are never rounded unless asked for: a checkpoint imported in its own dtype and saved again is
the same bit for bit.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import MixerConfig, ModelConfig, RopeScaling, TrunkConfig
from model.decoder import Decoder
from model.llama import BLOCK, INDEX, WEIGHTS, llama_fields, read_config, shape, weight_files

HEAD = "lm_head.weight"
_TRUNK = re.compile(
    r"(embed_tokens|norm|lm_head|layers\.\d+\.(self_attn\.([qkvo]_proj|[qk]_norm)|mlp\.(gate|up|down)_proj"
    r"|input_layernorm|post_attention_layernorm|post_feedforward_layernorm))\.(weight|bias)"
)
"""The decoder's parameters that a Llama has; all others belong to the arm."""


def save(
    decoder: Decoder,
    directory: str | Path,
    *,
    like: str | Path | dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Write config.json and the weights (tied heads once) into ``directory``, made if absent.

    like: folder of the checkpoint the decoder was made from, or its config.json; fields of it that do not change the
    computation (special tokens, longest position) are carried over. dtype: of the tensors (None: as they are); gates
    keep theirs. shard_bytes: start another file before one gets larger (None: a single file).
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors, gates = {}, gates_of(decoder)
    for name, tensor in decoder.state_dict().items():
        wanted = tensor.dtype if dtype is None or name in gates else dtype
        tensors[_to_hf(name)] = tensor.detach().to("cpu", wanted).contiguous()
    files = _shards(tensors, shard_bytes)
    (directory / INDEX).unlink(missing_ok=True)  # of an earlier save: it would be read instead
    for file, names in files.items():
        save_file({name: tensors[name] for name in names}, directory / file, metadata={"format": "pt"})
    if len(files) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        places = {name: file for file, names in files.items() for name in names}
        _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    fields = llama_fields(decoder.config, like if like is None or isinstance(like, dict) else read_config(Path(like)))
    stored = str(tensors["model.embed_tokens.weight"].dtype).removeprefix("torch.")
    _write_json(directory / "config.json", {"torch_dtype": stored} | fields)


def load(directory: str | Path, device: torch.device | str = "cpu") -> Decoder:
    """The decoder that ``save`` wrote, each parameter in the dtype it was saved in. Raises ValueError for a folder of
    another origin (use ``graft``), or for missing or foreign tensors."""
    directory = Path(directory)
    fields = read_config(directory)
    if BLOCK not in fields:
        raise ValueError(
            f"{directory}/config.json: no {BLOCK!r} block, so it does not name a mixer. Fix: graft() one onto it"
        )
    try:
        config = ModelConfig.from_dict(fields[BLOCK])
        TypeAdapter(ModelConfig).validate_python(config.to_dict())  # its fields' types
    except (KeyError, TypeError, AttributeError, OverflowError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{directory}/config.json: its {BLOCK!r} block is not one that was saved: {reason}") from error
    tensors = {_from_hf(name): tensor for name, tensor in _read_tensors(directory).items()}
    return _fill(config, tensors, directory, seed=0, fresh=False).to(device)


def graft(
    directory: str | Path,
    mixer: MixerConfig,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    rope_theta: float | None = None,
    rope_scaling: RopeScaling | None = None,
) -> Decoder:
    """A base checkpoint's trunk under another mixer: every arm of a study starts from the same tensors.

    directory: a folder of ``save``, or one of Hugging Face's of a family that ``llama.py`` knows. Parameters the base
    does not have are initialised from ``seed``; those the new mixer does not have are left behind. dtype: of all but
    the gates, which are float32; None for the checkpoint's own. rope_theta, rope_scaling: positions in place of the
    base's, of which no tensor tells; None: the base's.
    """
    tensors, trunk, vocab_size = import_hf(directory, dtype)
    trunk = trunk.with_positions(rope_theta, rope_scaling)
    config = ModelConfig(trunk=trunk, mixer=mixer, vocab_size=vocab_size)
    return _fill(config, tensors, Path(directory), seed=seed, fresh=True).to(device)


def import_hf(
    source: str | Path, dtype: torch.dtype | None = torch.float32
) -> tuple[dict[str, Tensor], TrunkConfig, int]:
    """A Llama-family folder: (the trunk's tensors in the decoder's names, trunk, vocabulary size).

    dtype: what the tensors are turned into; None keeps the checkpoint's own, which then must be the same throughout.
    Raises ValueError naming field, value and what is allowed, for anything this decoder would compute differently.
    """
    source = Path(source)
    fields = read_config(source)
    trunk, vocab_size = shape(fields, source)
    tensors = _named(_read_tensors(source), trunk, source)
    if BLOCK in fields:  # another arm's own parameters stay behind
        tensors = {name: tensor for name, tensor in tensors.items() if _is_trunk(name)}
    dtypes = {tensor.dtype: name for name, tensor in tensors.items()}
    if dtype is None and len(dtypes) > 1:
        found = ", ".join(f"{name} is {str(kind).removeprefix('torch.')}" for kind, name in dtypes.items())
        raise ValueError(f"{source}: dtype = None, but the tensors' differ: {found} (fix: name a dtype)")
    return {name: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()}, trunk, vocab_size


def filled(config: ModelConfig, tensors: dict[str, Tensor], source: Path) -> Decoder:
    """A decoder that holds ``tensors``, by Hugging Face's names; ``source``: where errors say they are from. Raises
    ValueError as ``load`` does."""
    return _fill(config, _named(tensors, config.trunk, source), source, seed=0, fresh=False)


def _named(tensors: dict[str, Tensor], trunk: TrunkConfig, source: Path) -> dict[str, Tensor]:
    """``tensors`` in the decoder's names, a tied head once."""
    tensors = {_from_hf(name): tensor for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    if trunk.tie_embeddings and (head := tensors.pop(HEAD, None)) is not None:
        embeddings = tensors.get("embed_tokens.weight")
        if embeddings is not None and not torch.equal(head, embeddings):
            raise ValueError(
                f"{source}/config.json: tie_word_embeddings = True, but {HEAD} differs from the embeddings "
                "(fix: set it to false there)"
            )
    return tensors


def gates_of(decoder: Decoder) -> set[str]:
    """Names of the gates' parameters. They stay in float32 whatever the others' dtype is: bfloat16 has steps of 2^-8,
    and would round away what a gate learns."""
    gates = {id(parameter) for parameter in decoder.gate_parameters()}
    return {name for name, parameter in decoder.named_parameters() if id(parameter) in gates}


def _fill(config: ModelConfig, tensors: dict[str, Tensor], source: Path, *, seed: int, fresh: bool) -> Decoder:
    """A decoder that holds ``tensors``. The arm's own parameters must be among them, unless ``fresh``: then those that
    are not keep their initial values."""
    trunk, most = config.trunk, max((tensor.numel() for tensor in tensors.values()), default=0)
    sizes = {"dim": trunk.dim, "ffn_dim": trunk.d_ffn, "vocab_size": config.vocab_size}
    sizes |= {"head_dim": trunk.d_head, "heads": trunk.heads}
    for name, size, limit in [*((n, s, most) for n, s in sizes.items()), ("layers", trunk.layers, len(tensors))]:
        if size > limit:  # before so large a model is made
            raise ValueError(f"{source}/config.json: {name} = {size}: the weights beside it are of another model")
    decoder = Decoder(config, seed=seed)
    gates, others = gates_of(decoder), next((tensor.dtype for tensor in tensors.values()), torch.float32)
    for name, own in decoder.state_dict(keep_vars=True).items():
        if name not in tensors:
            own.data = own.data if name in gates else own.data.to(others)
            continue
        if tensors[name].shape != own.shape:
            found, wanted = (" x ".join(map(str, t.shape)) for t in (tensors[name], own))
            raise ValueError(f"{source}: {name} is {found}, its config.json says {wanted}")
        own.data = own.data.to(tensors[name].dtype)
    result = decoder.load_state_dict(tensors, strict=False)
    missing = [name for name in result.missing_keys if _is_trunk(name) or not fresh]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"{source}/{WEIGHTS} does not fit its config.json: "
            f"missing {missing[:3] or 'nothing'}, not known here {result.unexpected_keys[:3] or 'nothing'}"
        )
    return decoder


def _is_trunk(name: str) -> bool:
    """A parameter that a Llama has too, not one of the arm's own."""
    return _TRUNK.fullmatch(name) is not None


def _to_hf(name: str) -> str:
    return name if name == HEAD else f"model.{name}"


def _from_hf(name: str) -> str:
    return name.removeprefix("model.")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def _shards(tensors: dict[str, Tensor], limit: int | None) -> dict[str, list[str]]:
    """Names of the tensors that go into each file, in order; a tensor above the limit gets a file of its own."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if limit is not None and groups[-1] and size + tensor.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, start=1)}


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the shards that model.safetensors.index.json lists. Raises ValueError for
    what cannot be read, and for numbers that no training leaves behind."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(directory):
        try:
            read = load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file}: not a safetensors file, or a part of one: {error}") from error
        for name, tensor in read.items():
            if not tensor.is_floating_point():
                kind = str(tensor.dtype).removeprefix("torch.")
                raise ValueError(f"{file}: {name} is {kind} (allowed: floating-point numbers)")
            if tensor.itemsize > 1 and not tensor.isfinite().all():  # those of one byte have no such test
                raise ValueError(f"{file}: {name} holds NaN or infinite numbers")
        tensors |= read
    return tensors
