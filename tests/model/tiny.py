"""Small models for the tests of this folder: three segments and a bit of eight tokens, grouped queries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.arms import has_effect
from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.decoder import Decoder
from model.formulas import parts as parts_of

N, VOCAB = 8, 31
ARMS: dict[str, dict[str, Any]] = {
    "infini-linear": {"kind": "infini", "rule": "linear"},
    "infini-delta": {"kind": "infini", "rule": "delta"},
    "local": {"kind": "local"},
    "window": {"kind": "window"},
    "xl": {"kind": "xl"},
    "compressive": {"kind": "compressive", "compression": 2, "compressed_tokens": 5},
    "memorizing": {"kind": "memorizing", "cache_tokens": 12, "top_k": 3},
    "full": {"kind": "full"},
    "rmt": {"kind": "rmt", "memory_tokens": 3},
    "landmark": {"kind": "landmark", "segment_length": 4, "block_tokens": 4, "top_blocks": 2},
    "linear": {"kind": "linear"},
    "deltanet": {"kind": "deltanet"},
}


def config(arm: str = "infini-linear", *, trunk: dict[str, Any] | None = None, **mixer: Any) -> ModelConfig:
    """``mixer``: options for the arms to which they mean something, so that one test covers all arms."""
    shape = {"dim": 16, "layers": 2, "heads": 4, "kv_heads": 2} | (trunk or {})
    kind = ARMS[arm]["kind"]
    fields = {"segment_length": N} | ARMS[arm]
    fields |= {name: value for name, value in mixer.items() if has_effect(name, kind)}
    return ModelConfig(trunk=TrunkConfig(**shape), mixer=MixerConfig(**fields), vocab_size=VOCAB)


def decoder(arm: str = "infini-linear", *, trunk: dict[str, Any] | None = None, **mixer: Any) -> Decoder:
    """float64, with gates spread over (0, 1) so that no test passes by symmetry."""
    model = Decoder(config(arm, trunk=trunk, **mixer), seed=1).double()
    with torch.no_grad():
        for layer, beta in enumerate(model.gate_parameters()):
            beta.copy_(torch.linspace(-1.5, 1.5, len(beta)).roll(layer))
    return model.eval()


def tokens(batch: int = 3, length: int = 29, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def attended_pairs(config: ModelConfig, length: int) -> int:
    """Query-key pairs that attention scores in a sequence, per head and layer."""
    return parts_of(config, length).pairs // config.trunk.layers
