"""What an arm costs, by formula: parameters, FLOPs, and the state it carries, in elements and bytes.

``python -m model.cost`` prints it for the twelve arms at any size, and the paper's memory table. Importable without
torch; the formulas of each kind are in ``kinds.py``.

The tests hold the formulas equal to torch's FLOP counter and to the sizes of real state tensors. Conventions:
a multiply-add is 2 FLOPs, matrix products only; attention counts the pairs a query may see (causal: half the square),
not what a masked kernel happens to execute; the memory is counted by the paper's equations, however it is computed;
training is three times forward, but where training computes something else (landmark, memorizing, compressive).

The state of the context excludes the live segment's keys and values, which every segment-wise method holds besides;
they are given separately, at their peak. A sliding window's cache is its live segment; full attention's is all state;
linear attention and deltanet have no live segment.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from model.arms import variants
from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.formulas import parts


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
    trunk, arm = config.trunk, parts(config, sequence_length)
    d, kv = trunk.d_head, trunk.n_kv_heads
    weights = trunk.layers * (2 * trunk.dim * d * (trunk.heads + kv) + 3 * trunk.dim * trunk.d_ffn)
    head = config.vocab_size * trunk.dim
    norms = (2 * trunk.layers + 1) * trunk.dim
    if trunk.qk_norm != "none":
        norms += trunk.layers * d * (2 if trunk.qk_norm == "head" else trunk.heads + kv)
    biased = {"none": 0, "qkv": d * (trunk.heads + 2 * kv), "qkvo": d * (trunk.heads + 2 * kv) + trunk.dim}
    biases = trunk.layers * biased[trunk.attention_bias]
    vectors = sequence_length if arm.vectors is None else arm.vectors
    mixing = 4 * trunk.heads * d * arm.pairs + arm.flops
    forward = 2 * weights * vectors / sequence_length + 2 * head + mixing / sequence_length
    more = 0 if arm.training_pairs is None else arm.training_pairs - arm.pairs
    return Cost(
        parameters=weights + norms + biases + head * (1 if trunk.tie_embeddings else 2) + arm.parameters,
        flops_per_token_forward=forward,
        flops_per_token_training=3 * (forward + 4 * trunk.heads * d * more / sequence_length)
        + arm.training_flops / sequence_length,
        state_elements=arm.state_kv + arm.state_memory,
        state_bytes=arm.state_kv * kv_bytes + arm.state_memory * arm.memory_bytes,
        live_kv_elements=arm.live_kv,
        live_kv_bytes=arm.live_kv * kv_bytes,
    )


PAPER_TRUNK = TrunkConfig(dim=1024, layers=12, heads=8, head_dim=128, ffn_dim=4096)
PAPER_ARMS: Mapping[str, MixerConfig] = {
    "memorizing": MixerConfig(kind="memorizing", segment_length=2048, cache_tokens=65_000),
    "transformer-xl": MixerConfig(kind="xl", segment_length=2048),
    "rmt": MixerConfig(kind="rmt", segment_length=2048, memory_tokens=100),
    "infini": MixerConfig(kind="infini", segment_length=2048),
    "linear attention": MixerConfig(kind="linear", segment_length=2048),
    "sliding window": MixerConfig(kind="window", segment_length=2048),
    "full attention": MixerConfig(kind="full", segment_length=2048),
}
"""The language models of the paper's memory comparison, and three arms it leaves out; 32,000 entries of vocabulary."""


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
    tokens in one layer; RMT with 100 memory tokens) from the arms' own formulas, then with what it leaves out.

    114 is 183M / 1.6M after rounding; unrounded it is 115.7. The paper counts RMT's memory tokens as keys and values of
    every layer, 24 times what is handed from segment to segment ("rmt vectors").
    """
    costs = {name: paper_cost(mixer, 131_072) for name, mixer in PAPER_ARMS.items()}
    full = paper_cost(PAPER_ARMS["full attention"], 65_536)

    def row(method: str, arm: Cost, *, live: bool = False, times: int = 1, printed: str | None = None) -> PaperRow:
        elements, other = times * arm.state_elements, costs["memorizing"].state_elements
        size = times * arm.state_bytes
        if live:
            elements, other = elements + arm.live_kv_elements, other + costs["memorizing"].live_kv_elements
            size += arm.live_kv_bytes
        return PaperRow(
            method=method,
            counts="state + live segment" if live else "state",
            elements=elements,
            bytes=size,
            compression=other / elements,
            paper_elements=printed,
            paper_compression=None if printed is None else _printed_ratio(printed),
        )

    return [
        row("memorizing", costs["memorizing"], printed="183M"),
        row("transformer-xl", costs["transformer-xl"], printed="50M"),
        row("rmt", costs["rmt"], times=2 * PAPER_TRUNK.layers, printed="2.5M"),
        row("infini", costs["infini"], printed="1.6M"),
        row("rmt vectors", costs["rmt"]),
        row("linear attention", costs["linear attention"]),
        row("full attention, 65,536 tokens", full),
        *(row(name, arm, live=True) for name, arm in costs.items() if name != "full attention"),
    ]


def paper_cost(mixer: MixerConfig, length: int) -> Cost:
    """Cost of ``mixer`` in the paper's model on sequences of ``length`` tokens, keys and values in bfloat16."""
    config = ModelConfig(trunk=PAPER_TRUNK, mixer=mixer, vocab_size=32_000)
    return cost(config, length, kv_bytes=2)


def _printed_ratio(elements: str) -> float:
    """The paper's compression column: 183M over the printed size, to the digits it prints (3.7, 73, 114)."""
    ratio = 183 / float(elements.removesuffix("M"))
    return round(ratio, 1) if ratio < 10 else float(round(ratio))


def main() -> None:
    """Print what the twelve arms cost at a given size, then the paper's table."""
    args = _arguments()
    trunk = TrunkConfig(
        dim=args.dim,
        layers=args.layers,
        heads=args.heads,
        kv_heads=args.kv_heads,
        head_dim=args.head_dim,
        ffn_dim=args.ffn_dim,
    )
    print(
        f"{trunk.layers} layers, dim {trunk.dim}, {trunk.heads} heads of {trunk.d_head} ({trunk.n_kv_heads} of keys "
        f"and values), feed-forward {trunk.d_ffn}, vocabulary {args.vocab:,}; N = {args.segment:,}, "
        f"T = {args.length:,}; keys and values of {args.kv_bytes} bytes\n"
    )
    print(f"{'':15}{'':>14}{'FLOPs a token':>25}{'state at T':>34}{'live keys and values':>34}")
    print(f"{'arm':15}{'parameters':>14}{'forward':>12}{'training':>13}" + 2 * f"{'elements':>17}{'bytes':>17}")
    for name, fields in variants().items():
        mixer = MixerConfig(segment_length=args.segment, **fields)
        config = ModelConfig(trunk=trunk, mixer=mixer, vocab_size=args.vocab)
        arm = cost(config, args.length, kv_bytes=args.kv_bytes)
        print(
            f"{name:15}{arm.parameters:14,}{arm.flops_per_token_forward:12.4g}{arm.flops_per_token_training:13.4g}"
            f"{arm.state_elements:17,}{arm.state_bytes:17,}{arm.live_kv_elements:17,}{arm.live_kv_bytes:17,}"
        )
    print("\nthe paper's memory comparison (12 layers, 8 heads of 128, N = 2,048), and what it leaves out")
    print(f"{'method':31}{'counts':22}{'elements':>15}{'bytes':>15}{'smaller':>10}   published")
    for row in paper_table():
        printed = "" if row.paper_elements is None else f"   {row.paper_elements}, {row.paper_compression:g}x"
        print(
            f"{row.method:31}{row.counts:22}{row.elements:15,}{row.bytes:15,}{row.compression:9,.{_digits(row)}f}x{printed}"
        )


def _digits(row: PaperRow) -> int:
    return 0 if row.compression >= 1000 else 1 if row.compression >= 1 else 3


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m model.cost",
        description="Parameters, FLOPs and states of the twelve arms at a given size, and the paper's memory table.",
    )
    for name, default, text in (
        ("dim", 1024, "model size"),
        ("layers", 12, "layers"),
        ("heads", 8, "query heads"),
        ("kv-heads", None, "key/value heads (default: as many)"),
        ("head-dim", None, "size of a head (default: dim / heads)"),
        ("ffn-dim", None, "feed-forward size (default: 8/3 dim)"),
        ("vocab", 32_000, "vocabulary size"),
        ("segment", 2048, "tokens a segment, N"),
        ("length", 32_768, "tokens a sequence, T"),
        ("kv-bytes", 2, "bytes of a key's or value's number"),
    ):
        note = "" if default is None else f" (default {default:,})"
        parser.add_argument(f"--{name}", type=int, default=default, help=text + note)
    return parser.parse_args()


if __name__ == "__main__":
    main()
