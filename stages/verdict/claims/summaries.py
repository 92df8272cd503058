"""C10 summarization. What counts of a text decides nothing: people, a judge and entailment do, each where it is shown
to tell a summary of the text from one of another book.

Books in the training corpus are left out of what decides and are reported apart. The unit is the book: texts of one
book are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stages.display.numbers import percent, points
from stages.verdict.claims.effects import effect
from stages.verdict.claims.evidence import Evidence, Paired, paired
from stages.verdict.claims.verdict import Finding, Number, Source, VerdictDecision, decided, not_measured
from stages.verdict.claims.written import BASELINES, MODEL_METRICS, REFERENCE, Summaries

if TYPE_CHECKING:
    import pandas as pd

DECIDING = ("human", "judge", "nli")
"""What may decide, the weightiest first."""
OPEN = "Entailment (NLI), a judge or blind human comparison decide; none of them is part of this study"
SHORT = "no entailment, judge or human comparison in this study"


@dataclass(frozen=True)
class ArmComparison:
    """One arm against another by one source: the difference in its favour, what TOST needs, a doubled one-sided p."""

    number: Number
    narrow_high: float
    p: float
    seeds: int


def score(evidence: Evidence, system: str, metric: str, found: Summaries, *, trained: bool = False) -> Number | None:
    """Mean of a metric over seeds and texts, books drawn whole; of an arm or of summaries no model wrote. ``trained``:
    of the books in the training corpus instead of the others."""
    from stages.statistics.intervals import clustered_mean

    rows = found.rows(system, metric, trained=trained)
    if not len(rows):
        return None
    mean = clustered_mean(rows[metric].to_numpy(float), rows["book"].tolist(), level=1 - evidence.rules.alpha)
    where = f"task == '{found.task}' and level == '{found.level}'"
    label = f"{system}, {found.what}: {metric}" + (", books in the training corpus" if trained else "")
    name = f"rouge.{system}.{found.task}.{metric}" if found.first else f"summary.{system}.{found.what}.{metric}"
    unit = "words" if metric == "words" else f"{metric} {'F1' if metric.startswith('rouge') else 'share'}"
    unit += " (in training)" if trained else ""
    return Number(
        f"{name}.in_training" if trained else name,
        label,
        mean.estimate,
        mean.low,
        mean.high,
        mean.n,
        unit,
        mean.method,
        found.sources(evidence, system, metric, where),
    ).of(kind="in_training" if trained else "rouge", arm=system, task=found.what, metric=metric)


def no_evidence(found: Summaries, arm: str, metric: str) -> str:
    """Which summary that no model wrote does as well by this metric as the arm; "" where none does."""
    own = found.mean(arm, metric)
    better = [
        f"{baseline} has {percent(other)}"
        for baseline in BASELINES
        if own is not None and (other := found.mean(baseline, metric)) is not None and other >= own
    ]
    return f"no evidence: {', '.join(better)}" if better else ""


def summarization(evidence: Evidence) -> Finding:
    """C10: memory arms against the local arm on the same texts, by every source there is; ROUGE is printed only."""
    rule = evidence.rules.summarization
    found = Summaries.of(evidence)
    if found is None:
        return not_measured("the summarize stage is not part of this study")
    printed = _printed(evidence, found, rule.metric)
    known = [source for source in DECIDING if _measured(evidence, found, source)]
    if not known:
        gaps = [number for number in printed if " against " in number.label]
        shown = "; ".join(f"{gap.label}: {points(gap.estimate)} of {gap.unit.split()[0]}" for gap in gaps)
        lead, vain = printed[0] if printed else None, _in_vain(evidence)
        why = f"Entailment (NLI), a judge or blind human comparison decide; {vain}" if vain else OPEN
        reason = f"{shown}. {why}" if shown else why
        qualifier = "no comparison counts" if vain else "ROUGE only"
        return Finding("inconclusive", reason, qualifier, lead, tuple(printed), vain or SHORT)
    pairs = [(arm, other) for arm in evidence.memory_arms for other in evidence.arms_of_kind("local")]
    rows = {
        (source, arm): compared
        for source in known
        for arm, other in pairs
        if (compared := _compare(evidence, found, source, arm, other)) is not None
    }
    if not rows:
        return Finding(
            "inconclusive", "no memory arm was compared with a local one", "no comparison", None, tuple(printed)
        )
    checks = {source: _knows(evidence, found, source) for source in known}
    decisions = _decide(evidence, found, rows, checks)
    return _conclude(evidence, decisions, [*[c for c in checks.values() if c is not None], *printed])


def _in_vain(evidence: Evidence) -> str:
    """What a judge or people were asked that gave no comparison of texts that count; "" where nobody was."""
    said = []
    if quality := evidence.document("judge", "quality.json"):
        said.append(
            f"{quality.get('malformed', 0):,} of the judge's {quality.get('answers', 0):,} answers were unreadable"
        )
    if rows := len(evidence.table("judge", "comparisons.parquet")):
        said.append(f"{rows:,} of its comparisons are of books in the training corpus or of another kind of text")
    if rows := len(evidence.table("human", "comparisons.parquet")):
        said.append(f"{rows:,} of people's comparisons are of books in the training corpus or of another kind of text")
    return "; ".join(said)


def _decide(
    evidence: Evidence,
    found: Summaries,
    rows: dict[tuple[str, str], ArmComparison],
    checks: dict[str, Number | None],
) -> dict[tuple[str, str], Number]:
    """A decision of every source about every arm."""
    from stages.statistics.tests import holm

    rules = evidence.rules
    adjusted = dict(zip(rows, (float(p) for p in holm([row.p for row in rows.values()])), strict=True))
    made = {}
    for (source, arm), row in rows.items():
        number, margin = row.number, rules.summarization.margin
        beaten = _beats_baselines(evidence, found, source, arm)
        check = checks[source]
        gain = f"{points(number.estimate)} [{points(number.low or 0)}, {points(number.high or 0)}] by {source}"
        if row.seeds < rules.minimum_seeds:
            verdict: tuple[VerdictDecision, str, str] = ("inconclusive", f"{gain}; {row.seeds} seeds", "too few seeds")
        elif check is None or check.low is None or check.low <= 0:
            shown = "not asked" if check is None else f"{points(check.estimate)} for the right one"
            reason = f"{gain}, but {source} is not shown to tell a summary of the text from another book's ({shown})"
            verdict = ("inconclusive", reason, f"{source} cannot tell")
        elif adjusted[source, arm] < rules.alpha and number.estimate > 0:
            if beaten:
                verdict = ("inconclusive", f"{gain}, but {beaten}", "a baseline is as good")
            else:
                verdict = ("supported", f"{gain}, above lead and shuffled summaries", "")
        elif row.narrow_high < margin:
            verdict = ("refuted", f"{gain}: a gain of {points(margin)} is excluded", "")
        else:
            verdict = ("inconclusive", gain, "underpowered")
        decision, note, qualifier = verdict
        made[source, arm] = decided(number, decision, note, qualifier)
    return made


def _conclude(evidence: Evidence, decisions: dict[tuple[str, str], Number], others: list[Number]) -> Finding:
    """Supported: some arm by some source, and no source refutes that arm. Refuted: every arm by every source."""
    rows = list(decisions.values())
    split = None
    for arm in evidence.memory_arms:
        own = {source: number for (source, of), number in decisions.items() if of == arm}
        said = {number.decision for number in own.values()}
        if "supported" in said and "refuted" in said:
            split = arm
        elif "supported" in said:
            lead = next(number for number in own.values() if number.decision == "supported")
            return Finding("supported", _reason(rows), "", lead, (*rows, *others), f"{lead.label}: {lead.short}")
    if split is not None:
        summary = f"{split}: sources contradict each other"
        return Finding("inconclusive", _reason(rows), "sources disagree", rows[0], (*rows, *others), summary)
    if all(number.decision == "refuted" for number in rows):
        return Finding("refuted", _reason(rows), "", rows[0], (*rows, *others), f"{rows[0].label}: {rows[0].short}")
    open_ = next(number for number in rows if number.decision == "inconclusive")
    summary = f"{open_.label}: {open_.short}"
    return Finding("inconclusive", _reason(rows), open_.qualifier, open_, (*rows, *others), summary)


def _reason(rows: list[Number]) -> str:
    return "; ".join(f"{row.label}: {row.note}" for row in rows)


def _printed(evidence: Evidence, found: Summaries, metric: str) -> list[Number]:
    """Paired differences by what is counted or measured of the texts, then the arms' scores; none of them decides."""
    gaps, scores = [], []
    for arm in evidence.memory_arms:
        for other in evidence.arms_of_kind("local"):
            for name in (metric, *(m for m in MODEL_METRICS if m in found.metrics and m != "nli")):
                if (row := _metric_gap(evidence, found, name, arm, other)) is not None:
                    mark = no_evidence(found, arm, name)
                    gaps.append(replace(row.number, note=mark))
    for arm in evidence.arms:
        if (one := score(evidence, arm, metric, found)) is not None:
            scores.append(replace(one, note=no_evidence(found, arm, metric)))
    return [*gaps, *scores]


def _measured(evidence: Evidence, found: Summaries, source: str) -> bool:
    return "nli" in found.metrics if source == "nli" else bool(len(found.judged(evidence, source)))


def _compare(evidence: Evidence, found: Summaries, source: str, arm: str, other: str) -> ArmComparison | None:
    if source == "nli":
        return _metric_gap(evidence, found, "nli", arm, other)
    return _preference(evidence, found, source, arm, other)


def _metric_gap(evidence: Evidence, found: Summaries, metric: str, arm: str, other: str) -> ArmComparison | None:
    """Difference of means over the same texts; seeds and books are drawn, a book counting with its number of texts."""
    mine, theirs = found.rows(arm, metric), found.rows(other, metric)
    if other in BASELINES:  # one for all seeds
        theirs = theirs.drop(columns="seed").merge(mine[["seed"]].drop_duplicates(), how="cross")
    place = ["seed", "doc_id"]
    mine, theirs = mine.merge(theirs[place]), theirs.merge(mine[place])
    if not len(mine):
        return None
    pair = paired(_by_book(mine, metric), _by_book(theirs, metric), "book", metric, "texts")
    if pair is None:
        return None
    where = f"task == '{found.task}' and level == '{found.level}'"
    sources = (*found.sources(evidence, arm, metric, where), *found.sources(evidence, other, metric, where))
    name = (
        f"rouge.{arm}.{other}.{found.task}.{metric}" if found.first else f"summary.{arm}.{other}.{found.what}.{metric}"
    )
    unit = f"{metric} F1 difference" if metric.startswith("rouge") else f"{metric} share difference"
    return _of_pair(evidence, pair, name, f"{arm} against {other}, {found.what}", unit, sources)


def _of_pair(
    evidence: Evidence, pair: Paired, name: str, label: str, unit: str, sources: tuple[Source, ...]
) -> ArmComparison:
    one = effect(pair, evidence.rules)
    method = f"{one.method} (books)"
    number = Number(name, label, one.estimate, one.low, one.high, one.items, unit, method, sources)
    return ArmComparison(number, one.narrow_high, one.p, one.seeds)


def _preference(evidence: Evidence, found: Summaries, source: str, arm: str, other: str) -> ArmComparison | None:
    """Share won less one half, of an arm's summaries against another's. A judge compares every seed on every text; of
    people's comparisons the wider of the intervals over books and over seeds counts."""
    import numpy as np

    from stages.statistics.intervals import clustered_mean, nested_accuracy

    rows = found.judged(evidence, source, arm, other)
    if not len(rows):
        return None
    name, label = f"{source}.{arm}.{other}.{found.what}", f"{arm} against {other}, {found.what}, {source}"
    sources, unit = (evidence.source(source, "comparisons.parquet", found.filter(arm, other)),), "share won difference"
    if source == "judge":
        whole = rows.groupby(["seed", "book"]).agg(score=("gain", "sum"), texts=("gain", "size")).reset_index()
        zero = whole.assign(score=0.0)
        pair = paired(whole, zero, "book", "score", "texts")
        return None if pair is None else _of_pair(evidence, pair, name, label, unit, sources)
    gains, alpha = rows["gain"].to_numpy(float), evidence.rules.alpha
    by_seed = rows.groupby("seed")["score"].agg(["sum", "size"])

    def widest(level: float) -> tuple[float, float, str]:
        """Of people's comparisons, which are few: each seed has comparisons of its own."""
        both = [clustered_mean(gains + 0.5, rows["book"].tolist(), level=level)]
        if len(by_seed) > 1:
            both.append(nested_accuracy(by_seed["sum"], by_seed["size"], level=level))
        one = max(both, key=lambda e: e.high - e.low)
        return one.low - 0.5, one.high - 0.5, one.method

    low, high, method = widest(1 - alpha)
    p = next((float(level) for level in np.geomspace(1e-6, 1, 150) if widest(1 - level)[0] > 0), 1.0)
    number = Number(name, label, float(gains.mean()), low, high, len(rows), unit, f"{method}; books or seeds", sources)
    return ArmComparison(number, widest(1 - 2 * alpha)[1], p, len(by_seed))


def _knows(evidence: Evidence, found: Summaries, source: str) -> Number | None:
    """What the source says of a summary of the text against one of another book: the truth is known, and a source that
    misses it decides nothing. For people and judge the text's own reference, for entailment the text's beginning."""
    if source != "nli":
        row = _preference(evidence, found, source, REFERENCE, "shuffled")
        return (
            None if row is None else replace(row.number, label=f"the text's own reference against another's, {source}")
        )
    from stages.statistics.intervals import clustered_mean

    right, wrong = (found.rows(system, "nli").set_index("doc_id") for system in ("lead", "shuffled"))
    both = right.index.intersection(wrong.index)
    if not len(both):
        return None
    gap = right.loc[both, "nli"] - wrong.loc[both, "nli"]
    mean = clustered_mean(gap.to_numpy(float), right.loc[both, "book"].tolist(), level=1 - evidence.rules.alpha)
    sources = (evidence.source("rate", "ratings.parquet", "system in ['lead', 'shuffled']"),)
    name, label = f"nli.lead.shuffled.{found.what}", "the text's beginning against another's reference, nli"
    unit = "nli share difference"
    return Number(name, label, mean.estimate, mean.low, mean.high, mean.n, unit, mean.method, sources)


def _beats_baselines(evidence: Evidence, found: Summaries, source: str, arm: str) -> str:
    """The first of lead and shuffled that the arm is not shown to beat by this source, and by how much; "" for none."""
    for baseline in ("lead", "shuffled"):
        row = _compare(evidence, found, source, arm, baseline)
        if row is None:
            return f"it was not compared with {baseline} summaries"
        if row.number.low is None or row.number.low <= 0:
            return f"it is not above {baseline} summaries ({points(row.number.estimate)})"
    return ""


def _by_book(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    sums = rows.groupby(["seed", "book"])[metric].agg(["sum", "size"]).reset_index()
    return sums.rename(columns={"sum": metric, "size": "texts"})
