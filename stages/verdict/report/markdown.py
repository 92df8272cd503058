"""report.md: calibration, the verdict table, the recipe, the main numbers with their commands, the figures linked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.verdict.report.document import SECTIONS
from stages.verdict.report.shown import interval, shown, shown_unit
from stages.verdict.report.terminal import verdict_rows

LONG = ("perplexity by position", "control by distance")  # in report.json and the page only


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown text."""
    lines = [f"# {_cell(report['title'])}", ""]
    if report["description"]:
        lines += [_cell(report["description"]), ""]
    counts = ", ".join(f"{count} {decision}" for decision, count in report["counts"].items() if count)
    first, *others = SECTIONS
    lines += _section(report, *first, text=report["calibration"])
    lines += [
        "",
        "## Verdicts",
        "",
        f"{counts}.",
        "",
        "| claim | verdict | estimate | n | why |",
        "|---|---|---|---|---|",
    ]
    for row in verdict_rows(report):
        cells = (f"{row.claim} {row.name}", f"**{row.decision}**", row.estimate, row.n, row.why)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    if report["recipe"]:
        lines += ["", "## Recipe", "", "| | base | arms |", "|---|---|---|"]
        lines += [f"| {_cell(row['what'])} | {_cell(row['base'])} | {_cell(row['arms'])} |" for row in report["recipe"]]
    for name, value in report["place"]["facts"]:
        lines += ["", f"*{_cell(name)}:* {_cell(value)}"]
    for section in others:
        lines += _section(report, *section)
    for page in report["pages"]:
        lines += ["", f"[{page['title']}]({report['place']['file'].replace('{}', page['path'])})"]
    return "\n".join(lines) + "\n"


def _section(
    report: Mapping[str, Any], section: str, title: str, names: tuple[str, ...], text: list[str] | tuple[str, ...] = ()
) -> list[str]:
    figures = [figure for figure in report["figures"] if figure["section"] == section]
    numbers = [n for name in names if name not in LONG for n in report["numbers"].get(name, ())]
    if not figures and not numbers and not text:
        return []
    lines = ["", f"## {title}", "", *(f"- {_cell(sentence)}" for sentence in text), ""]
    for figure in figures:
        image, data = (_file(report, figure[kind]) for kind in ("png", "data"))
        lines += [
            f"![{figure['title']}]({image})",
            "",
            f"*{figure['title']}.* {_cell(figure['caption'])} [Data]({data})",
        ]
        commands = [source["command"] for source in figure["sources"] if source["command"]]
        lines += (
            ["", _code(commands[0]) + (f" and {len(commands) - 1} more" if commands[1:] else ""), ""]
            if commands
            else [""]
        )
    if numbers:
        lines += ["| number | estimate | interval | unit | n | rows |", "|---|---|---|---|---|---|"]
    for number in numbers:
        commands = [source["command"] for source in number["sources"] if source["command"]]
        more = f" (and {len(commands) - 1} more)" if commands[1:] else ""
        fields = (
            number["label"],
            shown(number["estimate"], number["unit"]),
            interval(number["low"], number["high"], number["unit"]),
            shown_unit(number["unit"]),
            str(number["n"] or ""),
        )
        rows = _code(commands[0]) + more if commands else "computed from shapes"
        lines.append("| " + " | ".join([*(_cell(cell) for cell in fields), rows]) + " |")
    return lines


def _file(report: Mapping[str, Any], path: str) -> str:
    """Address of a file beside the report; its own path where the place gives none."""
    address = str(report["place"]["file"]).replace("{}", path)
    return address or path


def _cell(text: str) -> str:
    """Text that can neither break a table nor become markup."""
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("[", "\\["), ("`", "\\`")):
        text = text.replace(sign, safe)
    return " ".join(text.split())


def _code(command: str) -> str:
    """A command in code marks that nothing in it can end."""
    marks = "``" if "`" in command else "`"
    return f"{marks}{' '.join(command.split()).replace('|', chr(92) + '|')}{marks}"
