"""What the memory arms gain over every schedule of the baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.training.pretrain.schedule import SEPARATOR
from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.verdict import Number
from stages.verdict.report.figures.style import BASELINE, INK, Drawing, Numbers, arm_styles, aside, row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def gaps(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Forest plot: a row per schedule of the baseline, a marker per memory arm, on its own schedule filled, on others
    open."""
    memories = {name: arm for arm in evidence.memory_arms for name in evidence.schedules_of(arm)}
    baselines = [name for arm in evidence.arms if arm not in memories for name in evidence.schedules_of(arm)]
    found = [
        n
        for n in numbers.values()
        if n.text("kind") == "schedule_perplexity" and n.text("arm") in memories and n.text("other") in baselines
    ]
    if not found:
        return None
    rows = sorted({n.text("other") for n in found}, key=baselines.index)
    shown, names = arm_styles(evidence), list(memories)
    margin = 100 * evidence.rules.schedule.margin

    def place(number: Number) -> float:
        return len(rows) - rows.index(number.text("other")) - aside(names.index(number.text("arm")), len(names), 0.16)

    def panel(axis: Axes) -> None:
        for number in found:
            name = number.text("arm")
            look, own = shown[memories[name]], SEPARATOR not in name
            ends = [100 * (number.estimate if end is None else end) for end in (number.low, number.high)]
            axis.plot(ends, [place(number)] * 2, color=look.colour, lw=1.6, solid_capstyle="butt")
            axis.plot(
                100 * number.estimate,
                place(number),
                marker=look.marker,
                ms=5.5,
                mec=look.colour,
                mfc=look.colour if own else "none",
                ls="none",
                label=name if number.text("other") == rows[0] else None,
            )
        axis.axvline(0, color=INK, lw=0.9)
        axis.axvspan(-margin, margin, color=BASELINE, alpha=0.13, lw=0)
        axis.set_yticks(range(len(rows), 0, -1), [name.replace(SEPARATOR, f"\n{SEPARATOR}") for name in rows])
        axis.set(xlabel="perplexity difference (%)", ylim=(0.4, len(rows) + 0.6))
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)

    return Drawing(
        "schedules",
        "Memory arms against every schedule of the baseline",
        "Paired over the same documents and seeds; below zero the memory arm is better. Filled: on the schedule that "
        f"all arms share, open: on others. Bars: intervals over seeds and documents. Grey: ±{margin:g}%.",
        [panel],
        [row(n, arm=n.text("arm"), against=n.text("other")) for n in found],
        [source for n in found for source in n.sources],
        columns=1,
        height=0.7 + 0.45 * len(rows),
    )
