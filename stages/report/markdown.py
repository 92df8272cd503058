"""report.md: the verdict table, the main numbers, the figures linked."""

from __future__ import annotations

from typing import Any

from stages.report.document import SECTIONS, interval, shown, shown_unit
from stages.report.terminal import verdict_rows

LONG = ("perplexity by position",)  # in report.json and the page only


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown text."""
    lines = [f"# {_cell(report['title'])}", ""]
    if report["description"]:
        lines += [_cell(report["description"]), ""]
    counts = ", ".join(f"{count} {decision}" for decision, count in report["counts"].items() if count)
    lines += [f"{counts}.", "", "| claim | verdict | estimate | n | why |", "|---|---|---|---|---|"]
    for row in verdict_rows(report):
        cells = (f"{row.claim} {row.name}", f"**{row.decision}**", row.estimate, row.n, row.why)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    for section, title, names in SECTIONS:
        figures = [figure for figure in report["figures"] if figure["section"] == section]
        numbers = [n for name in names if name not in LONG for n in report["numbers"].get(name, ())]
        if not figures and not numbers:
            continue
        lines += ["", f"## {title}", ""]
        for figure in figures:
            lines += [f"![{figure['title']}]({figure['png']})", "", f"*{figure['title']}.* {figure['caption']}", ""]
        if numbers:
            lines += ["| number | estimate | interval | unit | n | rows |", "|---|---|---|---|---|---|"]
            for number in numbers:
                source = number["sources"][0] if number["sources"] else None
                rows = f"{source['table']} of {source['step']}" if source else ""
                bounds = interval(number["low"], number["high"], number["unit"])
                fields = (
                    number["label"],
                    shown(number["estimate"], number["unit"]),
                    bounds,
                    shown_unit(number["unit"]),
                    str(number["n"] or ""),
                    rows,
                )
                lines.append("| " + " | ".join(_cell(cell) for cell in fields) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text that can neither break a table nor become markup."""
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("[", "\\["), ("`", "\\`")):
        text = text.replace(sign, safe)
    return " ".join(text.split())
