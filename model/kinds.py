"""The arms of this repository: of each kind the formula of its cost (conventions in ``formulas.py``) and its record.

Importable without torch. ``import model`` makes them known.
"""

from __future__ import annotations

from dataclasses import replace

from model.arms import Arm, register
from model.config import ModelConfig, feature_dim
from model.formulas import MEMORY_BYTES, Parts, banded, kv_per_token, memory_elements, segment_pairs, triangle


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


register(
    Arm(
        kind="infini",
        bounded=lambda m: True,
        sequence_parallel=True,
        mixer=".mixers.infini:InfiniMixer",
        formula=infini,
        sentence=lambda m: f"{m.rule} rule, {m.feature_map}, segments of {m.segment_length} tokens",
        options=(
            "rule",
            "feature_map",
            "gate",
            "gate_init",
            "empty_memory",
            "initial_memory",
            "state_dtype",
            "eps",
            "bptt_segments",
        ),
        as_built=("beta", "gate_weight", "memory_start", "normaliser_start"),
        undecayed=("gate_weight", "memory_start", "normaliser_start"),
        variants={"infini-linear": {"rule": "linear"}, "infini-delta": {"rule": "delta"}},
    )
)


def local(config: ModelConfig, length: int) -> Parts:
    n, layers = config.mixer.segment_length, config.trunk.layers
    return Parts(pairs=layers * segment_pairs(n, length), live_kv=min(n, length) * kv_per_token(config))


register(
    Arm(
        kind="local",
        bounded=lambda m: True,
        sequence_parallel=True,
        mixer=".mixers.local:LocalMixer",
        formula=local,
        sentence=lambda m: f"segments of {m.segment_length} tokens, no memory",
    )
)


def window(config: ModelConfig, length: int) -> Parts:
    """Its keys and values are its live segment."""
    return banded(config, length, config.mixer.segment_length)


register(
    Arm(
        kind="window",
        bounded=lambda m: True,
        placed=True,
        sequence_parallel=True,
        mixer=".mixers.window:WindowMixer",
        formula=window,
        sentence=lambda m: f"the last {m.segment_length} tokens",
        whole_segments=False,
    )
)


def xl(config: ModelConfig, length: int) -> Parts:
    n, layers, per_token = config.mixer.segment_length, config.trunk.layers, kv_per_token(config)
    pairs = segment_pairs(n, length) + max(length - n, 0) * n
    held = min(n, length) * per_token
    return Parts(pairs=layers * pairs, state_kv=held, live_kv=held)


register(
    Arm(
        kind="xl",
        bounded=lambda m: True,
        placed=True,
        mixer=".mixers.xl:XLMixer",
        formula=xl,
        sentence=lambda m: f"segments of {m.segment_length} tokens and the one before",
        reach=lambda m: 2 * m.segment_length,
    )
)


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


register(
    Arm(
        kind="compressive",
        bounded=lambda m: True,
        placed=True,
        mixer=".mixers.compressive:CompressiveMixer",
        formula=compressive,
        sentence=lambda m: (
            f"segments of {m.segment_length} tokens, the one before, {m.compressed_tokens or m.segment_length} states "
            f"compressed {m.compression}:1"
        ),
        options=("compression", "compressed_tokens", "reconstruction_weight"),
        reach=lambda m: 2 * m.segment_length + m.compression * (m.compressed_tokens or m.segment_length),
    )
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


register(
    Arm(
        kind="memorizing",
        bounded=lambda m: m.cache_tokens is not None,
        placed=True,
        mixer=".mixers.memorizing:MemorizingMixer",
        formula=memorizing,
        sentence=lambda m: (
            f"segments of {m.segment_length} tokens and the one before; one layer retrieves {m.top_k} earlier tokens"
        ),
        options=("gate_init", "memory_layer", "cache_tokens", "top_k"),
        reach=lambda m: 2 * m.segment_length,
        as_built=("beta",),
    )
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


register(
    Arm(
        kind="rmt",
        bounded=lambda m: True,
        mixer=".mixers.rmt:RMTMixer",
        stream=".mixers.rmt:RMTStream",
        formula=rmt,
        sentence=lambda m: f"segments of {m.segment_length} tokens that hand on {m.memory_tokens} memory tokens",
        options=("bptt_segments", "memory_tokens"),
        reach=lambda m: m.segment_length + 2 * m.memory_tokens,
        undecayed=("stream.memory",),
    )
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


register(
    Arm(
        kind="landmark",
        mixer=".mixers.landmark:LandmarkMixer",
        stream=".mixers.landmark:LandmarkStream",
        formula=landmark,
        sentence=lambda m: f"about {m.segment_length} tokens, and {m.top_blocks} retrieved blocks of {m.block_tokens}",
        options=("block_tokens", "top_blocks"),
        reach=lambda m: None,
        whole_segments=False,
        undecayed=("stream.landmark",),
    )
)


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


register(
    Arm(
        kind="linear",
        bounded=lambda m: True,
        sequence_parallel=True,
        mixer=".mixers.linear:LinearMixer",
        formula=linear,
        sentence=lambda m: f"linear attention, {m.feature_map}, no segments",
        options=("feature_map", "eps"),
        reach=lambda m: 0,
        whole_segments=False,
    )
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


register(
    Arm(
        kind="deltanet",
        bounded=lambda m: True,
        sequence_parallel=True,
        mixer=".mixers.deltanet:DeltaNetMixer",
        formula=deltanet,
        sentence=lambda m: f"fast weights, {m.feature_map}, no segments",
        options=("feature_map",),
        reach=lambda m: 0,
        whole_segments=False,
    )
)


def full(config: ModelConfig, length: int) -> Parts:
    """All of it is state; on a trunk with a sliding window, the window is live."""
    if config.trunk.sliding_window is not None:
        return banded(config, length, config.trunk.sliding_window)
    return Parts(pairs=config.trunk.layers * triangle(length), state_kv=length * kv_per_token(config))


register(
    Arm(
        kind="full",
        mixer=".mixers.full:FullMixer",
        formula=full,
        sentence=lambda m: "over everything",
        reach=lambda m: None,
        whole_segments=False,
    )
)
