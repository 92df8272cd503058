"""What each kind of mixer adds to the trunk, by formula: what the formulas of ``kinds.py`` are made of.

Conventions, shared with ``cost.py``, which adds the trunk: matrix products only, a multiply-add is 2 FLOPs; attention
counts the pairs a query may see (causal: half the square), not what a masked kernel happens to execute; a memory is
counted by its paper's equations, however it is computed. Importable without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model.arms import arm_of
from model.config import ModelConfig, StateDtype

MEMORY_BYTES: Mapping[StateDtype, int] = {"float32": 4, "float64": 8, "bfloat16": 2}


@dataclass(frozen=True)
class Parts:
    """Of one sequence (batch 1), summed over the layers.

    parameters: the mixer's own, beside the trunk's q, k, v and o projections. pairs: query-key pairs attention scores,
    per query head; training_pairs: those of a training step, where these are others. flops: forward, of matrix
    products other than the projections' and those pairs'. training_flops: what a training step takes beyond three
    times forward (negative where part of the forward pass has no backward pass). vectors: vectors that pass through
    the layers for one sequence, where these are more than its tokens (rmt, landmark). state_kv and state_memory:
    numbers held of the context at the sequence's end, those in the model's dtype and those of ``memory_bytes`` bytes
    each. live_kv: those of the unfinished segment or window, at their peak.
    """

    parameters: int = 0
    pairs: int = 0
    training_pairs: int | None = None
    flops: int = 0
    training_flops: int = 0
    vectors: int | None = None
    state_kv: int = 0
    state_memory: int = 0
    memory_bytes: int = 4  # float32 whatever the model's dtype
    live_kv: int = 0


def parts(config: ModelConfig, length: int) -> Parts:
    """What the mixer of ``config`` adds on ``length`` tokens."""
    of: Parts = arm_of(config.mixer.kind).formula(config, length)
    return of


def triangle(n: int) -> int:
    """Pairs of causal attention within n tokens."""
    return n * (n + 1) // 2


def segment_pairs(n: int, length: int) -> int:
    """Pairs of causal attention within segments of n tokens."""
    whole, rest = divmod(length, n)
    return whole * triangle(n) + triangle(rest)


def kv_per_token(config: ModelConfig) -> int:
    """Numbers in the keys and values of one token, over all layers."""
    return 2 * config.trunk.n_kv_heads * config.trunk.d_head * config.trunk.layers


def memory_elements(features: int, values: int) -> int:
    """One head's M and z."""
    return features * (values + 1)


def banded(config: ModelConfig, length: int, n: int) -> Parts:
    pairs = triangle(min(length, n)) + max(length - n, 0) * n
    return Parts(pairs=config.trunk.layers * pairs, live_kv=min(n, length) * kv_per_token(config))
