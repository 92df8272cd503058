"""The verdict table as plain rows, for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VerdictRow:
    """One line of the verdict table. ``decision``: the bare verdict; ``verdict``: with qualifier; ``why``: the
    qualifier and the reason in one line."""

    claim: str
    name: str
    decision: str
    verdict: str
    estimate: str
    n: str
    why: str


def verdict_rows(report: Mapping[str, Any]) -> list[VerdictRow]:
    """Rows from the content of ``report.json``, in order C1 to C13."""
    from stages.verdict.report.shown import interval, shown, shown_unit

    rows = []
    for verdict in report["verdicts"]:
        estimate = ""
        if verdict["estimate"] is not None:
            bounds = interval(verdict["low"], verdict["high"], verdict["unit"])
            unit = shown_unit(verdict["unit"]).removesuffix(", elements")
            estimate = " ".join(part for part in (shown(verdict["estimate"], verdict["unit"]), bounds, unit) if part)
        rows.append(
            VerdictRow(
                verdict["claim"],
                verdict["name"],
                verdict["decision"],
                verdict["label"],
                estimate,
                str(verdict["n"] or ""),
                ": ".join(part for part in (verdict["qualifier"], verdict["summary"]) if part),
            )
        )
    return rows


def control_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The positive control: a head row, then per arm its recall at each k, and 1/k (knowing the set of values without
    their binding). Empty where no control was run."""
    found: dict[tuple[str, int], float] = {}
    for group in report["numbers"].values():
        for number in group:
            about = number.get("about", {})
            if about.get("kind") == "control":
                found[about["arm"], about["k"]] = number["estimate"]
    if not found:
        return []
    ks = sorted({k for _, k in found})
    arms = sorted({arm for arm, _ in found}, key=lambda arm: (-found.get((arm, ks[0]), 0.0), arm))
    rows = [["positive control", *(f"k = {k}" for k in ks)]]
    rows += [[arm, *(f"{found[arm, k]:.1%}" if (arm, k) in found else "" for k in ks)] for arm in arms]
    return [*rows, ["1/k", *(f"{1 / k:.1%}" for k in ks)]]
