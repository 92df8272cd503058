"""ROUGE of the summaries, per task and arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.claims.evidence import Evidence
from stages.claims.verdict import Number
from stages.report.figures.style import Figure, arm_styles, canvas, finish, legend_below

METRICS = {"rouge1": "R-1", "rouge2": "R-2", "rougeL": "R-L", "rougeLsum": "R-Lsum"}
TITLES = {"continue": "Continue a document", "condense": "Condense a document"}


def rouge(evidence: Evidence, numbers: Mapping[str, Sequence[Number]], folder: Path) -> Figure | None:
    """F1 per metric and arm with document-clustered intervals, one panel per task."""
    every = {n.name: n for section in numbers.values() for n in section}
    found = {name: n for name, n in every.items() if name.startswith("rouge.") and name.count(".") == 3}
    tasks = list(dict.fromkeys(name.split(".")[2] for name in found))
    if not tasks:
        return None
    figure, axes = canvas(len(tasks), height=2.8, sharey=True)
    styles = arm_styles(evidence)
    for axis, task in zip(axes, tasks, strict=True):
        present = [metric for metric in METRICS if any(name.endswith(f".{task}.{metric}") for name in found)]
        for i, (arm, style) in enumerate(styles.items()):
            shift = 0.15 * (i - (len(styles) - 1) / 2)
            rows = [
                (x + shift, n) for x, metric in enumerate(present) if (n := found.get(f"rouge.{arm}.{task}.{metric}"))
            ]
            if not rows:
                continue
            middle = [100 * n.estimate for _, n in rows]
            reach = [
                [100 * max(0.0, n.estimate - (n.estimate if n.low is None else n.low)) for _, n in rows],
                [100 * max(0.0, (n.estimate if n.high is None else n.high) - n.estimate) for _, n in rows],
            ]
            axis.errorbar([x for x, _ in rows], middle, yerr=reach, color=style.colour, marker=style.marker, ls="none",
                          elinewidth=1, label=arm)  # fmt: skip
        axis.set_xticks(range(len(present)), [METRICS[metric] for metric in present])
        axis.set(title=TITLES.get(task, task), ylim=(0, None))
        axis.grid(axis="x", visible=False)
    axes[0].set_ylabel("ROUGE F1 (%)")
    legend_below(figure, axes[0])
    documents = max(n.n for n in found.values())
    caption = (
        f"Mean over seeds and {documents} held-out documents; intervals resample whole documents. ROUGE alone decides "
        "nothing here: it counts shared words."
    )
    return finish(
        figure, folder, name="rouge", title="ROUGE of the summaries", caption=caption,
        sources=[s for n in found.values() for s in n.sources],
    )  # fmt: skip
