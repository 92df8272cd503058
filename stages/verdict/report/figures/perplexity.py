"""Perplexity by position, paired differences, training curves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.verdict import Number
from stages.verdict.report.figures.style import (
    BASELINE,
    INK,
    MUTED,
    Drawing,
    Numbers,
    arm_styles,
    power_axis,
    row,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHED = 8  # windows of the loss curve's moving average in a run


def by_position(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Perplexity over token position with intervals, and relative to the local arm, paired over seeds."""
    points = _points(evidence, numbers, "", "position", "position_gap")
    if not points:
        return None
    baseline = next(iter(evidence.arms_of_kind("local")), None)
    panels = [("position", "Perplexity by position", "perplexity per token", 1.0)]
    if any(kind == "position_gap" for kind, _ in points):
        panels.append(("position_gap", f"Against {baseline}", "difference (%)", 100.0))
    return Drawing(
        "perplexity-by-position",
        "Perplexity by token position",
        "Each point is one position bucket, drawn at its end; bands: intervals over seeds and documents. Dotted: "
        "the end "
        f"of the first segment ({evidence.segment_length()} tokens), where the memory is empty. Right: paired on the "
        "same documents; below zero is better than the arm without memory.",
        [_curves(evidence, points, *panel) for panel in panels],
        [row(n, panel=kind, arm=arm, until=end) for (kind, arm), found in points.items() for end, n in found],
        [s for found in points.values() for _, n in found for s in n.sources],
    )


def by_corpus(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """The same on the documents of each source by itself, where there are several."""
    baseline = next(iter(evidence.arms_of_kind("local")), None)
    panels, data, sources = [], [], []
    for corpus in evidence.corpora if len(evidence.corpora) > 1 else ():
        points = _points(evidence, numbers, corpus, "corpus_position", "corpus_position_gap", "corpus_memory_off")
        for kind, what, unit, scale in (
            ("corpus_position", "by position", "perplexity per token", 1.0),
            ("corpus_position_gap", f"against {baseline}", "difference (%)", 100.0),
            ("corpus_memory_off", "memory off", "perplexity added (%)", 100.0),
        ):
            if any(known == kind for known, _ in points):
                panels.append(_curves(evidence, points, kind, f"{corpus}: {what}", unit, scale))
        for (kind, arm), found in points.items():
            data += [row(n, panel=kind, corpus=corpus, arm=arm, until=end) for end, n in found]
            sources += [s for _, n in found for s in n.sources]
    if not panels:
        return None
    return Drawing(
        "perplexity-by-corpus",
        "Perplexity by token position on each source",
        "Documents of one source at a time; bands: intervals over seeds and its documents. Against the arm without "
        "memory below zero is better; memory off: what closing every gate adds.",
        panels,
        data,
        sources,
    )


Points = dict[tuple[str, str], list[tuple[int, Number]]]
"""(kind of number, arm) -> (end of the bucket, number)."""


def _points(evidence: Evidence, numbers: Numbers, corpus: str, *kinds: str) -> Points:
    points: Points = {}
    shown, ends = arm_styles(evidence), _ends(evidence)
    for number in numbers.values():
        kind, arm = number.text("kind"), number.text("arm")
        if kind in kinds and arm in shown and number.text("corpus") == corpus:
            start = number.integer("start")
            end = number.integer("end") if "end" in dict(number.about) else ends[start]  # the ablation's own buckets
            points.setdefault((kind, arm), []).append((end, number))
    return points


def _curves(
    evidence: Evidence, points: Points, kind: str, title: str, unit: str, scale: float
) -> Callable[[Axes], None]:
    shown = arm_styles(evidence)

    def panel(axis: Axes) -> None:
        for arm, look in shown.items():
            found = sorted(points.get((kind, arm), ()), key=lambda point: point[0])
            if not found:
                continue
            x = [end for end, _ in found]
            axis.plot(
                x,
                [scale * n.estimate for _, n in found],
                color=look.colour,
                marker=look.marker,
                ls=look.dash,
                label=arm,
            )
            low, high = (
                [scale * (n.estimate if (v := getattr(n, end)) is None else v) for _, n in found]
                for end in ("low", "high")
            )
            axis.fill_between(x, low, high, color=look.colour, alpha=0.1, lw=0)
        axis.axvline(evidence.segment_length(), color=MUTED, lw=0.8, ls=":")
        if kind.endswith(("gap", "off")):
            axis.axhline(0, color=BASELINE, lw=1.2, ls=(0, (2, 1.5)))
        power_axis(axis, {end for found in points.values() for end, _ in found})
        axis.set(title=title, ylabel=unit, xlabel="position (tokens)")

    return panel


def _ends(evidence: Evidence) -> dict[int, int]:
    """Start of every bucket -> its end (the longest: the last bucket of a short document ends early)."""
    table = evidence.text
    found: dict[int, int] = {}
    for start, end in zip(table["bucket_start"], table["bucket_end"], strict=True) if len(table) else ():
        found[int(start)] = max(int(end), found.get(int(start), 0))
    return found


def differences(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Forest plot: every pair of arms, all positions (filled) and beyond the first segment (open)."""
    pairs = [n for n in numbers.values() if n.text("kind") == "difference"]
    if not pairs:
        return None
    shown = arm_styles(evidence)
    rows: list[tuple[float, Number, str, bool]] = []
    for place, number in enumerate(pairs):
        arm, other = number.text("arm"), number.text("other")
        rows.append((len(pairs) - place + 0.13, number, arm, True))
        beyond = numbers.get(f"perplexity_beyond.{arm}.{other}")
        if beyond is not None:
            rows.append((len(pairs) - place - 0.17, beyond, arm, False))
    margin = 100 * evidence.rules.perplexity_from_memory.margin

    def panel(axis: Axes) -> None:
        for y, number, arm, filled in rows:
            look = shown[arm]
            ends = [100 * (number.estimate if end is None else end) for end in (number.low, number.high)]
            axis.plot(ends, [y, y], color=look.colour, lw=1.6, solid_capstyle="butt")
            axis.plot(
                100 * number.estimate,
                y,
                marker=look.marker,
                ms=5.5,
                mec=look.colour,
                mfc=look.colour if filled else "none",
                ls="none",
            )
        axis.axvline(0, color=INK, lw=0.9)
        labels = [f"{n.text('arm')} −\n{n.text('other')}" for n in pairs]
        axis.set_yticks(range(len(pairs), 0, -1), labels)
        axis.set(xlabel="perplexity difference (%)", ylim=(0.4, len(pairs) + 0.6))
        axis.grid(axis="y", visible=False)
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.axvspan(-margin, margin, color=BASELINE, alpha=0.13, lw=0)

    data = [row(n, arm=arm, where="all" if filled else "beyond the first segment") for _, n, arm, filled in rows]
    return Drawing(
        "perplexity-differences",
        "Paired perplexity differences between arms",
        "Paired over the same documents and seeds; below zero the first arm is better. Filled: all positions, open: "
        "beyond the first segment. Bars: intervals over seeds and documents. Grey: the equivalence margin of "
        f"±{margin:g}%.",
        [panel],
        data,
        [s for _, n, _, _ in rows for s in n.sources],
        columns=1,
        height=0.7 + 0.42 * len(pairs),
        legend=False,
    )


def training(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Loss, mean gate and memory norm over training, every seed a thin line of its own."""
    log = evidence.training
    if not len(log):
        return None
    panels = [("loss", "Training loss", "nats per token")]
    for column, title, unit in (
        ("answer_loss", "Loss on answers", "nats per token"),
        ("gate_mean", "Gates: mean and range", "g"),
        ("memory_norm", "Largest memory norm", "|M|"),
    ):
        if column in log and log[column].notna().any():
            panels.append((column, title, unit))
    shown = arm_styles(evidence)
    data: list[dict[str, Any]] = []
    lines: dict[str, list[tuple[str, Any, Any, Any]]] = {column: [] for column, _, _ in panels}
    for column, _, _ in panels:
        for (arm, seed), run in log.groupby(["arm", "seed"], sort=False):
            rows = run.sort_values("step")
            rows = rows[rows[column].notna()]
            if not len(rows) or arm not in shown:
                continue
            smoothed = column in ("loss", "answer_loss")
            window = max(1, len(rows) // SMOOTHED)
            values = rows[column].rolling(window, min_periods=1, center=True).mean() if smoothed else rows[column]
            lines[column].append((str(arm), rows["step"], values, rows))
            data += [
                {"panel": column, "arm": arm, "seed": seed, "step": step, "value": value}
                for step, value in zip(rows["step"], values, strict=True)
            ]

    def of(column: str, title: str, unit: str) -> Callable[[Axes], None]:
        def panel(axis: Axes) -> None:
            named: set[str] = set()
            for arm, steps, values, rows in lines[column]:
                look = shown[arm]
                axis.plot(
                    steps,
                    values,
                    color=look.colour,
                    ls=look.dash,
                    lw=0.9,
                    marker=look.marker,
                    ms=4,
                    mfc="none",
                    markevery=(len(named) % 3, max(1, len(steps) // 4)),
                    label=None if arm in named else arm,
                )
                named.add(arm)
                if column == "gate_mean" and {"gate_min", "gate_max"} <= set(rows):
                    axis.fill_between(steps, rows["gate_min"], rows["gate_max"], color=look.colour, alpha=0.06, lw=0)
            axis.set(title=title, ylabel=unit, xlabel="step")
            if column == "gate_mean":
                axis.set_ylim(0, 1)

        return panel

    return Drawing(
        "training",
        "Training curves",
        f"One thin line per arm and seed; losses are moving averages over 1/{SMOOTHED} of the run.",
        [of(*panel) for panel in panels],
        data,
        evidence.sources("pretrain", "train_log.parquet"),
        height=2.5,
    )
