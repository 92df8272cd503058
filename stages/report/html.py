"""report.html: one self-contained page. It loads nothing and runs no script; titles and texts are escaped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.report.document import SECTIONS, interval, shown, shown_unit
from stages.report.figures.style import PALETTE, Figure

TEMPLATE = Path(__file__).with_name("page.html")
DARK = ("#56a8dc", "#f08a4b", "#35c79a", "#e3a1c6", "#f2bb49", "#86cdf2", "#c3ab37", "#b08fd6")


def page(report: dict[str, Any], figures: Sequence[tuple[str, Figure]]) -> str:
    """The page as text."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["shown"] = shown
    environment.filters["unit"] = shown_unit
    environment.filters["bytes"] = size
    environment.globals["interval"] = interval
    environment.globals["grouped"] = grouped
    sections = []
    for name, title, groups in SECTIONS:
        drawn = [
            {"name": figure.name, "title": figure.title, "caption": figure.caption, "svg": Markup(figure.svg),
             "sources": figure.sources}
            for section, figure in figures
            if section == name
        ]  # fmt: skip
        tables = [{"name": group, "rows": report["numbers"][group]} for group in groups if report["numbers"].get(group)]
        if drawn or tables or (name == "cost" and report["costs"]):
            sections.append({"id": name, "title": title, "figures": drawn, "tables": tables})
    return environment.get_template(TEMPLATE.name).render(
        report=report, sections=sections, light=PALETTE, dark=DARK, slug=lambda text: text.replace(" ", "-")
    )


def grouped(sources: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per artifact and table, with all filters that select rows of it."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for source in sources:
        found.setdefault((source["step"], source["key"], source["table"]), []).append(source["filter"])
    return [
        {"step": step, "key": key, "table": table, "filters": filters} for (step, key, table), filters in found.items()
    ]


def size(value: float | None) -> str:
    """Bytes in KiB or MiB."""
    if value is None:
        return "–"
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"
