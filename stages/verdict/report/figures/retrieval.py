"""Passkey accuracy over the needle's position and the prompt's length, and bindings against 1/k."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.verdict.claims.evidence import BEYOND, Evidence
from stages.verdict.claims.retrieval import passkey
from stages.verdict.claims.verdict import Number
from stages.verdict.report.curves import fitted
from stages.verdict.report.figures.style import (
    INK,
    MUTED,
    Drawing,
    Numbers,
    arm_styles,
    aside,
    estimates,
    power_axis,
    row,
    seeds,
    tokens,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

BINS = 6  # of a seed's prompts along the position axis, shown beside the curve
SHOWN = 4  # lengths with a panel of their own


def positions(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Accuracy as a continuous function of where the needle stands: a spline per arm with its band, one panel per
    length, and beside it the share of every seed in some bins."""
    table = evidence.retrieval
    table = table[table["task"] == "passkey"] if len(table) else table
    if not len(table):
        return None
    shown = arm_styles(evidence)
    lengths = [int(length) for length in sorted(table["length"].unique())]
    lengths = (
        lengths if len(lengths) <= SHOWN else [lengths[i] for i in np.linspace(0, len(lengths) - 1, SHOWN).astype(int)]
    )
    curves = {
        (length, arm): curve
        for length in lengths
        for arm in shown
        if (curve := fitted(evidence, table[(table["arm"] == arm) & (table["length"] == length)], "depth")) is not None
    }
    data = [
        {"length": length, "arm": arm, "depth": x, "estimate": y, "low": low, "high": high, "n": curve.n}
        for (length, arm), curve in curves.items()
        for x, y, low, high in zip(curve.x, curve.estimate, curve.low, curve.high, strict=True)
    ]

    def of(length: int) -> Callable[[Axes], None]:
        def panel(axis: Axes) -> None:
            inside = min(1.0, evidence.segment_length() / length)
            axis.axvspan(100 * (1 - inside), 100, color=MUTED, alpha=0.12, lw=0)
            for arm, look in shown.items():
                rows = table[(table["arm"] == arm) & (table["length"] == length)]
                curve = curves.get((length, arm))
                if curve is not None:
                    axis.plot(
                        100 * curve.x,
                        curve.estimate,
                        color=look.colour,
                        ls=look.dash,
                        marker=look.marker,
                        markevery=max(1, len(curve.x) // 5),
                        label=arm,
                    )
                    axis.fill_between(100 * curve.x, curve.low, curve.high, color=look.colour, alpha=0.13, lw=0)
                for _, run in rows.groupby("seed"):
                    seeds(axis, *_binned(run), look)
            axis.set(
                title=f"{tokens(length)} tokens",
                xlabel="needle's position (% of the prompt)",
                ylabel="share found",
                ylim=(-0.03, 1.05),
                xlim=(-2, 102),
            )

        return panel

    method = next(iter(curves.values())).method if curves else "no curve"
    return Drawing(
        "retrieval-positions",
        "Passkey retrieval over the needle's position",
        f"0% is the start of the prompt. Lines: {method}, with bands; open: shares of every seed in bins. Grey: "
        "the last "
        f"{evidence.segment_length()} tokens, which local attention may still see.",
        [of(length) for length in lengths],
        data,
        evidence.sources("evaluate", "retrieval.parquet", "task == 'passkey'"),
        height=2.6,
    )


def _binned(run: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(position in percent, share found) of one seed's prompts, in at most ``BINS`` groups of equal size."""
    ordered = run.sort_values("depth")
    places = ordered["depth"].unique()
    if len(places) <= BINS:
        mean = ordered.groupby("depth")["correct"].mean()
        return 100 * mean.index.to_numpy(float), mean.to_numpy(float)
    parts = np.array_split(np.arange(len(ordered)), BINS)
    depth, correct = ordered["depth"].to_numpy(float), ordered["correct"].to_numpy(float)
    return np.array([100 * depth[part].mean() for part in parts]), np.array([correct[part].mean() for part in parts])


def lengths(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Accuracy (logistic curve with band) and nll of the answer over length, needle beyond the last segment."""
    found = {arm: passkey(evidence, arm)[0] for arm in evidence.arms}
    found = {arm: rows for arm, rows in found.items() if len(rows)}
    if not found:
        return None
    rules, shown = evidence.rules, arm_styles(evidence)
    tested = sorted({int(length) for rows in found.values() for length in rows["length"]})
    curves = {arm: curve for arm, rows in found.items() if (curve := fitted(evidence, rows, "length")) is not None}

    def points(prefix: str, arm: str) -> list[tuple[float, Number]]:
        return [(length, n) for length in tested if (n := numbers.get(f"{prefix}.{arm}.{length}"))]

    def accuracy(axis: Axes) -> None:
        for arm in found:
            estimates(axis, points("passkey", arm), shown[arm], arm)
            if arm in curves:
                curve = curves[arm]
                axis.plot(curve.x, curve.estimate, color=shown[arm].colour, ls=shown[arm].dash, lw=1.3)
                axis.fill_between(curve.x, curve.low, curve.high, color=shown[arm].colour, alpha=0.12, lw=0)
        axis.axhline(rules.retrieval.threshold, color=INK, lw=0.8, ls=":")
        power_axis(axis, tested)
        axis.set(title="Passkey accuracy", ylabel="share found", ylim=(-0.03, 1.04), xlabel="prompt length (tokens)")

    def loss(axis: Axes) -> None:
        for arm in found:
            estimates(axis, points("passkey_nll", arm), shown[arm], arm, line=True)
        power_axis(axis, tested)
        axis.set(title="Loss on the true answer", ylabel="nats per token", xlabel="prompt length (tokens)")
        axis.set_ylim(bottom=0)

    data = [
        row(n, measure=prefix, arm=arm, length=length)
        for prefix in ("passkey", "passkey_nll")
        for arm in found
        for length, n in points(prefix, arm)
    ]
    data += [
        {"measure": "curve", "arm": arm, "length": x, "estimate": y, "low": low, "high": high, "n": curve.n}
        for arm, curve in curves.items()
        for x, y, low, high in zip(curve.x, curve.estimate, curve.low, curve.high, strict=True)
    ]
    method = next(iter(curves.values())).method if curves else "no curve"
    return Drawing(
        "retrieval-lengths",
        "Passkey retrieval over prompt length",
        f"Needle beyond the last segment only. Left: points with intervals; curves: {method}; dotted: the threshold of "
        "C3. Right: teacher-forced, the finer measure where accuracy is still zero; lower is better.",
        [accuracy, loss],
        data,
        evidence.sources("evaluate", "retrieval.parquet", f"task == 'passkey' and {BEYOND}"),
    )


def bindings(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Accuracy among k rivals against 1/k, asked word present and absent."""
    titles = {"bindings": "Asked word is in the text", "bindings_absent": "Absent word (chance control)"}
    shown = arm_styles(evidence)
    points: dict[tuple[str, str], list[tuple[int, Number]]] = {}
    for number in numbers.values():
        task, arm = number.text("kind"), number.text("arm")
        if task in (*titles, "bindings_set") and arm in shown:
            points.setdefault((task, arm), []).append((number.integer("k"), number))
    present = [task for task in titles if any(key[0] == task for key in points)]
    if not present:
        return None
    ks = sorted({k for found in points.values() for k, _ in found})
    arms = [arm for arm in shown if any(key[1] == arm for key in points)]

    def of(task: str) -> Callable[[Axes], None]:
        def panel(axis: Axes) -> None:
            for place, arm in enumerate(arms):
                shift = 2 ** aside(place, len(arms))
                found = sorted(points.get((task, arm), ()), key=lambda point: point[0])
                estimates(axis, [(k * shift, n) for k, n in found], shown[arm], arm)
                for k, n in points.get(("bindings_set", arm), ()) if task == "bindings" else ():
                    axis.plot(k * shift, n.estimate, marker="s", ms=3.4, mfc="none", mec=shown[arm].colour, ls="none")
            grid = np.geomspace(min(ks), max(ks), 60)
            axis.plot(grid, 1 / grid, color=INK, lw=1.1, ls=(0, (5, 2)), label="1/k")
            power_axis(axis, ks)
            axis.set(title=titles[task], xlabel="rivals k", ylabel="share of prompts", ylim=(-0.03, 1.05))

        return panel

    data: list[dict[str, Any]] = [
        row(n, task=task, arm=arm, k=k) for (task, arm), found in points.items() for k, n in found
    ]
    return Drawing(
        "bindings",
        "Bindings among k rivals against 1/k",
        "Needle beyond the last segment. Filled: prompts answered with the right number (left) or with one "
        "rival's drawn "
        "at random (right); small open squares: with the number of any needle of the prompt. Dashed: 1/k, which "
        "a model "
        "reaches that knows the set of numbers but not which word each belongs to.",
        [of(task) for task in present],
        data,
        [s for found in points.values() for _, n in found for s in n.sources],
    )
