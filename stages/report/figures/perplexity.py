"""Perplexity by position, paired differences, training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stages.claims.evidence import Evidence
from stages.claims.verdict import Number
from stages.report.figures.style import (
    BASELINE,
    INK,
    MUTED,
    Figure,
    arm_styles,
    canvas,
    finish,
    legend_below,
    lengths_axis,
)

Numbers = Mapping[str, Sequence[Number]]
SMOOTHED = 8  # windows of the loss curve's moving average in a run


def by_position(evidence: Evidence, numbers: Numbers, folder: Path) -> Figure | None:
    """Left: perplexity over token position with intervals. Right: relative to the local arm, paired over seeds."""
    found = {number.name: number for number in numbers.get("perplexity by position", ())}
    table = evidence.perplexity
    if not found or not len(table):
        return None
    buckets = sorted({(int(a), int(b)) for a, b in zip(table["bucket_start"], table["bucket_end"], strict=True)})
    buckets = _one_per_start(buckets)
    baseline = next(iter(evidence.arms_of_kind("local")), None)
    figure, axes = canvas(2 if baseline else 1, height=3.1)
    styles = arm_styles(evidence)
    for arm, style in styles.items():
        points = [
            (end, found[f"position.{arm}.{start}"]) for start, end in buckets if f"position.{arm}.{start}" in found
        ]
        if not points:
            continue
        x = [end for end, _ in points]
        look = {"color": style.colour, "marker": style.marker, "linestyle": style.dash}
        axes[0].plot(x, [n.estimate for _, n in points], label=arm, **look)
        axes[0].fill_between(
            x, [n.low or 0 for _, n in points], [n.high or 0 for _, n in points], color=style.colour, alpha=0.07, lw=0
        )
        if baseline and arm != baseline:
            gaps = _gaps(evidence, arm, baseline, buckets)
            if gaps:
                axes[1].plot([g[0] for g in gaps], [g[1] for g in gaps], **look)
                axes[1].fill_between(
                    [g[0] for g in gaps],
                    [g[2] for g in gaps],
                    [g[3] for g in gaps],
                    color=style.colour,
                    alpha=0.12,
                    lw=0,
                )
    edges = [end for _, end in buckets]
    axes[0].set(
        title="Perplexity by position", ylabel="perplexity per token", xlabel="position in the document (tokens)"
    )
    lengths_axis(axes[0], edges)
    for axis in axes:
        axis.axvline(evidence.segment_length(), color=MUTED, lw=0.8, ls=":")
    if baseline:
        axes[1].axhline(0, color=BASELINE, lw=1.2, ls=(0, (2, 1.5)))
        axes[1].set(title=f"Against {baseline}", ylabel="perplexity difference (%)", xlabel="position (tokens)")
        lengths_axis(axes[1], edges)
    legend_below(figure, axes[0])
    caption = (
        "Each point is one position bucket, drawn at its end; bands are hierarchical bootstrap intervals "
        "over seeds and "
        f"documents. Dotted: the end of the first segment ({evidence.segment_length()} tokens), where the "
        "memory is empty. "
        "Right: paired on the same documents; below zero is better than the arm without memory."
    )
    return finish(
        figure, folder, name="perplexity-by-position", title="Perplexity by token position", caption=caption,
        sources=[s for n in found.values() for s in n.sources],
    )  # fmt: skip


def _one_per_start(buckets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The longest bucket of every start: the last one of a short document ends early."""
    longest: dict[int, int] = {}
    for start, end in buckets:
        longest[start] = max(end, longest.get(start, 0))
    return sorted(longest.items())


def _gaps(
    evidence: Evidence, arm: str, baseline: str, buckets: Sequence[tuple[int, int]]
) -> list[tuple[int, float, float, float]]:
    from stages.claims.evidence import paired
    from stages.statistics.intervals import hierarchical

    table, rules, gaps = evidence.perplexity, evidence.rules, []
    for start, end in buckets:
        rows = table[table["bucket_start"] == start]
        pair = paired(rows[rows["arm"] == arm], rows[rows["arm"] == baseline], "doc_id", "nll_sum", "tokens")
        if pair is None:
            continue
        gap = hierarchical(pair.differences, pair.weights, level=1 - rules.alpha)
        middle, low, high = (float(100 * np.expm1(v)) for v in (gap.estimate, gap.low, gap.high))
        gaps.append((end, middle, low, high))
    return gaps


def differences(evidence: Evidence, numbers: Numbers, folder: Path) -> Figure | None:
    """Forest plot: every pair of arms, all positions (filled) and beyond the first segment (open)."""
    every = {n.name: n for section in numbers.values() for n in section}
    pairs = [n for n in every.values() if n.name.startswith("perplexity.") and n.name.count(".") == 2]
    if not pairs:
        return None
    styles = arm_styles(evidence)
    figure, (axis,) = canvas(height=0.9 + 0.34 * len(pairs))
    for place, number in enumerate(pairs):
        _, arm, other = number.name.split(".")
        colour = styles[arm].colour
        rows = [(number, -0.13, colour)]
        beyond = every.get(f"perplexity_beyond.{arm}.{other}")
        if beyond is not None:
            rows.append((beyond, 0.17, "none"))
        for row, shift, fill in rows:
            y = len(pairs) - place - shift
            axis.plot(
                [100 * (row.low or 0), 100 * (row.high or 0)], [y, y], color=colour, lw=1.6, solid_capstyle="butt"
            )
            axis.plot(100 * row.estimate, y, marker="o", ms=5.5, mec=colour, mfc=fill, color=colour)
    axis.axvline(0, color=INK, lw=0.9)
    axis.set_yticks(range(len(pairs), 0, -1), [n.label.replace(" against ", " − ") for n in pairs])
    axis.set(xlabel="perplexity difference (%): below zero, the first arm is better", ylim=(0.4, len(pairs) + 0.6))
    axis.grid(axis="y", visible=False)
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    margin = 100 * evidence.rules.perplexity_from_memory.margin
    axis.axvspan(-margin, margin, color=BASELINE, alpha=0.13, lw=0)
    caption = (
        "Paired over the same documents and seeds; filled: all positions, open: beyond the first segment. "
        "Bars: hierarchical "
        f"bootstrap with t degrees of freedom of the seeds. Grey: the equivalence margin of ±{margin:g}%."
    )
    return finish(
        figure, folder, name="perplexity-differences", title="Paired perplexity differences between arms",
        caption=caption, sources=[s for n in pairs for s in n.sources],
    )  # fmt: skip


def training(evidence: Evidence, numbers: Numbers, folder: Path) -> Figure | None:
    """Loss, mean gate and memory norm over training, every seed."""
    log = evidence.training
    if not len(log):
        return None
    panels = [("loss", "Training loss", "nats per token")]
    for column, title, unit in (
        ("gate_mean", "Gates: mean and range", "g"),
        ("memory_norm", "Largest memory norm", "|M|"),
    ):
        if column in log and log[column].notna().any():
            panels.append((column, title, unit))
    figure, axes = canvas(len(panels), height=2.7)
    for arm, style in arm_styles(evidence).items():
        for place, ((_, run), (column, _, _)) in enumerate(
            (group, panel) for group in log[log["arm"] == arm].groupby("seed") for panel in panels
        ):
            axis = axes[place % len(panels)]
            rows = run.sort_values("step")
            rows = rows[rows[column].notna()]
            if not len(rows):
                continue
            window = max(1, len(rows) // SMOOTHED)
            smooth = rows[column].rolling(window, min_periods=1, center=True).mean()
            values = smooth if column == "loss" else rows[column]
            axis.plot(rows["step"], values, color=style.colour, ls=style.dash, lw=1.0, alpha=0.85,
                      label=arm if place == 0 else None)  # fmt: skip
            if column == "gate_mean" and {"gate_min", "gate_max"} <= set(rows):
                axis.fill_between(
                    rows["step"], rows["gate_min"], rows["gate_max"], color=style.colour, alpha=0.06, lw=0
                )
    for axis, (column, title, unit) in zip(axes, panels, strict=True):
        axis.set(title=title, ylabel=unit, xlabel="step")
        if column == "gate_mean":
            axis.set_ylim(0, 1)
    legend_below(figure, axes[0])
    caption = f"One line per arm and seed; the loss is a moving average over 1/{SMOOTHED} of the run."
    return finish(
        figure, folder, name="training", title="Training curves", caption=caption,
        sources=evidence.sources("pretrain", "train_log.parquet"),
    )  # fmt: skip
