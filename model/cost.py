"""What an arm costs, by formula: parameters, FLOPs, and the state it carries, in elements and bytes.

The tests hold the formulas equal to torch's FLOP counter and to the sizes of real state tensors. Conventions:
a multiply-add is 2 FLOPs, matrix products only; attention counts the pairs a query may see (causal: half the square),
not what a masked kernel happens to execute; the memory is counted by the paper's equations, however it is computed;
training is three times forward.

The state of the context excludes the live segment's keys and values, which every segment-wise method holds besides;
they are given separately, at their peak. A sliding window's cache is its live segment; full attention's is all state.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.config import ModelConfig
from model.formulas import FORMULAS, memory_elements


@dataclass(frozen=True)
class Cost:
    """Of one sequence (batch 1). FLOPs are means over the sequence's tokens; states are those at its end."""

    parameters: int
    flops_per_token_forward: float
    flops_per_token_training: float
    state_elements: int
    state_bytes: int
    live_kv_elements: int
    live_kv_bytes: int


def cost(config: ModelConfig, sequence_length: int, *, kv_bytes: int = 4) -> Cost:
    """Cost of ``config`` on sequences of ``sequence_length`` tokens; keys and values take ``kv_bytes`` bytes each."""
    trunk, arm = config.trunk, FORMULAS[config.mixer.kind](config, sequence_length)
    d, kv = trunk.d_head, trunk.n_kv_heads
    weights = trunk.layers * (2 * trunk.dim * d * (trunk.heads + kv) + 3 * trunk.dim * trunk.d_ffn)
    head = config.vocab_size * trunk.dim
    norms = (2 * trunk.layers + 1) * trunk.dim
    vectors = sequence_length if arm.vectors is None else arm.vectors
    mixing = 4 * trunk.heads * d * arm.pairs + arm.flops
    forward = 2 * weights * vectors / sequence_length + 2 * head + mixing / sequence_length
    more = 0 if arm.training_pairs is None else arm.training_pairs - arm.pairs
    return Cost(
        parameters=weights + norms + head * (1 if trunk.tie_embeddings else 2) + arm.parameters,
        flops_per_token_forward=forward,
        flops_per_token_training=3 * (forward + 4 * trunk.heads * d * more / sequence_length)
        + arm.training_flops / sequence_length,
        state_elements=arm.state_kv + arm.state_memory,
        state_bytes=arm.state_kv * kv_bytes + arm.state_memory * arm.memory_bytes,
        live_kv_elements=arm.live_kv,
        live_kv_bytes=arm.live_kv * kv_bytes,
    )


def attended_pairs(config: ModelConfig, length: int) -> int:
    """Query-key pairs that attention scores in a sequence, per head and layer."""
    return FORMULAS[config.mixer.kind](config, length).pairs // config.trunk.layers


@dataclass(frozen=True)
class PaperRow:
    """One line of the paper's memory comparison, and of what becomes of it when counted another way.

    compression: how many times smaller than Memorizing Transformers under the same count. bytes: keys and values
    bfloat16, the compressive memory float32. paper_*: as printed, None where the paper has no such line.
    """

    method: str
    counts: str  # "state", or "state + live segment": with the current segment's keys and values, on both sides
    elements: int
    bytes: int
    compression: float
    paper_elements: str | None
    paper_compression: float | None


def paper_table() -> list[PaperRow]:
    """The paper's "114x" (its table 1: 12 layers, 8 heads of 128, N = 2048; Memorizing Transformers with 65K cached
    tokens in one layer; RMT with 100 memory tokens) from its own formulas, then with what it leaves out.

    114 is 183M / 1.6M after rounding; unrounded it is 115.7.
    """
    d, heads, layers, n, model = 128, 8, 12, 2048, 1024
    infini = heads * layers * memory_elements(d, d)
    segment = 2 * d * heads * n * layers
    rmt = model * 100 * layers * 2
    memorizing = segment + 2 * d * heads * 65_000
    full = 2 * d * heads * layers * 65_536

    def row(method: str, elements: int, *, live: int = 0, printed: str | None = None) -> PaperRow:
        fp32 = infini if method == "infini" else 0
        return PaperRow(
            method=method,
            counts="state + live segment" if live else "state",
            elements=elements + live,
            bytes=2 * (elements + live) + 2 * fp32,
            compression=(memorizing + live) / (elements + live),
            paper_elements=printed,
            paper_compression=None if printed is None else _printed_ratio(printed),
        )

    return [
        row("memorizing", memorizing, printed="183M"),
        row("transformer-xl", segment, printed="50M"),
        row("rmt", rmt, printed="2.5M"),
        row("infini", infini, printed="1.6M"),
        row("full attention, 65,536 tokens", full),
        row("memorizing", memorizing, live=segment),
        row("transformer-xl", segment, live=segment),
        row("infini", infini, live=segment),
    ]


def _printed_ratio(elements: str) -> float:
    """The paper's compression column: 183M over the printed size, to the digits it prints (3.7, 73, 114)."""
    ratio = 183 / float(elements.removesuffix("M"))
    return round(ratio, 1) if ratio < 10 else float(round(ratio))
