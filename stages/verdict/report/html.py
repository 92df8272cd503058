"""report.html: one self-contained page. It loads nothing and runs no script; titles and texts are escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stages.display.numbers import size
from stages.verdict.report.commands import DIGITS, show
from stages.verdict.report.document import SECTIONS
from stages.verdict.report.figures.style import PALETTE
from stages.verdict.report.shown import interval, shown, shown_unit

TEMPLATE = Path(__file__).with_name("page.html")
DARK = ("#56a8dc", "#f08a4b", "#35c79a", "#e3a1c6", "#f2bb49", "#86cdf2", "#c3ab37", "#b08fd6")


def page(report: Mapping[str, Any], folder: Path) -> str:
    """The page as text; the figures' SVG files are read from ``folder`` and inlined."""
    import jinja2
    from markupsafe import Markup

    place = report["place"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "unit": shown_unit, "bytes": partial(size, form=".3g"), "anchor": anchor}
    environment.globals |= {
        "interval": interval,
        "grouped": grouped,
        "slug": lambda text: text.replace(" ", "-"),
        "file": lambda name: place["file"].replace("{}", name),
    }
    sections = []
    for name, title, groups in SECTIONS:
        drawn = [
            {
                **figure,
                **{kind: Markup((folder / figure[kind]).read_text("utf-8")) for kind in ("svg", "narrow")},
                "files": {"SVG": figure["svg"], "data (CSV)": figure["data"], "PNG": figure["png"]},
            }
            for figure in report["figures"]
            if figure["section"] == name
        ]
        tables = [{"name": group, "rows": report["numbers"][group]} for group in groups if report["numbers"].get(group)]
        sections.append({"id": name, "title": title, "figures": drawn, "tables": tables})
    present = [s for s in sections[1:] if s["figures"] or s["tables"] or (s["id"] == "cost" and report["costs"])]
    return environment.get_template(TEMPLATE.name).render(
        report=report,
        calibration=sections[0],
        sections=present,
        artifacts=artifacts(report),
        light=PALETTE,
        dark=DARK,
        place=place,
    )


def anchor(key: str) -> str:
    """Id of an artifact's row in the page."""
    return f"a-{key[:DIGITS]}"


def grouped(sources: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per step, with every command that selects rows of it."""
    found: dict[tuple[str, str], list[str]] = {}
    for source in sources:
        found.setdefault((source["step"], source["key"]), []).append(
            source["command"] or f"computed from shapes: {source['table']} {source['filter']}".strip()
        )
    return [{"step": step, "key": key, "commands": list(dict.fromkeys(said))} for (step, key), said in found.items()]


def artifacts(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every artifact that a number or figure names: step, key, command, address of its run where it was tracked."""
    found: dict[str, dict[str, str]] = {}

    def walk(value: Any) -> None:
        if isinstance(value, list):
            for item in value:
                walk(item)
        elif isinstance(value, dict):
            if value.get("key") and {"step", "table", "filter"} <= set(value):
                found.setdefault(value["key"], {"step": value["step"], "key": value["key"]})
            for item in value.values():
                walk(item)

    walk(report)
    place = report["place"]
    for one in [*found.values(), *report["pages"]]:
        found[one["key"]] = {
            "step": one["step"],
            "key": one["key"],
            "command": show(one["key"], options=place["options"]),
            "run": place["runs"].get(one["key"], ""),
        }
    return sorted(found.values(), key=lambda one: one["step"])
