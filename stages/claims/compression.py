"""C9 compression: the published ratio from the paper's own configuration, the honest ones beside it, and real states.

Real states are those of ``model.Decoder`` itself, fed two segments: all its layers, with the true heads, head size and
segment, but narrow, since the width enters only what recurrent memory carries beside the layers' states.
"""

from __future__ import annotations

from dataclasses import replace

from model.config import MixerConfig, ModelConfig, TrunkConfig
from stages.claims.evidence import Evidence
from stages.claims.verdict import Decision, Finding, Number, Source

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
    layers = sum(layer.elements() for layer in state.layers)
    return layers + (0 if state.carried is None else state.carried.shape[1] * trunk.dim)


def compression(evidence: Evidence) -> Finding:
    """C9: ratio within tolerance of the published one, and every arm's real state equal to its formula."""
    from model.cost import cost, paper_table

    rule = evidence.rules.compression
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
    by_name = {(row.method, "live" in row.counts): row for row in table}
    ratio = next(number for number in numbers if number.name == "compression.infini.state")
    own, other = by_name["infini", False], by_name["memorizing", False]
    in_bytes, live = other.bytes / own.bytes, by_name["infini", True].compression
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
    text = (
        f"{ratio.estimate:.1f}x against Memorizing Transformers in elements without the live segment (published: "
        f"{rule.ratio:g}x); {in_bytes:.1f}x in bytes (fp32 memory, bf16 cache); {live:.1f}x with the live segment's "
        f"keys and values counted on both sides"
    )
    short = f"{in_bytes:.0f}x in bytes; {live:.1f}x with the live segment's keys and values on both sides"
    near = abs(ratio.estimate / rule.ratio - 1) <= rule.tolerance
    if wrong:
        reason = f"{text}; real states differ: {'; '.join(wrong)}"
        return Finding("refuted", reason, "", ratio, tuple(numbers), f"{short}; real states differ from the formula")
    decision: Decision = "supported" if near else "refuted"
    return Finding(decision, f"{text}; real states equal the formula", "", ratio, tuple(numbers), short)
