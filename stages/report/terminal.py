"""The verdict table as plain rows, for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VerdictRow:
    """One line of the verdict table. ``decision``: the bare verdict, for its colour; ``verdict``: with qualifier."""

    claim: str
    name: str
    decision: str
    verdict: str
    estimate: str
    n: str
    reason: str


def verdict_rows(report: Mapping[str, Any]) -> list[VerdictRow]:
    """Rows from the content of ``report.json``, in order C1 to C13."""
    from stages.report.document import interval, shown

    rows = []
    for verdict in report["verdicts"]:
        estimate = ""
        if verdict["estimate"] is not None:
            bounds = interval(verdict["low"], verdict["high"], verdict["unit"])
            unit = verdict["unit"].removesuffix(", elements")
            estimate = " ".join(part for part in (shown(verdict["estimate"], verdict["unit"]), bounds, unit) if part)
        rows.append(
            VerdictRow(
                verdict["claim"],
                verdict["name"],
                verdict["decision"],
                verdict["label"],
                estimate,
                str(verdict["n"] or ""),
                verdict["reason"],
            )
        )
    return rows
