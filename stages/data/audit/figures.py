"""Pictures of an audit: coverage of the evaluation documents before and after, every pair against the thresholds.

Drawn once as PNG for the tracking server and as SVG for the page, whose colours it takes (light and dark).
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from stages.data.decontaminate.config import DecontaminateConfig
from stages.display.svg import inline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, LINE = "#1b1f24", "#5d6773", "#d8dde3"
COLOURS = {"--c0": "#0072b2", "--c1": "#d55e00", "--c2": "#009e73", "--c4": "#b07a00"}  # Okabe and Ito's
LOOK = {"drop": ("dropped", "#d55e00", "o"), "cut": ("cut", "#b07a00", "s"), "note": ("noted", "#0072b2", "^")}
TOP_BOOKS, TOP_POINTS = 30, 2000
STYLE = {
    "svg.hashsalt": "audit",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def draw(folder: Path, rule: DecontaminateConfig) -> dict[str, str]:
    """Write figures/<name>.png for each figure there is something to show in; name -> SVG markup."""
    import matplotlib

    books = pq.read_table(folder / "books.parquet").to_pylist()
    pairs = pq.read_table(folder / "pairs.parquet").to_pylist()
    drawings = {}
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.filterwarnings("ignore", "Glyph")  # of titles in scripts that the font does not have
        matplotlib.rcdefaults()  # whatever a step before drew in this process
        matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]  # its keys are a Literal of 300 names
        for name, figure in (("coverage", _coverage(books, rule)), ("margins", _margins(pairs, rule))):
            if figure is not None:
                drawings[name] = _saved(figure, name, folder)
    return drawings


def _coverage(books: list[dict[str, Any]], rule: DecontaminateConfig) -> Figure | None:
    from matplotlib.figure import Figure

    found = [book for book in books if book["coverage"] > 0][:TOP_BOOKS]
    if not found:
        return None
    figure = Figure(figsize=(7.2, 1.0 + 0.19 * len(found)))
    axes = figure.subplots()
    y = range(len(found))
    before = [100 * book["coverage"] for book in found]
    axes.scatter(before, y, s=22, color="#d55e00", label="found in training", zorder=3)
    if all(book["coverage_after"] is not None for book in found):
        after = [100 * book["coverage_after"] for book in found]
        axes.hlines(y, after, before, color=MUTED, lw=1)
        axes.scatter(after, y, s=18, marker="s", color="#0072b2", label="after", zorder=3)
    axes.axvline(100 * rule.coverage_limit, color=INK, lw=0.8, ls=":")
    axes.set_yticks(list(y), [_short(book["title"] or book["book_id"]) for book in found], fontsize=7.5)
    axes.invert_yaxis()
    axes.set(xlabel="share of its words found in training documents (%)", xlim=(-2, 102))
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower right", fontsize=7.5)
    return figure


def _margins(pairs: list[dict[str, Any]], rule: DecontaminateConfig) -> Figure | None:
    from matplotlib.figure import Figure

    if not pairs:
        return None
    figure = Figure(figsize=(7.2, 3.2))
    axes = figure.subplots()
    for action, (label, colour, marker) in LOOK.items():
        points = [(p["longest_words"], 100 * p["book_share"]) for p in pairs[:TOP_POINTS] if p["action"] == action]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, s=22, color=colour, marker=marker, label=label, alpha=0.8, zorder=3)
    axes.axvline(rule.act_words, color=INK, lw=0.8, ls=":")
    axes.axvline(rule.drop_words, color=INK, lw=0.8, ls="--")
    axes.axhline(100 * rule.drop_book_share, color=INK, lw=0.8, ls="--")
    axes.set(xscale="log", yscale="log", xlabel="words of the longest span", ylabel="of the evaluation document (%)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.minorticks_off()
    axes.legend(loc="lower right", fontsize=7.5)
    return figure


def _short(text: str, length: int = 40) -> str:
    """A title that fits beside the axis, what does not print spelled out; '$' would start a formula."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")


def _saved(figure: Figure, name: str, folder: Path) -> str:
    (folder / "figures").mkdir(exist_ok=True)
    figure.savefig(folder / "figures" / f"{name}.png", dpi=160, facecolor="white", metadata={"Software": None})
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    colours = {"--ink": INK, "--muted": MUTED, "--line": LINE, **COLOURS}
    return inline(buffer.getvalue(), name, name, colours).replace("font: ", "font-family: sans-serif; font: ")
