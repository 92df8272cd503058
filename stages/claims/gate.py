"""The positive control: a study that finds no effect must show that it could have found one."""

from __future__ import annotations

from dataclasses import dataclass

from stages.claims.effects import percent
from stages.claims.evidence import Evidence
from stages.claims.verdict import Number, decided


@dataclass(frozen=True)
class Gate:
    """Whether one memory arm learned in the control what the local arm cannot. ``passed`` is None without a control."""

    arm: str
    passed: bool | None
    note: str


def control_gate(evidence: Evidence, arm: str) -> Gate:
    """Passed: at ``pairs`` = k the arm's accuracy, averaged over seeds, beats the local arm's by the margin, and the
    Wilson intervals of the pooled trials do not overlap."""
    from stages.statistics.intervals import wilson

    rule = evidence.rules.positive_control
    table = evidence.control_end()
    locals_ = evidence.arms_of_kind("local")
    if not len(table):
        return Gate(arm, None, "the positive control was not run")
    at_k = table[table["k"] == rule.pairs]
    ours, theirs = at_k[at_k["arm"] == arm], at_k[at_k["arm"].isin(locals_)]
    if not len(ours) or not len(theirs):
        absent = f"arm {arm}" if not len(ours) else "a local arm"
        return Gate(arm, None, f"the positive control has no rows for {absent} at k = {rule.pairs}")

    def pooled(rows: object) -> tuple[float, float, float]:
        trials = int(rows["trials"].sum())  # type: ignore[index]
        hits = round(float((rows["accuracy"] * rows["trials"]).sum()))  # type: ignore[index]
        found = wilson(hits, trials, level=1 - evidence.rules.alpha)
        return float(rows["accuracy"].mean()), found.low, found.high  # type: ignore[index]

    mine, low, _ = pooled(ours)
    other, _, high = pooled(theirs)
    passed = mine - other >= rule.margin and low > high
    seeds = ", ".join(percent(x, 0) for x in ours.sort_values("seed")["accuracy"])
    return Gate(
        arm,
        passed,
        f"positive control {'passed' if passed else 'failed'}: k = {rule.pairs} accuracy {percent(mine)} "
        f"(seeds: {seeds}) against {percent(other)} without memory",
    )


def behind_gate(evidence: Evidence, arm: str, row: Number) -> Number:
    """A refuting null result of ``arm`` counts only if its positive control passed."""
    if row.decision != "refuted":
        return row
    gate = control_gate(evidence, arm)
    if gate.passed:
        return decided(row, "refuted", f"{row.note} ({gate.note})", short=row.short)
    qualifier = "no positive control" if gate.passed is None else "positive control failed"
    return decided(row, "inconclusive", f"{row.note}, but {gate.note}", qualifier, f"{row.short}, but {qualifier}")
