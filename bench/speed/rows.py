"""What is measured: the twelve arms, the segment loop, and what users would take instead (``transformers``' Llama, the
package ``infini-transformer-pytorch``), all as tokens -> loss."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.arms import KINDS
from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.cost import cost
from model.decoder import Decoder

LOOP, LLAMA = " (segment loop)", "transformers Llama (SDPA)"
RULES = ("linear", "delta")
PEER = "infini-transformer-pytorch "
"""Rows of lucidrains' package, by rule: the same widths and depth, its own attention, memory and segment loop."""
FULL = ("full", LLAMA)
"""Rows whose cost per token grows with T by design."""


@dataclass(frozen=True)
class Row:
    """loss: mean nll of tokens [B, T]. flops: of a token in training, at a sequence length; None where not counted."""

    module: nn.Module
    loss: Callable[[Tensor], Tensor]
    flops: Callable[[int], float] | None


def arms() -> dict[str, dict[str, str]]:
    """Every kind of mixer, infini once per update rule: name -> the fields of MixerConfig."""
    kinds = {kind: {"kind": kind} for kind in KINDS if kind != "infini"}
    return {"local": kinds.pop("local")} | {f"infini-{r}": {"kind": "infini", "rule": r} for r in RULES} | kinds


def names() -> list[str]:
    """All rows; each infini arm is followed by its segment loop."""
    found = [name for arm in arms() for name in ((arm, arm + LOOP) if arm.startswith("infini") else (arm,))]
    return [*found, *(PEER + rule for rule in RULES), LLAMA]


def build(names: list[str], trunk: TrunkConfig, segment: int, vocab: int, device: str) -> dict[str, Row]:
    """The rows of these names that can be made here: Llama's and the peer's need their packages."""
    rows: dict[str, Row] = {}
    for name in names:
        if name == LLAMA or name.startswith(PEER):
            other = _llama(trunk, vocab, device) if name == LLAMA else _peer(name, trunk, segment, vocab, device)
            if other is not None:
                rows[name] = other
            continue
        arm = name.removesuffix(LOOP)
        if name != arm and arm in rows:
            decoder = rows[arm].module
            assert isinstance(decoder, Decoder)
        else:
            decoder = Decoder(_config(arm, trunk, segment, vocab), seed=0).to(device)
        rows[name] = Row(decoder, segment_loop(decoder) if name != arm else decoder.loss, _flops(decoder.config))
    return rows


def segment_loop(decoder: Decoder) -> Callable[[Tensor], Tensor]:
    """The same loss as Infini-attention is usually written: the whole model runs on one segment, hands its state to
    the next, and gradients flow back through all of them. The kernels are the same, and as in one pass the last
    segment's write is saved."""
    n = decoder.config.mixer.segment_length

    def loss(tokens: Tensor) -> Tensor:
        state, pieces, length = None, [], tokens.shape[1]
        for start in range(0, length, n):
            targets = tokens[:, start + 1 : start + n + 1]
            more = start + n < length
            hidden, state = decoder._run(tokens[:, start : start + n], state, None, keep_state=more)
            pieces.append(decoder.token_nll(hidden[:, : targets.shape[1]], targets))
        return torch.cat(pieces, dim=1).mean()

    return loss


def _config(arm: str, trunk: TrunkConfig, segment: int, vocab: int) -> ModelConfig:
    fields: Mapping[str, Any] = arms()[arm]
    return ModelConfig(trunk=trunk, mixer=MixerConfig(**fields, segment_length=segment), vocab_size=vocab)


def _flops(config: ModelConfig) -> Callable[[int], float]:
    return lambda length: cost(config, length).flops_per_token_training


def _peer(name: str, trunk: TrunkConfig, segment: int, vocab: int, device: str) -> Row | None:
    """Gradients through all segments, as in ours: by default it cuts them at every second one. It has no grouped
    queries: None where the trunk has them."""
    try:
        package = importlib.import_module("infini_transformer_pytorch")
    except ImportError:
        return None
    if trunk.n_kv_heads != trunk.heads:
        return None
    torch.manual_seed(0)
    model = package.InfiniTransformer(
        num_tokens=vocab,
        dim=trunk.dim,
        depth=trunk.layers,
        dim_head=trunk.d_head,
        heads=trunk.heads,
        ff_mult=trunk.d_ffn * 3 / (2 * trunk.dim),  # it makes 2/3 of this times dim
        use_mem_delta_rule=name.endswith("delta"),
    )
    wrapper: nn.Module = package.InfiniTransformerWrapper(
        model.to(device), segment_length=segment, detach_mems_every_num_segments=2**62
    )

    def loss(tokens: Tensor) -> Tensor:
        value: Tensor = wrapper(tokens, backward=False)
        return value

    return Row(wrapper, loss, None)


def _llama(trunk: TrunkConfig, vocab: int, device: str) -> Row | None:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        return None
    config = transformers.LlamaConfig(
        vocab_size=vocab,
        hidden_size=trunk.dim,
        num_hidden_layers=trunk.layers,
        num_attention_heads=trunk.heads,
        num_key_value_heads=trunk.n_kv_heads,
        head_dim=trunk.d_head,
        intermediate_size=trunk.d_ffn,
        max_position_embeddings=2**20,
        tie_word_embeddings=trunk.tie_embeddings,
        attn_implementation="sdpa",
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    llama: nn.Module = transformers.LlamaForCausalLM(config).to(device)

    def loss(tokens: Tensor) -> Tensor:
        value: Tensor = llama(input_ids=tokens, labels=tokens).loss
        return value

    full = ModelConfig(trunk=trunk, mixer=MixerConfig(kind="full", segment_length=1), vocab_size=vocab)
    return Row(llama, loss, _flops(full))
