"""One look for all figures: an arm keeps its colour, marker and line everywhere; colours are Okabe and Ito's (2008),
told apart with any colour vision; the SVG takes ink and colours from the page and so follows light and dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.claims.evidence import Evidence
from stages.claims.verdict import Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

INK, MUTED, LINE = "#1b1f24", "#5d6773", "#d8dde3"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f7a00", "#7b4fa3")
BASELINE = "#77808b"  # the arm without memory: what the others are compared with
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES: tuple[Any, ...] = ("-", "-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1)), "-", "-")
WIDTH = 7.2  # inches: a text column


@dataclass(frozen=True)
class Figure:
    """A finished figure. ``png``: path below the output folder. ``svg``: markup to inline."""

    name: str
    title: str
    caption: str
    png: str
    svg: str
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class ArmStyle:
    """Colour, marker and dash of one arm."""

    colour: str
    marker: str
    dash: Any


def arm_styles(evidence: Evidence) -> dict[str, ArmStyle]:
    """The same for every figure: local-only arms grey, the others by their place in the study file."""
    styles, place = {}, 0
    for arm, mixer in evidence.arms.items():
        if mixer.kind == "local":
            styles[arm] = ArmStyle(BASELINE, "X", (0, (2, 1.5)))
            continue
        again, i = divmod(place, len(PALETTE))  # a colour's second arm has another marker and another line
        j = (i + 3 * again) % len(PALETTE)
        styles[arm] = ArmStyle(PALETTE[i], MARKERS[j], DASHES[j])
        place += 1
    return styles


def begin() -> None:
    """Settings of matplotlib for this process: no display, deterministic SVG ids."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({
        "svg.hashsalt": "infini-study", "svg.fonttype": "path", "font.family": "DejaVu Sans", "font.size": 8.5,
        "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 8.5,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED, "axes.linewidth": 0.8,
        "axes.labelcolor": INK, "text.color": INK, "axes.titlecolor": INK, "xtick.color": MUTED, "ytick.color": MUTED,
        "xtick.labelcolor": INK, "ytick.labelcolor": INK, "xtick.labelsize": 8, "ytick.labelsize": 8,
        "axes.grid": True, "grid.color": LINE, "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
        "legend.fontsize": 8, "lines.linewidth": 1.6, "lines.markersize": 4.5, "figure.constrained_layout.use": True,
        "figure.dpi": 100,
    })  # fmt: skip


def canvas(columns: int = 1, rows: int = 1, height: float = 2.9, **options: Any) -> tuple[Canvas, list[Axes]]:
    """A figure of the text column's width with ``rows`` x ``columns`` axes, as a flat list."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(WIDTH, height * rows))
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def finish(figure: Canvas, folder: Path, *, name: str, title: str, caption: str, sources: Sequence[Source]) -> Figure:
    """Write the PNG (white, 160 dpi) and return it with the SVG."""
    png = folder / "figures" / f"{name}.png"
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = page_svg(buffer.getvalue(), name, title)
    return Figure(name, title, caption, f"figures/{name}.png", svg, tuple(dict.fromkeys(sources)))


def page_svg(svg: str, name: str, title: str) -> str:
    """matplotlib's file as inline markup: no prolog or metadata, ids unique in the page, colours of the page."""
    from markupsafe import escape

    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r'href="#', f'href="#{name}-', body)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.S)
    head = re.match(r"<svg[^>]*>", body)
    assert head is not None
    box = re.search(r'viewBox="[^"]*"', head.group())
    assert box is not None
    opening = f'<svg {box.group()} role="img" aria-label="{escape(title)}">'
    body = opening + body[head.end() :]
    for colour, variable in (
        (INK, "ink"), (MUTED, "muted"), (LINE, "line"), (BASELINE, "base"),
        *((colour, f"c{i}") for i, colour in enumerate(PALETTE)),
    ):  # fmt: skip
        body = body.replace(f": {colour}", f": var(--{variable}, {colour})")
    return re.sub(r"\n\s*", "\n", body)


def legend_below(figure: Canvas, axes: Axes, columns: int = 5) -> None:
    """One legend under all axes."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


def lengths_axis(axes: Axes, values: Sequence[float]) -> None:
    """A log2 axis with a tick per tested value: 512, 1K, 32K."""
    axes.set_xscale("log", base=2)
    shown = sorted(set(values))
    step = max(1, len(shown) // 8)
    axes.set_xticks(shown[::step], [tokens(value) for value in shown[::step]])
    axes.minorticks_off()


def tokens(value: float) -> str:
    """512 -> '512', 2048 -> '2K', 1048576 -> '1M'."""
    for size, letter in ((2**20, "M"), (2**10, "K")):
        if value >= size and value % size == 0:
            return f"{int(value // size)}{letter}"
    return f"{value:,.0f}"
