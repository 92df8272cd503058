"""C12 schedule: does what a memory arm gains outlast other schedules of the baseline's training?

A best schedule that is picked on the same runs it is then tested on looks better than it is, and other documents do
not help: the luck of a run shows on all of them. So nothing is picked. A gap *outlasts* where the arm does better than
each schedule of the baseline (an intersection-union test: the largest p value of all comparisons, no correction),
Holm over the arm's own schedules and the memory arms; it is *closed* where a gap of the margin is excluded against
some schedule of the baseline (TOST, Bonferroni over them) on every schedule of the arm. The best one is named and
printed, as a description.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.display.numbers import points, signed_percent
from stages.training.pretrain.schedule import SEPARATOR
from stages.verdict.claims import perplexity, retrieval
from stages.verdict.claims.bracket import Bracket, behind, control_bracket, perplexity_bracket, task_bracket
from stages.verdict.claims.effects import Effect, effect, needed
from stages.verdict.claims.evidence import BEYOND, Evidence, Paired, paired
from stages.verdict.claims.schedulevariance import variation
from stages.verdict.claims.verdict import Finding, Number, conclude, decided, not_measured

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]


def outlasting(above: Floats) -> Floats:
    """p values [..., candidates] that a candidate is above every baseline, Holm-adjusted over the candidates. above
    [..., candidates, baselines]: doubled one-sided p values of the single comparisons."""
    from stages.statistics.tests import holm

    return holm(above.max(-1))


def closed(below: Floats) -> Floats:
    """p values [..., candidates] that some baseline closes the candidate's gap to less than the margin. below
    [..., candidates, baselines]: one-sided p values of the single comparisons, Bonferroni over the baselines."""
    p: Floats = np.minimum(1.0, below.min(-1) * below.shape[-1])
    return p


@dataclass(frozen=True)
class Measure:
    """What gap is asked for: nats per token saved on the same documents, or share of passkeys found more on the same
    prompts. ``limit``: of the margin, in that unit."""

    name: str
    limit: float
    rows: pd.DataFrame
    filter: str
    item: str

    def pair(self, arm: str, baseline: str) -> Paired | None:
        """Values whose difference is positive where ``arm`` is ahead; None where they share no items."""
        a, b = (self.rows[self.rows["arm"] == name] for name in (arm, baseline))
        if self.name == "perplexity":
            return paired(b, a, self.item, "nll_sum", "tokens")
        return paired(a, b, self.item, "correct")

    def number(self, evidence: Evidence, arm: str, baseline: str, found: Effect) -> Number:
        """The gap as it is shown, with its rows."""
        name, label = f"schedule.{self.name}.{arm}.{baseline}", f"{arm} against {baseline}"
        of_text = self.name == "perplexity"
        table = perplexity.TABLE if of_text else retrieval.TABLE
        sources = evidence.scheduled_sources(table, self.filter, arm, baseline)
        if of_text:
            number = found.saved(name, label, perplexity.UNIT, sources)
        else:
            number = found.number(name, f"{label}, passkey", "accuracy above baseline", sources)
        return number.of(kind=f"schedule_{self.name}", arm=arm, other=baseline)

    def shown(self, number: Number) -> str:
        """The size of the gap in words."""
        size = signed_percent(number.estimate) if self.name == "perplexity" else points(number.estimate)
        return f"{size} perplexity" if self.name == "perplexity" else f"{size} of passkeys"


@dataclass(frozen=True)
class Gaps:
    """A memory arm's schedules (candidates) against the baseline's, in one measure; ``effects`` by (candidate,
    baseline)."""

    measure: Measure
    candidates: tuple[str, ...]
    baselines: tuple[str, ...]
    effects: dict[tuple[str, str], Effect]
    below: Floats  # [candidates, baselines]

    @property
    def above(self) -> Floats:
        """[candidates, baselines]."""
        return np.array([[self.effects[c, b].p for b in self.baselines] for c in self.candidates])

    def best(self, candidate: str) -> str:
        """The schedule of the baseline that leaves the candidate the smallest gap."""
        return min(self.baselines, key=lambda b: self.effects[candidate, b].estimate)

    @property
    def foremost(self) -> str:
        """The candidate with the largest gap to the best baseline."""
        return max(self.candidates, key=lambda c: self.effects[c, self.best(c)].estimate)


def schedule(evidence: Evidence) -> Finding:
    """C12: one row per memory arm; where several measures are asked, that of the measure that decides."""
    rule = evidence.rules.schedule
    arms = evidence.arms_of_kind(*rule.baselines)
    baselines = tuple(name for arm in arms for name in evidence.schedules_of(arm))
    if not evidence.schedules:
        return not_measured("the study trains every arm on one schedule (its section schedules names others)")
    if not evidence.memory_arms or not arms:
        return not_measured(f"the study has no pair of a memory arm and one of kind {' or '.join(rule.baselines)}")
    if len(baselines) == len(arms):
        return not_measured(f"no schedule is one of {', '.join(arms)}, whose training is in question")
    decided_by: dict[str, list[Number]] = {}
    ahead_by: dict[str, list[set[str]]] = {}
    others: list[Number] = []
    for name in rule.measures:
        found = {arm: _gaps(evidence, measure_of(evidence, name), arm, baselines) for arm in evidence.memory_arms}
        whole = {arm: gaps for arm, gaps in found.items() if gaps is not None}
        if not whole:
            return not_measured(f"no {name} of a memory arm and the baseline on the same items and seeds")
        every = outlasting(np.concatenate([gaps.above for gaps in whole.values()]))
        adjusted = iter(every)
        for arm, gaps in whole.items():
            p = {candidate: float(next(adjusted)) for candidate in gaps.candidates}
            row = _judge(evidence, arm, gaps, p, arms[0], len(every))
            decided_by.setdefault(arm, []).append(row)
            ahead_by.setdefault(arm, []).append({name for name in p if p[name] < evidence.rules.alpha})
            numbers = (gaps.measure.number(evidence, c, b, one) for (c, b), one in gaps.effects.items())
            others += [number for number in numbers if number.name != row.name]
    varied = [arm for arm in evidence.arms if len(evidence.schedules_of(arm)) > 1]
    others += [number for arm in varied for number in variation(evidence, arm)]
    whole_arms = {arm: rows for arm, rows in decided_by.items() if len(rows) == len(rule.measures)}
    if not whole_arms:
        return not_measured(f"no memory arm was measured in {' and '.join(rule.measures)}", others)
    rows = [_joined(rows, ahead_by[arm]) for arm, rows in whole_arms.items()]
    shown = {row.name for row in rows}
    beside = [row for rows_of in decided_by.values() for row in rows_of if row.name not in shown]
    return conclude(rows, beside + others)


def measure_of(evidence: Evidence, name: str) -> Measure:
    """The measure with its rows: scored documents, or passkeys beyond the last segment at the deciding length."""
    rule = evidence.rules.schedule
    if name == "perplexity":
        limit = -math.log1p(-rule.margin)
        return Measure(name, limit, evidence.scheduled_perplexity, "", "doc_id")
    table = evidence.scheduled_retrieval
    if not len(table):
        return Measure(name, rule.retrieval_margin, table, "", "item")
    rows = table[(table["task"] == "passkey") & table["beyond_local"].astype(bool)]
    length = evidence.rules.retrieval.length or int(rows["length"].max() if len(rows) else 0)
    where = f"task == 'passkey' and length == {length} and {BEYOND}"
    return Measure(name, rule.retrieval_margin, rows[rows["length"] == length], where, "item")


def _gaps(evidence: Evidence, measure: Measure, arm: str, baselines: Sequence[str]) -> Gaps | None:
    """All comparisons of one arm; None where one of them shares no items: nothing is decided on a part of them."""
    from stages.statistics.intervals import hierarchical

    candidates, effects, below = evidence.schedules_of(arm), {}, []
    for candidate in candidates if len(measure.rows) else ():
        for baseline in baselines:
            pair = measure.pair(candidate, baseline)
            if pair is None:
                return None
            effects[candidate, baseline] = effect(pair, evidence.rules)
            below.append(hierarchical(pair.differences, pair.weights).p(measure.limit, "less"))
    if not effects:
        return None
    table = np.array(below).reshape(len(candidates), len(baselines))
    return Gaps(measure, tuple(candidates), tuple(baselines), effects, table)


def _judge(evidence: Evidence, arm: str, gaps: Gaps, p: dict[str, float], baseline: str, family: int) -> Number:
    """``p``: of the arm's candidates, adjusted over the ``family`` of all arms'."""
    rules, rule, measure = evidence.rules, evidence.rules.schedule, gaps.measure
    trained = {name for name in (*gaps.candidates, *gaps.baselines) if _trained(evidence, name)}
    ahead = [c for c in gaps.candidates if p[c] < rules.alpha and c in trained]
    lead = min(ahead, key=lambda c: p[c]) if ahead else gaps.foremost
    best = gaps.best(lead)
    row = measure.number(evidence, lead, best, gaps.effects[lead, best])
    own = measure.shown(measure.number(evidence, arm, baseline, gaps.effects[arm, baseline]))
    size = (
        f"{measure.shown(row)} against the best of {len(gaps.baselines)} schedules ({best}); on its own schedule {own}"
    )
    size += _spread(evidence, baseline) if measure.name == "perplexity" else ""
    seeds = min(one.seeds for one in gaps.effects.values())
    if seeds < rules.minimum_seeds:
        few = f"{seeds} of {rules.minimum_seeds} seeds"
        return decided(row, "inconclusive", f"{size}; {few}", "too few seeds", few)
    if not trained.intersection(gaps.candidates):
        lack = f"no schedule of {arm} brought its held-out loss below its base's"
        return decided(row, "inconclusive", f"{size}; {lack}", "undertrained", lack)
    others = [name for name in gaps.baselines if SEPARATOR in name and name in trained]
    if ahead and len(others) >= rule.minimum:
        short = f"ahead of all {len(gaps.baselines)} schedules of the baseline"
        return decided(row, "supported", f"{size}: {short}, Holm p = {p[lead]:.2g}", short=short)
    if ahead:
        few = f"{len(others)} of {rule.minimum} other schedules of the baseline trained"
        return decided(row, "inconclusive", f"{size}; {few}", "too few schedules", few)
    if closed(gaps.below).max() < rules.alpha / len(rule.measures):
        return _refuted(evidence, row, gaps, size, gaps.effects[arm, baseline], own)
    unit = "documents" if measure.name == "perplexity" else "prompts"
    short = needed(gaps.effects[lead, best], rules, limit=measure.limit, arms=family, unit=unit)
    return decided(row, "inconclusive", f"{size}, Holm p = {p[lead]:.2g}; {short}", "underpowered", short)


def _refuted(evidence: Evidence, row: Number, gaps: Gaps, size: str, own: Effect, shown: str) -> Number:
    """A gap that was there on the schedules that all arms share, and is closed, needs no other proof that the
    instrument sees gaps."""
    margin = (
        f"{evidence.rules.schedule.margin:.0%}"
        if gaps.measure.name == "perplexity"
        else (f"{100 * evidence.rules.schedule.retrieval_margin:g} points")
    )
    excluded = f"a gap of {margin} to some schedule of the baseline is excluded (TOST)"
    if own.exceeds:
        short = f"{shown} on its own schedule, but {excluded}"
        return decided(row, "refuted", f"{size}; {excluded}", short=short)
    row = decided(row, "refuted", f"{size}; {excluded}", short=excluded)
    return behind(row, control_bracket(evidence), _bracket(evidence, gaps.measure))


def _bracket(evidence: Evidence, measure: Measure) -> Bracket:
    if measure.name == "perplexity":
        return perplexity_bracket(evidence, evidence.perplexity)
    rule = evidence.rules.retrieval
    return task_bracket(evidence, "passkey", int(measure.rows["length"].max()), (1,), rule.learned)


def _trained(evidence: Evidence, name: str) -> bool:
    """Did this training lower the held-out loss below that of the base it started from?"""
    table, base = evidence.scheduled_perplexity, evidence.base_perplexity
    if not len(table) or not len(base):
        return False
    pair = paired(base, table[table["arm"] == name], "doc_id", "nll_sum", "tokens")
    return pair is not None and effect(pair, evidence.rules).exceeds


def _spread(evidence: Evidence, baseline: str) -> str:
    """How far schedules, and seeds, move the baseline."""
    found = {number.text("of"): number.estimate for number in variation(evidence, baseline)}
    if not found:
        return ""
    return f"; schedules move {baseline} by {found['schedules']:.1%} (sd), seeds by {found['seeds']:.1%}"


def _joined(rows: Sequence[Number], ahead: Sequence[set[str]]) -> Number:
    """Of one arm's measures one row. ``ahead``: per measure its schedules that are ahead of all of the baseline's. What
    holds in each measure on another schedule is held by no model."""
    weakest = _weakest(rows)
    if weakest.decision != "supported" or set.intersection(*ahead):
        return weakest
    each = ", ".join(f"{row.text('kind').removeprefix('schedule_')} on {row.text('arm')}" for row in rows)
    lack = f"no one schedule is ahead in every measure ({each})"
    return decided(weakest, "inconclusive", f"{weakest.note}; {lack}", "no one schedule", lack)


def _weakest(rows: Sequence[Number]) -> Number:
    """Of one arm's measures: one that failed, else one that is open, else one that holds."""
    order = ("refuted", "inconclusive", "supported")
    return min(rows, key=lambda row: order.index(row.decision or "inconclusive"))
