"""The positive control: recall across segments by number of pairs, by distance and with the memory knocked out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.verdict.claims.evidence import Evidence
from stages.verdict.report.control import BASE, arms, cells, sources
from stages.verdict.report.figures.style import (
    INK,
    Drawing,
    Numbers,
    Style,
    arms_over,
    aside,
    estimates,
    power_axis,
    row,
    seeds,
    styles,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

KNOCKOUTS = {
    "none": "intact",
    "gate_closed": "gate\nclosed",
    "reset": "reset",
    "swap": "other's\nmemory",
    "zero_read": "read\nzero",
}


def looks(evidence: Evidence) -> dict[str, Style]:
    """A style per arm of the control; the one without memory is grey."""
    return styles(arms(evidence), grey=["local"])


def by_pairs(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Accuracy per k and arm at the end of training, every seed beside the interval."""
    table = cells(evidence, "pairs")
    if not len(table):
        return None
    shown = looks(evidence)
    ks = sorted(table["k"].unique())
    data = [row(n, arm=arm, k=k) for arm in shown for k in ks if (n := numbers.get(f"control.{arm}.k{k}"))]

    def panel(axis: Axes) -> None:
        for place, (arm, look) in enumerate(shown.items()):
            shift = 2 ** aside(place, len(shown))
            found = [(k * shift, n) for k in ks if (n := numbers.get(f"control.{arm}.k{k}"))]
            estimates(axis, found, look, arm)
            rows = table[table["arm"] == arm]
            seeds(axis, rows["k"] * shift * 2**0.035, rows["accuracy"], look)
        grid = np.geomspace(min(ks), max(ks), 60)
        axis.plot(grid, 1 / grid, color=INK, lw=1.1, ls=(0, (5, 2)), label="1/k")
        power_axis(axis, ks)
        axis.set(xlabel="key–value pairs k in the first segment", ylabel="share recalled", ylim=(-0.03, 1.06))

    data += _per_seed(table, "k")
    return Drawing(
        "control",
        "Positive control: recall across segments",
        "The memory is the only path to the answer. Full attention shows that the task can be learned (ceiling), local "
        "attention what guessing gives (floor). Filled: all seeds with interval; open: every seed. Dashed: 1/k, "
        "which a "
        "model reaches that knows the set of values but not their keys.",
        [panel],
        data,
        sources(evidence, "pairs"),
        columns=1,
        height=3.2,
    )


def by_steps(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Accuracy at the hardest k over the steps of training, a line per arm and seed."""
    table = cells(evidence, "learning")
    if not len(table) or table["step"].nunique() < 2:
        return None
    shown = looks(evidence)
    hardest = table.loc[table.groupby(["arm", "seed", "step"])["accuracy"].idxmin()]

    def panel(axis: Axes) -> None:
        for arm, look in shown.items():
            for i, (_, rows) in enumerate(hardest[hardest["arm"] == arm].groupby("seed")):
                label = "_" if i else arm
                axis.plot(rows["step"], rows["accuracy"], color=look.colour, marker=look.marker, lw=1.0, label=label)
        axis.set(xlabel="steps after the graft", ylabel="share recalled", ylim=(-0.03, 1.06))

    return Drawing(
        "control-learning",
        "Positive control: how soon it is learned",
        "Recall at the number of pairs that is hardest at that step, on a held stream; every line is a seed. All arms "
        "of a seed start from the same weights and see the same sequences; a line ends where the arm could do it.",
        [panel],
        _per_seed(hardest, "step", "k"),
        sources(evidence, "learning"),
        columns=1,
    )


def by_distance(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Accuracy over the number of segments between pairs and question, with filler and with other pairs between."""
    table = cells(evidence, "distance")
    if not len(table) or table["segments"].nunique() < 2:
        return None
    shown = looks(evidence)
    kinds = [kind for kind in ("filler", "pairs") if (table["between"] == kind).any()]
    k = int(table["k"].iloc[0])

    def of(kind: str) -> Callable[[Axes], None]:
        def panel(axis: Axes) -> None:
            arms_over(axis, table[table["between"] == kind], shown, "segments", 0.07)
            axis.axhline(1 / k, color=INK, lw=1.0, ls=(0, (5, 2)), label="1/k")
            power_axis(axis, table["segments"])
            title = "Filler between" if kind == "filler" else "Other pairs between"
            axis.set(title=title, xlabel="segments read", ylabel="share recalled", ylim=(-0.03, 1.06))

        return panel

    return Drawing(
        "control-distance",
        "Positive control: how long the memory lasts",
        f"k = {k} pairs asked after more segments than were trained (the leftmost point). The same pairs and questions "
        "at every distance, so the points of a line are not independent. Lines: means, open: seeds.",
        [of(kind) for kind in kinds],
        _per_seed(table, "segments", "between"),
        sources(evidence, "distance"),
    )


def by_knockout(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Accuracy with the memory intact and knocked out in four ways, at the largest k."""
    table = cells(evidence, "knockout")
    if not len(table) or table["knockout"].nunique() < 2:
        return None
    table = table[table["k"] == table["k"].max()]
    shown = {arm: look for arm, look in looks(evidence).items() if (table["arm"] == arm).any()}
    order = [name for name in KNOCKOUTS if (table["knockout"] == name).any()]
    k = int(table["k"].iloc[0])

    def panel(axis: Axes) -> None:
        for place, (arm, look) in enumerate(shown.items()):
            rows = table[table["arm"] == arm]
            x = rows["knockout"].map({name: i for i, name in enumerate(order)}) + aside(place, len(shown), 0.12)
            mean = rows.groupby("knockout")["accuracy"].mean()
            axis.plot(
                [order.index(str(name)) + aside(place, len(shown), 0.12) for name in mean.index],
                mean,
                ls="none",
                marker=look.marker,
                color=look.colour,
                label=arm,
                ms=5.5,
                zorder=3,
            )
            seeds(axis, x + 0.05, rows["accuracy"], look)
        axis.axhline(1 / k, color=INK, lw=1.0, ls=(0, (5, 2)), label="1/k")
        axis.set_xticks(range(len(order)), [KNOCKOUTS[name] for name in order])
        axis.set(ylabel="share recalled", ylim=(-0.03, 1.06))
        axis.grid(axis="x", visible=False)

    return Drawing(
        "control-knockouts",
        "Positive control: the memory knocked out",
        f"k = {k} pairs; the same sequences with the memory intact, its gate closed, reset at every segment, exchanged "
        "for another sequence's, or read as zero. Filled: means, open: seeds.",
        [panel],
        _per_seed(table, "knockout"),
        sources(evidence, "knockout"),
        columns=1,
    )


def _per_seed(table: pd.DataFrame, *columns: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        table[["arm", "seed", *columns, "accuracy", "trials"]]
        .rename(columns={"accuracy": "estimate"})
        .to_dict("records")
    )
    return found


__all__ = ["BASE", "by_distance", "by_knockout", "by_pairs", "by_steps"]
