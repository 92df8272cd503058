"""The report for its readers: report.json, report.md and report.html, made from the same plain data.

The stage writes them once, knowing neither where the store lies nor which runs were tracked. A published copy is
written again with both: its commands then work when pasted and its links open the runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.display.framed import framed
from stages.stage import Place
from stages.verdict.report.commands import with_commands
from stages.verdict.report.html import page
from stages.verdict.report.markdown import markdown


def write(report: Mapping[str, Any], folder: Path, place: Place) -> None:
    """Write the three files below ``folder``, where the figures and audit pages already are."""
    said = placed(report, place)
    (folder / "report.json").write_text(json.dumps(said, indent=1, allow_nan=False), encoding="utf-8")
    (folder / "report.md").write_text(markdown(said), encoding="utf-8")
    html = page(said, folder)
    (folder / "report.html").write_text(html if place.file else framed(html), encoding="utf-8")


def placed(report: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """``report`` with its place, and the commands that work there."""
    plain = asdict(place)
    plain |= {"runs": dict(place.runs), "facts": [list(fact) for fact in place.facts]}
    said: dict[str, Any] = with_commands({**report, "place": plain}, place.options)
    return said


def rewrite(folder: Path, place: Place) -> None:
    """The same of a report that lies in ``folder``."""
    write(json.loads((folder / "report.json").read_text(encoding="utf-8")), folder, place)
