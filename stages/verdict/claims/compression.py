"""C9 compression: the published ratio from the paper's own configuration, the honest ones beside it, and real states.

Real states are those of ``model.Decoder`` itself, fed two segments: all its layers, with the true heads, head size and
segment, but narrow, since the width enters only what recurrent memory carries beside the layers' states.
"""

from __future__ import annotations

from dataclasses import replace

from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.cost import cost, paper_table
from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.verdict import Finding, Number, Source, VerdictDecision

PAPER_TRUNK = TrunkConfig(dim=1024, layers=12, heads=8, head_dim=128, ffn_dim=4096)
FORMULA = Source("model.cost", "", "paper_table()", "the paper's 12 layers x 8 heads x 128, N = 2048")


def measured_state(trunk: TrunkConfig, mixer: MixerConfig) -> int:
    """Elements of the context state a real decoder carries after two segments of one sequence."""
    import torch

    from model.decoder import Decoder

    narrow = replace(
        trunk, dim=2 * trunk.heads, head_dim=trunk.d_head, kv_heads=trunk.n_kv_heads, ffn_dim=32, tie_embeddings=True
    )
    decoder = Decoder(ModelConfig(trunk=narrow, mixer=mixer, vocab_size=16)).eval()
    with torch.no_grad():
        _, state = decoder(torch.zeros(1, 2 * mixer.segment_length, dtype=torch.long))
    layers: int = sum(layer.elements() for layer in state.layers)
    return layers + (0 if state.carried is None else state.carried.shape[1] * trunk.dim)


def published(evidence: Evidence) -> Finding:
    """C9a: ratio within tolerance of the published one, and every arm's real state equal to its formula."""
    rule = evidence.rules.compression
    numbers, ratio, _ = _paper()
    own = {row.method: row for row in paper_table() if "live" not in row.counts}["infini"]
    paper_state = measured_state(PAPER_TRUNK, MixerConfig(kind="infini", segment_length=8))
    wrong = []
    if paper_state != own.elements:
        wrong.append(f"the paper's configuration: {paper_state:,} measured, {own.elements:,} by formula")
    numbers.append(
        Number(
            "compression.measured.paper",
            "state of the paper's configuration, real tensors",
            paper_state,
            unit="elements",
            method="real decoder state",
            sources=(Source("model.decoder", "", "DecoderState.elements()", "12 layers x 8 heads x 128"),),
        )
    )
    for arm, mixer in evidence.arms.items():
        elements = measured_state(evidence.trunk, mixer)
        config = ModelConfig(trunk=evidence.trunk, mixer=mixer, vocab_size=16)
        formula = cost(config, 2 * mixer.segment_length).state_elements
        if elements != formula:
            wrong.append(f"{arm}: {elements:,} measured, {formula:,} by formula")
        source = Source("model.decoder", "", "DecoderState.elements()", f"arm {arm}, after two segments")
        numbers.append(
            Number(
                f"compression.measured.{arm}",
                f"{arm}: context state after two segments",
                elements,
                unit="elements",
                method="real decoder state",
                sources=(source,),
            )
        )
    short = f"{ratio.estimate:.1f}x against Memorizing Transformers in elements (published: {rule.ratio:g}x)"
    if wrong:
        reason = f"{short}; real states differ: {'; '.join(wrong)}"
        return Finding("refuted", reason, "", ratio, tuple(numbers), f"{short}; real states differ from the formula")
    decision: VerdictDecision = "supported" if abs(ratio.estimate / rule.ratio - 1) <= rule.tolerance else "refuted"
    text = f"{short}, without the live segment; real states equal the formula"
    return Finding(decision, text, "", ratio, tuple(numbers), text)


def with_live_segment(evidence: Evidence) -> Finding:
    """C9b: the same ratio with the keys and values of the live segment, which both models hold, on both sides."""
    rule = evidence.rules.compression
    numbers, _, live = _paper()
    in_bytes = next(number for number in numbers if number.name == "compression.bytes")
    text = (
        f"{live.estimate:.1f}x with the live segment's keys and values on both sides; "
        f"{in_bytes.estimate:.1f}x in bytes without them (fp32 memory, bf16 cache)"
    )
    decision: VerdictDecision = "supported" if live.estimate >= rule.ratio * (1 - rule.tolerance) else "refuted"
    return Finding(decision, text, "", live, tuple(numbers), text)


def _paper() -> tuple[list[Number], Number, Number]:
    """Every row of the paper's table by formula; the published ratio; the one with the live segment."""
    table = paper_table()
    numbers = [
        Number(
            f"compression.{row.method.split(',')[0].replace(' ', '-')}.{'live' if 'live' in row.counts else 'state'}",
            f"{row.method}, {row.counts}: smaller than Memorizing Transformers",
            row.compression,
            unit="times, elements",
            method="formula",
            sources=(FORMULA,),
            note=f"{row.elements:,} elements, {row.bytes:,} bytes"
            + (f" (published: {row.paper_elements}, {row.paper_compression:g}x)" if row.paper_elements else ""),
        )
        for row in table
    ]
    states = {row.method: row for row in table if "live" not in row.counts}
    numbers.append(
        Number(
            "compression.bytes",
            "infini, state in bytes: smaller than Memorizing Transformers",
            states["memorizing"].bytes / states["infini"].bytes,
            unit="times, bytes",
            method="formula",
            sources=(FORMULA,),
        )
    )
    by_name = {number.name: number for number in numbers}
    return numbers, by_name["compression.infini.state"], by_name["compression.infini.live"]
