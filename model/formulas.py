"""What each kind of mixer adds to the trunk, by formula: one small function a kind, named in ``arms.KINDS``.

Conventions, shared with ``cost.py``, which adds the trunk: matrix products only, a multiply-add is 2 FLOPs; attention
counts the pairs a query may see (causal: half the square), not what a masked kernel happens to execute; a memory is
counted by its paper's equations, however it is computed. Importable without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from model.arms import arm_of, named
from model.config import ModelConfig, StateDtype, feature_dim

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
    of: Parts = named(arm_of(config.mixer.kind).formula)(config, length)
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


def local(config: ModelConfig, length: int) -> Parts:
    n, layers = config.mixer.segment_length, config.trunk.layers
    return Parts(pairs=layers * segment_pairs(n, length), live_kv=min(n, length) * kv_per_token(config))


def infini(config: ModelConfig, length: int) -> Parts:
    """Local attention; reads by every query after the first segment, and writes of every complete segment (the delta
    rule reads its keys first, from the second segment on). A learned initial memory is read by the first as well."""
    trunk, mixer, n = config.trunk, config.mixer, config.mixer.segment_length
    d, heads, kv = trunk.d_head, trunk.heads, trunk.n_kv_heads
    features = feature_dim(mixer.feature_map, d)
    start = kv * memory_elements(features, d) if mixer.initial_memory == "learned" else 0
    gates = {"head": heads, "channel": heads * d, "token": heads * (1 + trunk.dim)}[mixer.gate]
    written, unread = length // n * n, 0 if start else n
    reads = heads * max(length - unread, 0)
    if mixer.rule == "delta":
        reads += kv * max(written - unread, 0)
    flops = reads * features * (d + 1) + kv * written * features * d
    if mixer.gate == "token":
        flops += length * heads * trunk.dim
    within = local(config, length)
    return Parts(
        parameters=trunk.layers * (gates + start),
        pairs=within.pairs,
        flops=2 * trunk.layers * flops,
        state_memory=trunk.layers * kv * memory_elements(features, d) if written else 0,
        memory_bytes=MEMORY_BYTES[mixer.state_dtype],
        live_kv=within.live_kv,
    )


def window(config: ModelConfig, length: int) -> Parts:
    """Its keys and values are its live segment."""
    return _banded(config, length, config.mixer.segment_length)


def _banded(config: ModelConfig, length: int, n: int) -> Parts:
    pairs = triangle(min(length, n)) + max(length - n, 0) * n
    return Parts(pairs=config.trunk.layers * pairs, live_kv=min(n, length) * kv_per_token(config))


def xl(config: ModelConfig, length: int) -> Parts:
    n, layers, per_token = config.mixer.segment_length, config.trunk.layers, kv_per_token(config)
    pairs = segment_pairs(n, length) + max(length - n, 0) * n
    held = min(n, length) * per_token
    return Parts(pairs=layers * pairs, state_kv=held, live_kv=held)


def compressive(config: ModelConfig, length: int) -> Parts:
    """Transformer-XL with slots behind the cache. A slot takes the convolution, its keys and its values; none of them
    passes gradients to its inputs. Training adds the reconstruction: slots' keys and values again, attention to the
    segment before without a backward pass, and to its slots without gradients for queries."""
    trunk, mixer, n, c = config.trunk, config.mixer, config.mixer.segment_length, config.mixer.compression
    shown = mixer.compressed_tokens or n
    segments, rest = divmod(length, n)
    counts = [min(max(segment - 1, 0) * n // c, shown) for segment in range(segments + 1)]
    slots = length // c
    convolution, projection = 2 * c * trunk.dim**2, 2 * trunk.dim * 2 * trunk.n_kv_heads * trunk.d_head
    pairs = 4 * trunk.heads * trunk.d_head
    followed = max(segments - 1, 0) if mixer.reconstruction_weight else 0
    reconstruction = followed * (2 * projection * n // c + pairs * n * n + pairs * n * n // c * 5 // 2)
    training = reconstruction - slots * projection - slots * convolution * (1 if followed else 2)
    within = xl(config, length)
    held = length // c - max(max(segments - 1, 0) * n // c - shown, 0)
    return replace(
        within,
        parameters=trunk.layers * c * trunk.dim**2,
        pairs=within.pairs + trunk.layers * (sum(counts[:segments]) * n + counts[segments] * rest),
        flops=trunk.layers * slots * (convolution + projection),
        training_flops=trunk.layers * training,
        state_kv=within.state_kv + held * kv_per_token(config) + trunk.layers * (length % c) * trunk.dim,
    )


def memorizing(config: ModelConfig, length: int) -> Parts:
    """Transformer-XL; in one layer the scores of all visible stored tokens, which have no backward pass, and attention
    to the chosen ones."""
    trunk, mixer, n = config.trunk, config.mixer, config.mixer.segment_length
    kept = length if mixer.cache_tokens is None else mixer.cache_tokens
    scored = chosen = 0
    for segment in range(2, -(-length // n)):
        queries, visible = min(n, length - segment * n), min((segment - 1) * n, kept)
        scored += queries * visible
        chosen += queries * min(visible, mixer.top_k)
    score = 2 * trunk.heads * trunk.d_head
    within = xl(config, length)
    return replace(
        within,
        parameters=2 * trunk.heads,
        flops=score * (scored + chosen),
        training_flops=-2 * score * scored,
        state_kv=within.state_kv + min(max(length // n - 1, 0) * n, kept) * 2 * trunk.n_kv_heads * trunk.d_head,
    )


def full(config: ModelConfig, length: int) -> Parts:
    """All of it is state; on a trunk with a sliding window, the window is live."""
    if config.trunk.sliding_window is not None:
        return _banded(config, length, config.trunk.sliding_window)
    return Parts(pairs=config.trunk.layers * triangle(length), state_kv=length * kv_per_token(config))


def linear(config: ModelConfig, length: int) -> Parts:
    """Every token is written, and read by every query head."""
    trunk = config.trunk
    d, kv = trunk.d_head, trunk.n_kv_heads
    features = feature_dim(config.mixer.feature_map, d)
    per_token = trunk.heads * features * (d + 1) + kv * features * d
    return Parts(
        flops=2 * trunk.layers * length * per_token,
        state_memory=trunk.layers * kv * memory_elements(features, d),
    )


def deltanet(config: ModelConfig, length: int) -> Parts:
    """Of every token its key is read, the difference written, and the sum read by every query head; no normaliser."""
    trunk = config.trunk
    d, kv = trunk.d_head, trunk.n_kv_heads
    features = feature_dim(config.mixer.feature_map, d)
    strengths = trunk.dim * kv
    per_token = (trunk.heads + 2 * kv) * features * d + strengths
    return Parts(
        parameters=trunk.layers * strengths,
        flops=2 * trunk.layers * length * per_token,
        state_memory=trunk.layers * kv * features * d,
    )


def rmt(config: ModelConfig, length: int) -> Parts:
    """m memory tokens before each segment, and behind each that another one follows."""
    trunk, m, n = config.trunk, config.mixer.memory_tokens, config.mixer.segment_length
    following, last = divmod(length - 1, n)
    framed = following * triangle(m + n + m) + triangle(m + last + 1)
    return Parts(
        parameters=m * trunk.dim,
        pairs=trunk.layers * framed,
        vectors=length + m * (2 * following + 1),
        state_kv=m * trunk.dim,
        live_kv=(m + min(n, length)) * kv_per_token(config),
    )


def landmark(config: ModelConfig, length: int) -> Parts:
    """Scores of landmarks and attention to the tokens of own, near and retrieved blocks; in training of all blocks."""
    trunk, block, top = config.trunk, config.mixer.block_tokens, config.mixer.top_blocks
    size, near = block + 1, max(1, config.mixer.segment_length // block)
    vectors = length + length // block
    pairs = trained = landmarks = 0
    for b in range(-(-vectors // size)):
        queries = min(size, vectors - b * size)
        own = triangle(min(queries, block)) + (block if queries == size else 0)
        pairs += own + queries * block * (min(b, near) + min(max(b - near, 0), top))
        trained += own + queries * block * b
        landmarks += queries * b
    store = max(0, vectors // size - near) * size
    return Parts(
        parameters=trunk.dim,
        pairs=trunk.layers * pairs,
        training_pairs=trunk.layers * trained,
        flops=2 * trunk.layers * trunk.heads * trunk.d_head * landmarks,
        vectors=vectors,
        state_kv=store * kv_per_token(config),
        live_kv=min(vectors, near * size + block - 1) * kv_per_token(config),
    )


def memory_elements(features: int, values: int) -> int:
    """One head's M and z."""
    return features * (values + 1)
