"""One look for all figures: an arm keeps its colour, marker and line everywhere; colours are Okabe and Ito's (2008),
told apart with any colour vision; the SVG takes ink and colours from the page and so follows light and dark mode.

A figure is a list of panels. They are drawn twice: side by side for a page, and one below the other for a telephone,
where the same letters would be half as large. Seeds are open markers or thin lines, means filled markers.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.display.svg import inline
from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.verdict import Number, Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Numbers = Mapping[str, Number]
Panel = Callable[["Axes"], None]

INK, MUTED, LINE = "#1b1f24", "#5d6773", "#d8dde3"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f7a00", "#7b4fa3")
BASELINE = "#77808b"  # the arm without memory: what the others are compared with
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (6, 1.5)),
    (0, (5, 2)),
    (0, (1, 1.5)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (3, 1)),
    (0, (8, 2, 1, 2)),
    (0, (2, 1)),
)
WIDE, NARROW = 7.2, 3.5  # inches: a text column, a telephone. Shown 735 and 350 px wide at least, so that
LETTERS = 9.0  # points are 12.7 px in either


@dataclass(frozen=True)
class Drawing:
    """What a figure shows, before it is drawn. ``data``: one row per point, the plotted values. ``columns``: panels in
    a row of the wide form; ``height``: inches of a panel."""

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]
    data: Sequence[Mapping[str, Any]]
    sources: Sequence[Source]
    columns: int = 2
    height: float = 2.9
    legend: bool = True


@dataclass(frozen=True)
class FinishedFigure:
    """A finished figure. Paths below the output folder: ``png``, ``svg`` (wide), ``narrow`` (SVG), ``data`` (CSV)."""

    name: str
    title: str
    caption: str
    png: str
    svg: str
    narrow: str
    data: str
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Style:
    """Colour, marker and dash of one arm, or of whatever else the lines of a figure stand for."""

    colour: str
    marker: str
    dash: Any


def arm_styles(evidence: Evidence) -> dict[str, Style]:
    """The same for every figure: local-only arms grey, the others by their place in the study file."""
    return styles(evidence.arms, grey=evidence.arms_of_kind("local"))


def styles(names: Iterable[str], grey: Iterable[str] = ()) -> dict[str, Style]:
    """A style per name in order; ``grey`` ones are what the others are compared with."""
    found, place, plain = {}, 0, set(grey)
    for name in names:
        if name in plain:
            found[name] = Style(BASELINE, "X", (0, (2, 1.5)))
            continue
        again, i = divmod(place, len(PALETTE))  # a colour's second name has another marker and another line
        j = (i + 3 * again) % len(PALETTE)
        found[name] = Style(PALETTE[i], MARKERS[j], DASHES[j])
        place += 1
    return found


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """Settings of matplotlib for what is drawn meanwhile, whatever the process drew before, and for nothing that it
    draws later: no display, deterministic SVG ids."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


SETTINGS: Any = {
    "svg.hashsalt": "infini-study",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": LETTERS,
    "axes.titlesize": LETTERS + 0.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": LETTERS,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "text.color": INK,
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": LETTERS,
    "ytick.labelsize": LETTERS,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": LETTERS,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
}


def finish(drawing: Drawing, folder: Path) -> FinishedFigure:
    """Draw both forms below ``folder``/figures: PNG (white, 160 dpi) and SVG of the wide one, SVG of the narrow one,
    and the plotted values as CSV."""
    import pandas as pd

    (folder / "figures").mkdir(parents=True, exist_ok=True)
    names = {
        kind: f"figures/{drawing.name}{end}"
        for kind, end in (("png", ".png"), ("svg", ".svg"), ("narrow", "-narrow.svg"), ("data", ".csv"))
    }
    wide = _layout(drawing, min(drawing.columns, len(drawing.panels)), WIDE)
    _png(wide, folder / names["png"])
    wide.set_layout_engine("none")  # everything has its place: the SVG needs no second look
    for kind, figure in (("svg", wide), ("narrow", _layout(drawing, 1, NARROW))):
        page = page_svg(_svg(figure), f"{drawing.name}-{kind}", drawing.title)
        (folder / names[kind]).write_text(page, encoding="utf-8")
    pd.DataFrame(drawing.data).to_csv(folder / names["data"], index=False, float_format="%.6g", lineterminator="\n")
    return FinishedFigure(
        drawing.name, drawing.title, drawing.caption, **names, sources=tuple(dict.fromkeys(drawing.sources))
    )


def _png(figure: Canvas, path: Path) -> None:
    """White, 160 dpi. ``savefig`` would draw everything twice, as it does for every format; time goes into letters."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.dpi = 160
    figure.set_facecolor("white")
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})


def _svg(figure: Canvas) -> str:
    """The whole file, transparent."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    for patch in (figure.patch, *(axis.patch for axis in figure.axes)):
        patch.set_visible(False)
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _layout(drawing: Drawing, columns: int, width: float) -> Canvas:
    from matplotlib.figure import Figure as Canvas

    rows = -(-len(drawing.panels) // columns)
    figure = Canvas(figsize=(width, drawing.height * rows + 0.35))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, panel in zip(axes, drawing.panels, strict=False):
        panel(axis)
    for axis in axes[len(drawing.panels) :]:
        axis.set_visible(False)
    shown: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    if drawing.legend and shown:
        longest = max(map(len, shown))
        room = max(1, int(width * 72 / (LETTERS * 0.62 * longest + 42)))
        figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=min(room, len(shown)))
    return figure


def page_svg(svg: str, name: str, title: str) -> str:
    """matplotlib's file as markup that can be inlined and opened by itself."""
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    colours = {"--ink": INK, "--muted": MUTED, "--line": LINE, "--base": BASELINE}
    colours |= {f"--c{i}": colour for i, colour in enumerate(PALETTE)}
    return re.sub(r"\n\s*", "\n", inline(svg, name, title, colours, spaces))


# What several figures draw


def estimates(
    axis: Axes,
    points: Sequence[tuple[float, Number]],
    style: Style,
    label: str = "",
    *,
    line: bool = False,
    scale: float = 1.0,
) -> None:
    """Filled markers with their intervals, joined by the arm's line where asked for."""
    import numpy as np

    if not points:
        return
    x, y = [place for place, _ in points], scale * np.array([n.estimate for _, n in points])
    low = scale * np.array([n.estimate if n.low is None else n.low for _, n in points])
    high = scale * np.array([n.estimate if n.high is None else n.high for _, n in points])
    axis.errorbar(
        x,
        y,
        yerr=np.maximum(np.stack([y - low, high - y]), 0),
        color=style.colour,
        marker=style.marker,
        ls=style.dash if line else "none",
        lw=1.2,
        elinewidth=1.1,
        label=label or None,
        zorder=3,
    )


def seeds(axis: Axes, x: Any, y: Any, style: Style) -> None:
    """Open markers: one per seed."""
    axis.plot(x, y, ls="none", marker=style.marker, ms=3.6, mfc="none", mec=style.colour, mew=0.8, zorder=2)


def power_axis(axis: Axes, values: Iterable[float]) -> None:
    """A log2 axis with ticks at tested values (512, 1K, 32K), at most about six, none upon another."""
    axis.set_xscale("log", base=2)
    shown = sorted(value for value in set(values) if value > 0)
    ticks = shown[:1]
    apart = max(1.35, (shown[-1] / shown[0]) ** (1 / 6)) if shown else 1.0
    for value in shown[1:]:
        if value >= apart * ticks[-1]:
            ticks.append(value)
    axis.set_xticks(ticks, [tokens(value) for value in ticks])
    axis.minorticks_off()
    if len(shown) == 1:
        axis.set_xlim(shown[0] / 1.6, shown[0] * 1.6)


def tokens(value: float) -> str:
    """512 -> '512', 2048 -> '2K', 1048576 -> '1M'."""
    for size, letter in ((2**20, "M"), (2**10, "K")):
        if value >= size and value % size == 0:
            return f"{int(value // size)}{letter}"
    return f"{value:,.0f}"


def row(number: Number, **where: Any) -> dict[str, Any]:
    """A number as a row of a figure's data."""
    return {
        **where,
        "estimate": number.estimate,
        "low": number.low,
        "high": number.high,
        "n": number.n,
        "unit": number.unit,
        "name": number.name,
    }


def aside(place: int, count: int, width: float = 0.09) -> float:
    """Small sideways shift that keeps ``count`` arms' points apart."""
    return width * (place - (count - 1) / 2)
