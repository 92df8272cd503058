"""Contamination of the evaluation documents; what each arm costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.claims.evidence import Evidence
from stages.claims.verdict import Number
from stages.report.figures.style import BASELINE, INK, MUTED, PALETTE, Figure, arm_styles, canvas, finish, legend_below
from stages.report.numbers import costs

Numbers = Mapping[str, Sequence[Number]]
SHOWN = 14  # most covered evaluation documents with a name of their own


def contamination(evidence: Evidence, numbers: Numbers, folder: Path) -> Figure | None:
    """Coverage of the most covered evaluation documents before and after the audit, and what it did."""
    books = evidence.table("decontaminate", "books.parquet")
    if not len(books):
        return None
    decisions = evidence.table("decontaminate", "decisions.parquet")
    top = books.sort_values(["coverage", "book_id"], ascending=[False, True])
    top = top.head(min(SHOWN, max(3, int((top["coverage"] > 0).sum()))))
    figure, axes = canvas(2, height=1.6 + 0.17 * len(top), gridspec_kw={"width_ratios": [2.2, 1]})
    y = range(len(top))
    limit = evidence.rules.clean_data.coverage_limit
    axes[0].hlines(y, 100 * top["coverage_after"], 100 * top["coverage"], color=MUTED, lw=1)
    axes[0].scatter(100 * top["coverage"], y, color=PALETTE[1], s=22, label="before the audit", zorder=3)
    axes[0].scatter(100 * top["coverage_after"], y, color=PALETTE[0], marker="s", s=18, label="after", zorder=3)
    axes[0].axvline(100 * limit, color=INK, lw=0.8, ls=":")
    axes[0].set_yticks(
        list(y), [_short(title or book) for title, book in zip(top["title"], top["book_id"], strict=True)]
    )
    axes[0].invert_yaxis()
    axes[0].set(title="Covered by training documents", xlabel="share of its words (%)", xlim=(-2, 102))
    axes[0].grid(axis="y", visible=False)
    axes[0].tick_params(axis="y", length=0, labelsize=7)
    axes[0].legend(loc="lower right")
    actions = [action for action in ("keep", "note", "excise", "drop") if len(decisions)]
    counts = [int((decisions["action"] == action).sum()) for action in actions]
    bars = axes[1].bar(actions, counts, color=[MUTED, PALETTE[4], PALETTE[5], PALETTE[1]][: len(actions)], width=0.65)
    axes[1].bar_label(bars, fontsize=7.5, color=INK)
    axes[1].set(title="Training documents", ylabel="documents")
    axes[1].margins(y=0.12)
    axes[1].grid(axis="x", visible=False)
    if counts and max(counts) > 50 * max(1, min(counts)):
        axes[1].set_yscale("symlog", linthresh=10)
    caption = (
        f"Evaluation documents, most covered first ({len(top)} of {len(books)}); dotted: the limit of {limit:.0%}. "
        "Right: what the audit did with the training documents."
    )
    sources = [evidence.source("decontaminate", "books.parquet"), evidence.source("decontaminate", "decisions.parquet")]
    return finish(
        figure, folder, name="contamination", title="Contamination of the evaluation documents", caption=caption,
        sources=sources,
    )  # fmt: skip


def _short(title: str, length: int = 34) -> str:
    """A title that fits beside the axis; '$' would start a formula."""
    text = " ".join(str(title).split()).replace("$", r"\$")
    return text if len(text) <= length else text[: length - 1] + "…"


def cost(evidence: Evidence, numbers: Numbers, folder: Path) -> Figure | None:
    """Perplexity against the local arm over the bytes of state an arm carries, live segment included."""
    found = {n.name: n for section in numbers.values() for n in section if n.name.startswith("perplexity.")}
    baseline = next(iter(evidence.arms_of_kind("local")), None)
    rows = [row for row in costs(evidence) if row.arm == baseline or f"perplexity.{row.arm}.{baseline}" in found]
    if baseline is None or len(rows) < 2:
        return None
    styles = arm_styles(evidence)
    sizes: list[float] = []
    figure, (axis,) = canvas(height=2.9)
    for row in rows:
        gap, style = found.get(f"perplexity.{row.arm}.{baseline}"), styles[row.arm]
        size = (row.state_bytes + row.live_kv_bytes) / 1024
        beside = sum(abs(size - other) < 0.01 * size for other in sizes)
        sizes.append(size)
        y = 100 * gap.estimate if gap else 0.0
        error = [[y - 100 * (gap.low or 0)], [100 * (gap.high or 0) - y]] if gap else None
        axis.errorbar(size * (1 + 0.015 * beside), y, yerr=error, color=style.colour, marker=style.marker, ms=7,
                      ls="none", label=row.arm)  # fmt: skip
    if max(sizes) > 8 * max(min(sizes), 1e-9):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        axis.minorticks_off()
    else:
        axis.set_xlim(0, 1.15 * max(sizes))
    axis.axhline(0, color=BASELINE, lw=1, ls=(0, (2, 1.5)))
    axis.set(
        xlabel="state carried per sequence, with the live segment's keys and values (KiB)",
        ylabel=f"perplexity against {baseline} (%)",
    )
    legend_below(figure, axis)
    caption = (
        "Paired perplexity difference to the arm without memory, with its interval, over what an arm keeps "
        "while it reads "
        "on: down and left is better. Arms of equal size stand side by side."
    )
    return finish(
        figure, folder, name="cost", title="Perplexity against state size", caption=caption,
        sources=[s for row in rows for s in row.sources],
    )  # fmt: skip
