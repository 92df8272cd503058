"""Passkey over length and depth, accuracy curves, bindings against 1/k, the positive control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.claims.evidence import BEYOND, Evidence
from stages.claims.retrieval import passkey
from stages.claims.verdict import Number
from stages.report.figures.style import INK, Figure, arm_styles, canvas, finish, legend_below, lengths_axis, tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers = Mapping[str, Sequence[Number]]


def heatmap(evidence: Evidence, numbers: Numbers, folder: Path) -> Figure | None:
    """Accuracy per (length, depth) cell and arm, the number of prompts in each cell."""
    table = evidence.retrieval
    table = table[table["task"] == "passkey"] if len(table) else table
    if not len(table):
        return None
    arms = [arm for arm in evidence.arms if (table["arm"] == arm).any()]
    columns = len(arms) if len(arms) <= 4 else 3
    rows = -(-len(arms) // columns)
    figure, axes = canvas(columns, rows, height=2.2)
    image = None
    for place, axis in enumerate(axes):
        if place >= len(arms):
            axis.set_visible(False)
            continue
        cells = table[table["arm"] == arms[place]].groupby(["depth", "length"])["correct"].agg(["mean", "count"])
        accuracy, count = cells["mean"].unstack(), cells["count"].unstack().fillna(0)
        image = axis.imshow(
            accuracy.to_numpy(float), vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="none"
        )
        small = accuracy.size > 40
        for i, j in np.ndindex(accuracy.shape):
            value = accuracy.iat[i, j]
            if np.isfinite(value) and not small:
                text = f"{100 * value:.0f}\nn={count.iat[i, j]:.0f}"
                axis.text(
                    j, i, text, ha="center", va="center", fontsize=6, color="#ffffff" if value < 0.6 else "#101010"
                )
        axis.set_xticks(range(accuracy.shape[1]), [tokens(length) for length in accuracy.columns])
        depths = [f"{100 * depth:.0f}%" if place % columns == 0 else "" for depth in accuracy.index]
        axis.set_yticks(range(accuracy.shape[0]), depths)
        axis.set_title(arms[place])
        axis.grid(visible=False)
        axis.set_xlabel("prompt length (tokens)" if place >= len(arms) - columns else "")
        axis.set_ylabel("needle depth" if place % columns == 0 else "")
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.01, aspect=30, ticks=[0, 0.5, 1], format="{x:.0%}")
        bar.outline.set_visible(False)
    least, most = table.groupby(["arm", "depth", "length"])["correct"].count().agg(["min", "max"])
    each = f"{least}" if least == most else f"{least} to {most}"
    caption = (
        "Share of prompts whose passkey is generated exactly, percent, with the number of prompts per cell "
        f"({each}, all "
        "seeds). Depth 0% is the start of the prompt; at 100% the needle stands just before the question."
    )
    return finish(
        figure, folder, name="retrieval-heatmap", title="Passkey accuracy over length and depth", caption=caption,
        sources=evidence.sources("evaluate", "retrieval.parquet", "task == 'passkey'"),
    )  # fmt: skip


def curve(evidence: Evidence, numbers: Numbers, folder: Path) -> Figure | None:
    """Accuracy (logistic curve with band) and nll of the answer over length, needle beyond the last segment."""
    from stages.statistics.curves import accuracy_curve

    every = {n.name: n for section in numbers.values() for n in section}
    found = {arm: passkey(evidence, arm)[0] for arm in evidence.arms}
    found = {arm: rows for arm, rows in found.items() if len(rows)}
    if not found:
        return None
    rules, styles = evidence.rules, arm_styles(evidence)
    figure, axes = canvas(2, height=3.0)
    lengths = sorted({float(length) for rows in found.values() for length in rows["length"]})
    for arm, rows in found.items():
        style = styles[arm]
        points = [(length, n) for length in lengths if (n := every.get(f"passkey.{arm}.{length:.0f}"))]
        _error_bars(axes[0], points, style.colour, style.marker, arm)
        if rows["length"].nunique() > 1:
            fit = accuracy_curve(
                rows["length"], rows["correct"], seeds=rows["seed"].to_list(), items=rows["item"].to_list(),
                log=True, level=1 - rules.alpha, at=np.geomspace(lengths[0], lengths[-1], 41),
            )  # fmt: skip
            axes[0].plot(fit.x, fit.estimate, color=style.colour, ls=style.dash, lw=1.3)
            axes[0].fill_between(fit.x, fit.low, fit.high, color=style.colour, alpha=0.12, lw=0)
        nll = [(length, n) for length in lengths if (n := every.get(f"passkey_nll.{arm}.{length:.0f}"))]
        _error_bars(axes[1], nll, style.colour, style.marker, arm, line=style.dash)
    axes[0].axhline(rules.retrieval.threshold, color=INK, lw=0.8, ls=":")
    axes[0].set(
        title="Passkey accuracy", ylabel="share of prompts", ylim=(-0.03, 1.03), xlabel="prompt length (tokens)"
    )
    axes[1].set(title="Loss on the true answer", ylabel="nats per token", xlabel="prompt length (tokens)")
    axes[1].set_ylim(bottom=0)
    for axis in axes:
        lengths_axis(axis, lengths)
    legend_below(figure, axes[0])
    caption = (
        "Needle beyond the last segment only. Left: points with intervals (wider of Wilson's and the "
        "hierarchical one), "
        "logistic curve over log length with bootstrap band; dotted: the threshold of C3. Right: "
        "teacher-forced, the finer "
        "measure where accuracy is still zero; lower is better."
    )
    return finish(
        figure, folder, name="retrieval-curve", title="Passkey retrieval over prompt length", caption=caption,
        sources=evidence.sources("evaluate", "retrieval.parquet", f"task == 'passkey' and {BEYOND}"),
    )  # fmt: skip


def bindings(evidence: Evidence, numbers: Numbers, folder: Path) -> Figure | None:
    """Accuracy among k rivals against 1/k, asked word present (left) and absent (right)."""
    panels = [("bindings", "Asked word is in the text"), ("bindings_absent", "Absent word (chance control)")]
    found = {n.name: n for n in numbers.get("bindings", ())}
    panels = [(task, title) for task, title in panels if any(name.startswith(f"{task}.") for name in found)]
    if not panels:
        return None
    figure, axes = canvas(len(panels), height=2.9)
    sources = [s for n in found.values() for s in n.sources]
    for axis, (task, title) in zip(axes, panels, strict=True):
        _against_chance(axis, evidence, found, task)
        if task == "bindings":
            _known_set(axis, evidence, found)
        axis.set_title(title)
    legend_below(figure, axes[0], columns=6)
    caption = (
        "Needle beyond the last segment. Filled: share of prompts answered with the right number (left) or with one "
        "rival's drawn at random (right); small open squares: with the number of any needle of the prompt. "
        "Dashed: 1/k, which a model reaches that knows the set of numbers but not which word each belongs to."
    )
    return finish(
        figure, folder, name="bindings", title="Bindings among k rivals against 1/k", caption=caption, sources=sources
    )


def control(evidence: Evidence, numbers: Numbers, folder: Path) -> Figure | None:
    """Positive control: accuracy per k and arm at the end of training, with every seed."""
    table = evidence.control_end()
    if not len(table):
        return None
    found = {n.name: n for section in numbers.values() for n in section if n.name.startswith("control.")}
    figure, (axis,) = canvas(height=3.0)
    _against_chance(axis, evidence, found, "control")
    styles = arm_styles(evidence)
    for arm, rows in table.groupby("arm"):
        places = [arm_shift(evidence, str(arm), found, "control") for _ in range(len(rows))]
        axis.scatter(
            rows["k"].to_numpy(float) * 2 ** np.array(places), rows["accuracy"], s=9, facecolor="none",
            edgecolor=styles[str(arm)].colour, linewidth=0.7, zorder=3,
        )  # fmt: skip
    axis.set(title="", xlabel="key-value pairs k in the first segment", ylabel="accuracy of recall")
    legend_below(figure, axis, columns=6)
    caption = (
        "Cross-segment associative recall, where the memory is the only path to the answer: the arm without "
        "memory stays at "
        "chance over the values. Filled: all seeds with the pooled Wilson interval; open: every seed. Dashed: 1/k."
    )
    return finish(
        figure, folder, name="control", title="Positive control: recall across segments", caption=caption,
        sources=[s for n in found.values() for s in n.sources],
    )  # fmt: skip


def arm_shift(evidence: Evidence, arm: str, found: Mapping[str, Number], prefix: str) -> float:
    """Small sideways shift (in powers of two) that keeps the arms' points apart."""
    arms = [name for name in evidence.arms if any(key.startswith(f"{prefix}.{name}.") for key in found)]
    return 0.09 * (arms.index(arm) - (len(arms) - 1) / 2)


def _against_chance(axis: Axes, evidence: Evidence, found: Mapping[str, Number], prefix: str) -> None:
    ks: set[int] = set()
    for arm, style in arm_styles(evidence).items():
        points = []
        for name, number in found.items():
            if name.startswith(f"{prefix}.{arm}.k"):
                k = int(name.rsplit(".k", 1)[1])
                ks.add(k)
                points.append((k * 2 ** arm_shift(evidence, arm, found, prefix), number))
        _error_bars(axis, sorted(points, key=lambda point: point[0]), style.colour, style.marker, arm)
    grid = np.geomspace(min(ks), max(ks), 60)
    axis.plot(grid, 1 / grid, color=INK, lw=1.1, ls=(0, (5, 2)), label="1/k")
    axis.set(ylim=(-0.03, 1.05), xlabel="rivals k", ylabel="share of prompts")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(ks), [str(k) for k in sorted(ks)])
    axis.minorticks_off()


def _known_set(axis: Axes, evidence: Evidence, found: Mapping[str, Number]) -> None:
    """Open squares: the answer is some needle's number, right or wrong."""
    for arm, style in arm_styles(evidence).items():
        for name, number in found.items():
            if name.startswith(f"bindings_set.{arm}.k"):
                place = int(name.rsplit(".k", 1)[1]) * 2 ** arm_shift(evidence, arm, found, "bindings")
                axis.plot(place, number.estimate, marker="s", ms=3, mfc="none", mec=style.colour, ls="none")


def _error_bars(
    axis: Axes, points: Sequence[tuple[float, Number]], colour: str, marker: str, label: str, *, line: object = "none"
) -> None:
    if not points:
        return
    x, y = [place for place, _ in points], np.array([n.estimate for _, n in points])
    low = np.array([n.estimate if n.low is None else n.low for _, n in points])
    high = np.array([n.estimate if n.high is None else n.high for _, n in points])
    error = np.maximum(np.stack([y - low, high - y]), 0)
    axis.errorbar(x, y, yerr=error, color=colour, marker=marker, ls=line, lw=1.1, elinewidth=1, label=label)
