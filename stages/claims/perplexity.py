"""C2 perplexity-from-memory and C13 seeds: matched arms on the same documents.

Differences are taken in nats per token, sum over documents of nll divided by the sum of their tokens, and shown as
relative perplexity, exp(d) - 1: negative is better than the baseline.
"""

from __future__ import annotations

import math

from stages.claims.effects import Effect, effect, holm, signed
from stages.claims.evidence import Evidence, Paired, paired
from stages.claims.gate import behind_gate
from stages.claims.verdict import Finding, Number, conclude, decided, not_measured

TABLE = "perplexity.parquet"
UNIT = "relative perplexity"


def pair_of_arms(evidence: Evidence, arm: str, baseline: str, *, beyond: bool = False) -> Paired | None:
    """nats of both arms per document; ``beyond``: only positions after the first segment, where memory can act."""
    table = evidence.perplexity
    if not len(table):
        return None
    if beyond:
        table = table[table["bucket_start"] >= evidence.segment_length()]
    return paired(table[table["arm"] == arm], table[table["arm"] == baseline], "doc_id", "nll_sum", "tokens")


def relative(found: Effect, name: str, label: str, evidence: Evidence, *arms: str, beyond: bool = False) -> Number:
    """An effect in nats per token as a number in relative perplexity, with its rows."""
    rows = f"bucket_start >= {evidence.segment_length()}" if beyond else ""
    return Number(
        name,
        label,
        math.expm1(found.estimate),
        math.expm1(found.low),
        math.expm1(found.high),
        found.items,
        UNIT,
        found.method,
        evidence.sources("evaluate", TABLE, rows, *arms),
    )


def difference(evidence: Evidence, arm: str, baseline: str, *, beyond: bool = False) -> Number | None:
    """Relative perplexity of ``arm`` against ``baseline``; None where they share no documents."""
    pair = pair_of_arms(evidence, arm, baseline, beyond=beyond)
    if pair is None:
        return None
    where = "_beyond" if beyond else ""
    label = f"{arm} against {baseline}" + (" beyond the first segment" if beyond else "")
    found = effect(pair, evidence.rules, greater=False)
    return relative(found, f"perplexity{where}.{arm}.{baseline}", label, evidence, arm, baseline, beyond=beyond)


def perplexity_from_memory(evidence: Evidence) -> Finding:
    """C2: Holm over memory arms x baselines; an arm must beat every primary baseline."""
    rules, rule = evidence.rules, evidence.rules.perplexity_from_memory
    baselines = evidence.arms_of_kind(*rule.baselines)
    if not evidence.memory_arms:
        return not_measured("the study has no arm with a compressive memory")
    if not baselines:
        return not_measured(f"the study has no arm of kind {', '.join(rule.baselines)} to compare with")
    tested: list[tuple[str, str, Effect]] = []
    for arm in evidence.memory_arms:
        for baseline in baselines:
            pair = pair_of_arms(evidence, arm, baseline)
            if pair is not None:
                tested.append((arm, baseline, effect(pair, rules, greater=False)))
    if not tested:
        return not_measured("no evaluation of a memory arm and a baseline on the same documents and seeds")
    rows: dict[str, list[Number]] = {}
    for (arm, baseline, found), p in zip(tested, holm([t[2].p for t in tested]), strict=True):
        row = relative(found, f"perplexity.{arm}.{baseline}", f"{arm} against {baseline}", evidence, arm, baseline)
        rows.setdefault(arm, []).append(_judge(evidence, arm, row, found, p))
    decisions = [_weakest(arm_rows) for arm_rows in rows.values()]
    rest = [row for arm_rows in rows.values() for row in arm_rows if row not in decisions]
    beyond = [difference(evidence, arm, baseline, beyond=True) for arm, baseline, _ in tested]
    return conclude(decisions, [*rest, *(number for number in beyond if number is not None)])


def _judge(evidence: Evidence, arm: str, row: Number, found: Effect, p: float) -> Number:
    rules, margin = evidence.rules, math.log1p(-evidence.rules.perplexity_from_memory.margin)
    size = f"{signed(row.estimate)} perplexity"
    if found.seeds < rules.minimum_seeds:
        few = f"{found.seeds} of {rules.minimum_seeds} seeds"
        return decided(row, "inconclusive", f"{size}; {few}", "too few seeds", few)
    if p < rules.alpha and found.high < 0:
        return decided(row, "supported", f"{size}, Holm p = {p:.2g}", short="lower, on the same documents")
    if found.low > 0:
        short = f"worse than {row.label.partition(' against ')[2]}, not better"
        return decided(row, "refuted", f"{size}: worse than the baseline, not better", short=short)
    if found.narrow_low > margin:
        excluded = f"an improvement of {evidence.rules.perplexity_from_memory.margin:.0%} is excluded (TOST)"
        return behind_gate(evidence, arm, decided(row, "refuted", f"{size}; {excluded}", short=excluded))
    note = f"{size}, Holm p = {p:.2g}; detectable at {rules.power:.0%} power: {math.expm1(found.detectable):.2%}"
    short = f"only a difference of {math.expm1(found.detectable):.1%} would have been detected"
    return decided(row, "inconclusive", note, "underpowered", short)


def _weakest(rows: list[Number]) -> Number:
    """An arm's own decision: its worst comparison (refuted before inconclusive before supported)."""
    return min(rows, key=lambda row: ("refuted", "inconclusive", "supported").index(str(row.decision)))


def seeds(evidence: Evidence) -> Finding:
    """C13: the gap to the first primary baseline against the run-to-run standard deviation, every seed printed."""
    from stages.statistics.tests import minimum_detectable, paired_t, tost

    rules = evidence.rules
    baselines = evidence.arms_of_kind(*rules.perplexity_from_memory.baselines)
    if not evidence.memory_arms or not baselines:
        return not_measured("the study has no pair of a memory arm and a primary baseline")
    pairs = [(arm, baselines[0], pair_of_arms(evidence, arm, baselines[0])) for arm in evidence.memory_arms]
    found = [(arm, baseline, pair) for arm, baseline, pair in pairs if pair is not None]
    if not found:
        return not_measured("no evaluation of a memory arm and a baseline on the same documents and seeds")
    tests = [paired_t(pair.by_seed, level=1 - rules.alpha) for _, _, pair in found]
    adjusted = holm([test.p if test.n > 1 else 1.0 for test in tests])
    rows = []
    for (arm, baseline, pair), test, p in zip(found, tests, adjusted, strict=True):
        gaps = pair.by_seed
        tokens = pair.weights.sum()
        run_to_run = math.sqrt(sum(float((side.sum(1) / tokens).var(ddof=1)) for side in (pair.a, pair.b)) / 2) if (
            len(gaps) > 1
        ) else math.inf  # fmt: skip
        each = ", ".join(f"{seed}: {signed(math.expm1(gap))}" for seed, gap in zip(pair.seeds, gaps, strict=True))
        row = Number(
            f"seeds.{arm}.{baseline}",
            f"{arm} against {baseline}",
            math.expm1(test.estimate),
            math.expm1(test.low) if math.isfinite(test.low) else None,
            math.expm1(test.high) if math.isfinite(test.high) else None,
            test.n,
            UNIT,
            test.method,
            evidence.sources("evaluate", TABLE, "", arm, baseline),
        )
        spread = f"{100 * run_to_run:.2f}%" if math.isfinite(run_to_run) else "unknown"
        size = f"gap {signed(row.estimate)}, run-to-run sd {spread} (seeds {each})"
        if len(gaps) < rules.minimum_seeds:
            few = f"{len(gaps)} of {rules.minimum_seeds} seeds"
            rows.append(decided(row, "inconclusive", f"{size}; {few}", "too few seeds", few))
        elif p < rules.alpha and abs(test.estimate) > run_to_run:
            better = f"in favour of {arm if test.estimate < 0 else baseline}"
            short = f"more than the run-to-run sd of {spread}, {better}"
            rows.append(decided(row, "supported", f"{size}, Holm p = {p:.2g}, {better}", short=short))
        elif run_to_run > 0 and tost(gaps, run_to_run, alpha=rules.alpha).equivalent:
            note = f"{size}: the gap lies within one standard deviation (TOST)"
            rows.append(decided(row, "refuted", note, short=f"within the run-to-run sd of {spread} (TOST)"))
        else:
            least = minimum_detectable(float(gaps.std(ddof=1)), len(gaps), alpha=rules.alpha, power=rules.power)
            note = f"{size}, Holm p = {p:.2g}; detectable at {rules.power:.0%} power: {math.expm1(least):.2%}"
            short = f"run-to-run sd {spread}; only a gap of {math.expm1(least):.1%} would have been detected"
            rows.append(decided(row, "inconclusive", note, "underpowered", short))
    return conclude(rows)
