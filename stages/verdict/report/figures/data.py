"""Contamination of the evaluation documents by two counts; what each arm costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.verdict.claims.evidence import Evidence
from stages.verdict.report.figures.style import BASELINE, INK, MUTED, PALETTE, Drawing, Numbers, arm_styles
from stages.verdict.report.numbers import costs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 12  # most covered evaluation documents with a name of their own


def contamination(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Coverage of the most covered evaluation documents before and after the audit, the second count of what is left,
    and what the audit did."""
    books = evidence.table("decontaminate", "books.parquet")
    if not len(books):
        return None
    decisions = evidence.table("decontaminate", "decisions.parquet")
    certified = evidence.table("certify", "containment.parquet")
    if len(certified):
        books = books.merge(certified[["book_id", "share"]].rename(columns={"share": "contained"}), how="left")
    top = books.sort_values(["coverage", "book_id"], ascending=[False, True])
    top = top.head(min(SHOWN, max(3, int((top["coverage"] > 0).sum()))))
    limit = evidence.rules.clean_data.coverage_limit
    y = range(len(top))

    def covered(axis: Axes) -> None:
        axis.hlines(y, 100 * top["coverage_after"], 100 * top["coverage"], color=MUTED, lw=1)
        axis.scatter(100 * top["coverage"], y, color=PALETTE[1], s=24, label="before the audit", zorder=3)
        axis.scatter(100 * top["coverage_after"], y, color=PALETTE[0], marker="s", s=20, label="after", zorder=3)
        if "contained" in top:
            axis.scatter(
                100 * top["contained"],
                y,
                facecolor="none",
                edgecolor=INK,
                marker="D",
                s=42,
                zorder=4,
                label="after, second count",
            )
        axis.axvline(100 * limit, color=INK, lw=0.8, ls=":")
        names = [_short(title or book) for title, book in zip(top["title"], top["book_id"], strict=True)]
        axis.set_yticks(list(y), names)
        axis.invert_yaxis()
        axis.set(title="In training documents", xlabel="share of its words (%)", xlim=(-3, 103))
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)

    def acted(axis: Axes) -> None:
        actions = [action for action in ("keep", "note", "cut", "drop") if len(decisions)]
        counts = [int((decisions["action"] == action).sum()) for action in actions]
        colours = [MUTED, PALETTE[4], PALETTE[5], PALETTE[1]][: len(actions)]
        bars = axis.bar(actions, counts, color=colours, width=0.65)
        axis.bar_label(bars, color=INK)
        axis.set(title="What the audit did", ylabel="training documents")
        axis.margins(y=0.12)
        axis.grid(axis="x", visible=False)
        if counts and max(counts) > 50 * max(1, min(counts)):
            axis.set_yscale("symlog", linthresh=10)

    columns = [name for name in ("book_id", "title", "coverage", "coverage_after", "contained") if name in top]
    sources = [evidence.source("decontaminate", "books.parquet"), evidence.source("decontaminate", "decisions.parquet")]
    sources += [evidence.source("certify", "containment.parquet")] if len(certified) else []
    return Drawing(
        "contamination",
        "Contamination of the evaluation documents",
        f"Evaluation documents, most covered first ({len(top)} of {len(books)}); dotted: the limit of {limit:.0%}. "
        "Diamonds: plain n-gram containment in what is trained on, counted again by code of its own.",
        [covered, acted],
        top[columns].to_dict("records"),
        sources,
        height=1.5 + 0.19 * len(top),
    )


def _short(title: str, length: int = 22) -> str:
    """A title that fits beside the axis; '$' would start a formula."""
    text = " ".join(str(title).split())
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")


def cost(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Perplexity against the local arm over the bytes of state an arm carries, live segment included."""
    baseline = next(iter(evidence.arms_of_kind("local")), None)
    rows = [
        found for found in costs(evidence) if found.arm == baseline or f"perplexity.{found.arm}.{baseline}" in numbers
    ]
    if baseline is None or len(rows) < 2:
        return None
    shown = arm_styles(evidence)
    sizes = [(found.state_bytes + found.live_kv_bytes) / 1024 for found in rows]
    gaps = [numbers.get(f"perplexity.{found.arm}.{baseline}") for found in rows]

    def panel(axis: Axes) -> None:
        for place, (found, gap, size) in enumerate(zip(rows, gaps, sizes, strict=True)):
            beside = sum(abs(size - other) < 0.01 * size for other in sizes[:place])
            y = 100 * gap.estimate if gap else 0.0
            error = None
            if gap and gap.low is not None and gap.high is not None:
                error = [[y - 100 * gap.low], [100 * gap.high - y]]
            look = shown[found.arm]
            axis.errorbar(
                size * (1 + 0.02 * beside),
                y,
                yerr=error,
                color=look.colour,
                marker=look.marker,
                ms=7,
                ls="none",
                label=found.arm,
            )
        if max(sizes) > 8 * max(min(sizes), 1e-9):
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
            axis.minorticks_off()
        else:
            axis.set_xlim(0, 1.15 * max(sizes))
        axis.axhline(0, color=BASELINE, lw=1, ls=(0, (2, 1.5)))
        axis.set(xlabel="state per sequence, live segment included (KiB)", ylabel=f"perplexity against {baseline} (%)")

    data = [
        {
            "arm": found.arm,
            "kib": size,
            "estimate": gap.estimate if gap else 0.0,
            "low": gap and gap.low,
            "high": gap and gap.high,
        }
        for found, gap, size in zip(rows, gaps, sizes, strict=True)
    ]
    return Drawing(
        "cost",
        "Perplexity against state size",
        "Paired perplexity difference to the arm without memory, with its interval, over what an arm keeps while "
        "it reads "
        "on: down and left is better. Arms of equal size stand side by side.",
        [panel],
        data,
        [s for found in rows for s in found.sources],
        columns=1,
    )
