"""C11 alignment: what instruction tuning takes from a memory arm, on the items it was asked before.

A loss is taken against the local arm, which was aligned alike: of perplexity what the arm loses more than it; of
retrieval what is lost beyond the last segment, while local still finds what lies inside its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stages.display.numbers import percent, signed_percent
from stages.verdict.claims.bracket import FLOOR
from stages.verdict.claims.effects import Effect, accuracy, effect, family, needed
from stages.verdict.claims.evidence import BEYOND, WITHIN, Evidence, Paired, paired
from stages.verdict.claims.verdict import Finding, Number, VerdictDecision, decided, not_measured

if TYPE_CHECKING:
    import pandas as pd

MeasuredEffect = tuple[Number, Effect]
LOST, ADDED = "accuracy lost", "relative perplexity added"


def passkeys(table: pd.DataFrame, arm: str, *, beyond: bool, longest: int | None = None) -> pd.DataFrame:
    """Rows of ``arm``'s passkeys whose needle lies beyond, or inside, the last segment."""
    if not len(table):
        return table
    rows = table[(table["arm"] == arm) & (table["task"] == "passkey")]
    rows = rows[rows["beyond_local"].astype(bool) == beyond]
    return rows if longest is None else rows[rows["length"] <= longest]


def retrieval_lost(
    evidence: Evidence, arm: str, variant: str, *, beyond: bool = True, longest: int | None = None, null: float = 0.0
) -> MeasuredEffect | None:
    """Accuracy before less accuracy after, on the same passkeys; None where there are none."""
    before, after = (
        passkeys(table, arm, beyond=beyond, longest=longest)
        for table in (evidence.retrieval, evidence.variant(variant, "evaluate", "retrieval.parquet"))
    )
    pair = paired(before, after, "item", "correct") if len(before) and len(after) else None
    if pair is None:
        return None
    found = effect(pair, evidence.rules, null=null)
    where = f"task == 'passkey' and {BEYOND if beyond else WITHIN}"
    where += "" if longest is None else f" and length <= {longest}"
    place = "beyond" if beyond else "inside"
    name = f"align.retrieval_{place}.{arm}.{variant}"
    label = f"{arm} after {variant}: passkeys {place} the last segment"
    sources = evidence.variant_sources(variant, "evaluate", "retrieval.parquet", where, arm)
    return found.number(name, label, LOST, sources), found


def perplexity_added(
    evidence: Evidence, arm: str, variant: str, reference: str | None = None, *, null: float = 0.0
) -> MeasuredEffect | None:
    """Relative perplexity added after the first segment, on the same documents; with ``reference`` how much more than
    it was added to that arm's. None where there are no such rows."""
    pair = _added(evidence, arm, variant)
    if reference is not None:
        pair = _more(pair, _added(evidence, reference, variant))
    if pair is None:
        return None
    found = effect(pair, evidence.rules, null=null)
    against = "" if reference is None else f".{reference}"
    than = "" if reference is None else f", more than {reference}'s"
    arms = (arm,) if reference is None else (arm, reference)
    where = f"bucket_start >= {evidence.segment_length()}"
    name = f"align.perplexity.{arm}.{variant}{against}"
    label = f"{arm} after {variant}: perplexity beyond the first segment{than}"
    sources = evidence.variant_sources(variant, "evaluate", "perplexity.parquet", where, *arms)
    return found.added(name, label, ADDED, sources), found


def _added(evidence: Evidence, arm: str, variant: str) -> Paired | None:
    after, before = evidence.variant(variant, "evaluate", "perplexity.parquet"), evidence.perplexity
    if not len(after) or not len(before):
        return None
    start = evidence.segment_length()
    later, earlier = (table[(table["arm"] == arm) & (table["bucket_start"] >= start)] for table in (after, before))
    return paired(later, earlier, "doc_id", "nll_sum", "tokens")


def _more(one: Paired | None, other: Paired | None) -> Paired | None:
    """The difference of two differences, on the seeds and items of both."""
    if one is None or other is None:
        return None
    seeds = [seed for seed in one.seeds if seed in other.seeds]
    items = [item for item in one.items if item in set(other.items)]
    if not seeds or not items:
        return None

    def of(pair: Paired, side: np.ndarray) -> np.ndarray:
        rows, columns = [pair.seeds.index(seed) for seed in seeds], [pair.items.index(item) for item in items]
        chosen: np.ndarray = side[np.ix_(rows, columns)]
        return chosen

    a, b = of(one, one.a) + of(other, other.b), of(one, one.b) + of(other, other.a)
    return Paired(a, b, one.weights[[one.items.index(item) for item in items]], tuple(seeds), tuple(items))


def alignment(evidence: Evidence) -> Finding:
    """C11: every memory arm and variant that decides, Holm over all their losses. One loss refutes; supported where in
    none of them a loss of the margins is left."""
    rule = evidence.rules.alignment
    if not evidence.variants:
        return not_measured("the align section is not part of this study, so nothing is compared before and after")
    if not evidence.memory_arms:
        return not_measured("the study has no arm with a compressive memory")
    local = evidence.arms_of_kind(FLOOR)[:1]
    if not local:
        return not_measured("the study has no arm of kind local, the reference for what alignment costs any model")
    limit = math.log1p(rule.perplexity_margin)
    rows: dict[tuple[str, str], tuple[MeasuredEffect, MeasuredEffect]] = {}
    for variant in evidence.variants:
        if rule.variants is not None and variant not in rule.variants:
            continue
        for arm in evidence.memory_arms:
            lost = retrieval_lost(evidence, arm, variant, longest=rule.length, null=rule.margin)
            added = perplexity_added(evidence, arm, variant, local[0], null=limit)
            if lost is not None and added is not None:
                rows[arm, variant] = (lost, added)
    if not rows:
        return not_measured("no memory arm and local arm were evaluated on the same items before and after")
    tests = {
        f"{arm}/{variant}/{number}": [measured[1]]
        for (arm, variant), both in rows.items()
        for number, measured in enumerate(both)
    }
    adjusted = family(tests)
    judged = []
    for (arm, variant), (lost, added) in rows.items():
        p = (adjusted[f"{arm}/{variant}/0"], adjusted[f"{arm}/{variant}/1"])
        judged.append(_judge(evidence, arm, variant, local[0], lost, added, p, len(tests)))
    decision = _together(judged)
    lead = next((row for row in judged if row.decision == decision), judged[0])
    open_rows = [row for row in judged if row.decision == "inconclusive"]
    qualifier = open_rows[0].qualifier if decision == "inconclusive" else ""
    reason = "; ".join(f"{row.label}: {row.note}" for row in judged)
    shown = {row.name for row in judged}
    others = [number for both in rows.values() for number, _ in both if number.name not in shown]
    return Finding(decision, reason, qualifier, lead, (*judged, *others), f"{lead.label}: {lead.short}")


def _together(rows: Sequence[Number]) -> VerdictDecision:
    """A loss anywhere refutes (Holm has held the family); all must be kept to support, which needs no correction."""
    decisions = {row.decision for row in rows}
    if "refuted" in decisions:
        return "refuted"
    return "supported" if decisions == {"supported"} else "inconclusive"


def _judge(
    evidence: Evidence,
    arm: str,
    variant: str,
    local: str,
    lost: MeasuredEffect,
    added: MeasuredEffect,
    p: tuple[float, float],
    tests: int,
) -> Number:
    """The number that decides the row, or leaves it open: of text where that is the perplexity."""
    rules, rule = evidence.rules, evidence.rules.alignment
    (row, found), (text, nats) = lost, added
    had = accuracy("", "", passkeys(evidence.retrieval, arm, beyond=True, longest=rule.length), sources=(), rules=rules)
    note = (
        f"of {percent(had.estimate)} retrieved beyond the last segment {percent(row.estimate)} is lost, "
        f"{signed_percent(text.estimate)} perplexity against {local}'s change"
    )
    if found.seeds < rules.minimum_seeds:
        few = f"{found.seeds} of {rules.minimum_seeds} seeds"
        return decided(row, "inconclusive", f"{note}; {few}", "too few seeds", few)
    if p[1] < rules.alpha and nats.exceeds:
        short = f"perplexity beyond the first segment rises by more than {rule.perplexity_margin:.0%} against {local}"
        return decided(text, "refuted", f"{note}, Holm p = {p[1]:.2g}", short=short)
    if (had.low or 0.0) <= rule.margin:
        short = f"too little was retrieved before for a loss of {rule.margin:.0%} to show"
        return decided(row, "inconclusive", f"{note}: {short}", "underpowered", short)
    if p[0] < rules.alpha and found.exceeds:
        return _against_reference(evidence, row, found, variant, local, f"{note}, Holm p = {p[0]:.2g}")
    if found.below(rule.margin) and nats.below(math.log1p(rule.perplexity_margin)):
        short = (
            f"losses of {rule.margin:.0%} accuracy and of {rule.perplexity_margin:.0%} perplexity against {local} are "
            "excluded (TOST)"
        )
        return decided(row, "supported", f"{note}: {short}", short=short)
    if found.below(rule.margin):
        short = needed(nats, rules, limit=math.log1p(rule.perplexity_margin), arms=tests, unit="documents")
        return decided(text, "inconclusive", f"{note}; {short}", "underpowered", short)
    short = needed(found, rules, limit=rule.margin, arms=tests, unit="prompts")
    return decided(row, "inconclusive", f"{note}; {short}", "underpowered", short)


def _against_reference(evidence: Evidence, row: Number, found: Effect, variant: str, local: str, note: str) -> Number:
    """A loss of retrieval counts as one of the memory where the local arm keeps what it found inside its segment."""
    rules, rule = evidence.rules, evidence.rules.alignment
    inside = retrieval_lost(evidence, local, variant, beyond=False)
    rows = passkeys(evidence.retrieval, local, beyond=False)
    had = accuracy("", "", rows, sources=(), rules=rules) if len(rows) else None
    if inside is None or had is None or (had.low or 0.0) <= rule.margin:
        short = f"{local} found too little inside its own segment to tell the memory from the task"
        return decided(row, "inconclusive", f"{note}, but {short}", "no reference", short)
    kept = f"{local} loses {percent(inside[0].estimate)} of {percent(had.estimate)} inside its segment"
    if found.low <= max(0.0, inside[1].high) + rule.margin and inside[1].low > rule.margin:
        short = f"the local arm loses as much inside its segment ({percent(inside[0].estimate)}): the task was lost"
        return decided(row, "inconclusive", f"{note}, but {short}", "task lost", short)
    short = f"{percent(row.estimate, 0)} of passkeys beyond the last segment are lost; {kept}"
    return decided(row, "refuted", f"{note}; {kept}", short=short)
