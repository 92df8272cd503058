"""The tables of the positive control, by arm and seed, and the filters that select their rows.

Its arms are its own: a ceiling and a floor stand beside the study's arms with memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.verdict import Source

if TYPE_CHECKING:
    import pandas as pd

BASE, STEP, TABLE = "control-base", "control", "control.parquet"
CEILING, FLOOR = "full", "local"
FILTERS = {
    "pairs": "knockout == 'none' and between == 'filler' and step == step.max() and segments == segments.min()",
    "distance": "knockout == 'none' and step == step.max()",
    "learning": "knockout == 'none' and between == 'filler' and segments == segments.min()",
    "knockout": "step == step.max() and between == 'filler' and segments == segments.min()",
}
"""What each view of the control reads of every run's table; as in ``show --where``, max() and min() are the table's."""


def runs(evidence: Evidence) -> list[tuple[str, int]]:
    """(arm, seed) of every run of the control, arms in the order ceiling, floor, then by name."""
    found = [
        (arm, int(seed))
        for arm, seed in (
            step.split("/")[1:] for step in evidence.inputs if step.startswith(f"{STEP}/") and step.count("/") == 2
        )
    ]
    first = {CEILING: 0, FLOOR: 1}
    return sorted(set(found), key=lambda run: (first.get(run[0], 2), run[0], run[1]))


def arms(evidence: Evidence) -> list[str]:
    """Arms of the control in that order."""
    return list(dict.fromkeys(arm for arm, _ in runs(evidence)))


def cells(evidence: Evidence, view: str) -> pd.DataFrame:
    """arm, seed + control.parquet: the rows of one view of ``FILTERS``. ``distance``: of the one k that was asked at
    several distances."""
    import pandas as pd

    parts = []
    for arm, seed in runs(evidence):
        table = evidence.table(f"{STEP}/{arm}/{seed}", TABLE)
        if len(table) and {"knockout", "between", "segments"} <= set(table):
            part = table.query(FILTERS[view], engine="python")
            parts.append(part.assign(arm=arm, seed=seed))
    if not parts:
        return pd.DataFrame()
    found = pd.concat(parts, ignore_index=True)
    if view == "distance":
        spread = found.groupby("k")["segments"].nunique()
        found = found[found["k"] == spread.idxmax()].reset_index(drop=True)
    return found


def sources(evidence: Evidence, view: str, *chosen: str, extra: str = "") -> tuple[Source, ...]:
    """Provenance of the rows of one view, of all arms or those chosen."""
    where = FILTERS[view] + (f" and {extra}" if extra else "")
    return tuple(
        evidence.source(f"{STEP}/{arm}/{seed}", TABLE, where)
        for arm, seed in runs(evidence)
        if not chosen or arm in chosen
    )
