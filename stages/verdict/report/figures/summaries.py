"""ROUGE of the summaries, per task and arm, and what more of the text is worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.verdict import Number
from stages.verdict.report.figures.style import (
    MUTED,
    Drawing,
    Numbers,
    arm_styles,
    aside,
    estimates,
    power_axis,
    row,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = {"rouge1": "R-1", "rouge2": "R-2", "rougeL": "R-L", "rougeLsum": "R-Lsum"}
TITLES = {
    "continue": "Continue a document",
    "condense": "Condense a document",
    "condense chapter": "Summarize a chapter",
    "condense book": "Summarize a book",
}
DRAWN = {"lead": (0, (4, 2)), "shuffled": (0, (1, 1.5))}
"""Baselines in the figure, and their lines."""


def rouge(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """F1 per metric and arm with book-clustered intervals, one panel per task; lines: what no model wrote."""
    found = _named(numbers, "rouge")
    others = {key: n for key, n in _named(numbers, "baseline").items() if key[0] in DRAWN and key[2] in METRICS}
    tasks = list(dict.fromkeys(task for _, task, _ in found))
    if not tasks:
        return None
    shown = arm_styles(evidence)

    def of(task: str) -> Callable[[Axes], None]:
        def panel(axis: Axes) -> None:
            present = [
                metric for metric in METRICS if any(of_task == task and of == metric for _, of_task, of in found)
            ]
            for i, (arm, look) in enumerate(shown.items()):
                points = [
                    (x + aside(i, len(shown), 0.15), n)
                    for x, metric in enumerate(present)
                    if (n := found.get((arm, task, metric)))
                ]
                estimates(axis, points, look, arm, scale=100)
            for system, dash in DRAWN.items():
                lines = [(x, n) for x, metric in enumerate(present) if (n := others.get((system, task, metric)))]
                for place, (x, n) in enumerate(lines):
                    label = system if place == 0 else None
                    axis.plot([x - 0.4, x + 0.4], [100 * n.estimate] * 2, color=MUTED, ls=dash, lw=1.1, label=label)
            axis.set_xticks(range(len(present)), [METRICS[metric] for metric in present])
            axis.set(title=TITLES.get(task, task), ylabel="ROUGE F1 (%)")
            axis.set_ylim(bottom=0)
            axis.grid(axis="x", visible=False)

        return panel

    books = max(n.n for n in found.values())
    both = {**found, **others}
    data = [row(n, arm=arm, task=task, metric=metric) for (arm, task, metric), n in both.items()]
    lines = " Lines: the text's own beginning (lead) and a summary of another book (shuffled)." if others else ""
    return Drawing(
        "rouge",
        "ROUGE of the summaries",
        f"Mean over seeds and the texts of {books} books; intervals resample whole books.{lines} ROUGE alone decides "
        "nothing here: it counts shared words.",
        [of(task) for task in tasks],
        data,
        [s for n in both.values() for s in n.sources],
    )


def by_length(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """The paper's figure: the geometric mean of ROUGE over how much of the text is read."""
    points: dict[tuple[str, str], list[tuple[int, Number]]] = {}
    for number in numbers.values():
        if number.text("kind") == "summary_length":
            points.setdefault((number.text("task"), number.text("arm")), []).append((number.integer("read"), number))
    tasks = list(dict.fromkeys(task for task, _ in points))
    if not tasks:
        return None
    shown = arm_styles(evidence)

    def of(task: str) -> Callable[[Axes], None]:
        def panel(axis: Axes) -> None:
            for arm, look in shown.items():
                estimates(
                    axis, sorted(points.get((task, arm), ()), key=lambda p: p[0]), look, arm, line=True, scale=100
                )
            power_axis(axis, {read for (of_task, _), own in points.items() if of_task == task for read, _ in own})
            axis.set(title=TITLES.get(task, task), ylabel="ROUGE F1 (%)", xlabel="tokens read (mean)")

        return panel

    data = [row(n, arm=arm, task=task, read=read) for (task, arm), own in points.items() for read, n in own]
    return Drawing(
        "rouge-by-length",
        "What more of the text is worth",
        "Geometric mean of ROUGE-1, -2 and -L of the same texts, read up to the given length; intervals resample whole "
        "books.",
        [of(task) for task in tasks],
        data,
        [s for own in points.values() for _, n in own for s in n.sources],
    )


def _named(numbers: Numbers, kind: str) -> dict[tuple[str, str, str], Number]:
    return {
        (n.text("arm"), n.text("task"), n.text("metric")): n
        for n in numbers.values()
        if n.text("kind") == kind and n.text("metric") in METRICS
    }
