"""ROUGE of the summaries, per task and arm."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from stages.verdict.claims.evidence import Evidence
from stages.verdict.report.figures.style import Drawing, Numbers, arm_styles, aside, estimates, row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = {"rouge1": "R-1", "rouge2": "R-2", "rougeL": "R-L", "rougeLsum": "R-Lsum"}
TITLES = {"continue": "Continue a document", "condense": "Condense a document"}


def rouge(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """F1 per metric and arm with document-clustered intervals, one panel per task."""
    found = {
        (n.text("arm"), n.text("task"), n.text("metric")): n for n in numbers.values() if n.text("kind") == "rouge"
    }
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
            axis.set_xticks(range(len(present)), [METRICS[metric] for metric in present])
            axis.set(title=TITLES.get(task, task), ylabel="ROUGE F1 (%)")
            axis.set_ylim(bottom=0)
            axis.grid(axis="x", visible=False)

        return panel

    documents = max(n.n for n in found.values())
    data = [row(n, arm=arm, task=task, metric=metric) for (arm, task, metric), n in found.items()]
    return Drawing(
        "rouge",
        "ROUGE of the summaries",
        f"Mean over seeds and {documents} held-out documents; intervals resample whole documents. ROUGE alone decides "
        "nothing here: it counts shared words.",
        [of(task) for task in tasks],
        data,
        [s for n in found.values() for s in n.sources],
    )
