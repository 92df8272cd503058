"""C2 perplexity-from-memory and C13 seeds: matched arms on the same documents.

Differences are taken in nats per token, sum over documents of nll divided by the sum of their tokens, and shown as
relative perplexity of the first arm against the second, exp(d) - 1: negative is better.
"""

from __future__ import annotations

import math
from dataclasses import replace

from stages.display.numbers import signed_percent
from stages.verdict.claims.bracket import FLOOR, behind, control_bracket, perplexity_bracket
from stages.verdict.claims.effects import Effect, effect, family, needed
from stages.verdict.claims.evidence import Evidence, Paired, corpus_filter, of_corpus, paired
from stages.verdict.claims.verdict import Finding, Number, conclude, decided, not_measured

TABLE = "perplexity.parquet"
UNIT = "relative perplexity"


def pair_of_arms(
    evidence: Evidence, arm: str, baseline: str, *, beyond: bool = False, corpus: str = ""
) -> Paired | None:
    """nats that ``arm`` saves per document: baseline - arm. ``beyond``: only positions after the first segment, where
    a memory can act. ``corpus``: documents of this source alone."""
    table = of_corpus(evidence.text, corpus)
    if not len(table):
        return None
    if beyond:
        table = table[table["bucket_start"] >= evidence.segment_length()]
    return paired(table[table["arm"] == baseline], table[table["arm"] == arm], "doc_id", "nll_sum", "tokens")


def relative(found: Effect, name: str, label: str, evidence: Evidence, *arms: str, beyond: bool = False) -> Number:
    """Saved nats per token as relative perplexity of the arm, with its rows."""
    rows = f"bucket_start >= {evidence.segment_length()}" if beyond else ""
    return found.saved(name, label + evidence.when, UNIT, evidence.text_sources(rows, *arms))


def difference(evidence: Evidence, arm: str, baseline: str, *, beyond: bool = False, corpus: str = "") -> Number | None:
    """Relative perplexity of ``arm`` against ``baseline``; None where they share no documents."""
    pair = pair_of_arms(evidence, arm, baseline, beyond=beyond, corpus=corpus)
    if pair is None:
        return None
    if corpus:
        label, name = f"{arm} against {baseline} on {corpus}", f"corpus.{corpus}.difference.{arm}.{baseline}"
        number = relative(effect(pair, evidence.rules), name, label, evidence, arm, baseline)
        rows = evidence.text_sources(corpus_filter(corpus), arm, baseline)
        return replace(number, sources=rows).of(kind="corpus_difference", arm=arm, other=baseline, corpus=corpus)
    where = "_beyond" if beyond else ""
    label = f"{arm} against {baseline}" + (" beyond the first segment" if beyond else "")
    found = effect(pair, evidence.rules)
    number = relative(found, f"perplexity{where}.{arm}.{baseline}", label, evidence, arm, baseline, beyond=beyond)
    return number.of(kind=f"difference{where}", arm=arm, other=baseline)


def against_base(evidence: Evidence, arm: str) -> Number | None:
    """Relative perplexity of ``arm`` against what it started from; None where the base was not scored."""
    table, base = evidence.text, evidence.base_text
    pair = paired(base, table[table["arm"] == arm], "doc_id", "nll_sum", "tokens") if len(table) else None
    if pair is None:
        return None
    found = effect(pair, evidence.rules)
    number = relative(found, f"perplexity.{arm}.base", f"{arm} against its base", evidence, arm)
    return number.of(kind="difference", arm=arm, other="base")


def undertrained(evidence: Evidence, *arms: str) -> str:
    """Why these arms say nothing yet: their held-out loss did not fall below their base's. Empty where it did."""
    for arm in arms:
        gain = against_base(evidence, arm)
        if gain is None:
            return "their base was not scored, so it is not known that training lowered their loss"
        if (gain.high or 0.0) >= 0:
            low, high = (signed_percent(end or 0.0) for end in (gain.low, gain.high))
            interval = f"{signed_percent(gain.estimate)} [{low}, {high}]"
            return f"the held-out loss of {arm} is not shown to lie below its base's ({interval} perplexity)"
    return ""


def perplexity_from_memory(evidence: Evidence) -> Finding:
    """C2: Holm over memory arms, each against local; every other arm is a competitor, printed beside."""
    if not evidence.memory_arms:
        return not_measured("the study has no arm with a compressive memory")
    local = evidence.arms_of_kind(FLOOR)[:1]
    if not local:
        return not_measured("the study has no arm of kind local: the same model trained without its memory")
    found: dict[str, Effect] = {}
    for arm in evidence.memory_arms:
        pair = pair_of_arms(evidence, arm, local[0])
        if pair is not None:
            found[arm] = effect(pair, evidence.rules)
    if not found:
        return not_measured("no evaluation of a memory arm and the local arm on the same documents and seeds")
    adjusted = family({arm: [one] for arm, one in found.items()})
    rows = []
    for arm, one in found.items():
        row = relative(one, f"perplexity.{arm}.{local[0]}", f"{arm} against {local[0]}", evidence, arm, local[0])
        row = row.of(kind="difference", arm=arm, other=local[0])
        rows.append(_judge(evidence, arm, local[0], row, one, adjusted[arm], len(found)))
    competitors = [name for name in evidence.arms if name not in (*evidence.memory_arms, *local)]
    beside = [difference(evidence, arm, other) for arm in found for other in competitors]
    beside += [difference(evidence, arm, local[0], beyond=True) for arm in found]
    beside += [against_base(evidence, arm) for arm in evidence.arms]
    return conclude(rows, [number for number in beside if number is not None])


def _judge(evidence: Evidence, arm: str, local: str, row: Number, found: Effect, p: float, arms: int) -> Number:
    rules, rule = evidence.rules, evidence.rules.perplexity_from_memory
    size = f"{signed_percent(row.estimate)} perplexity{evidence.when}"
    if found.seeds < rules.minimum_seeds:
        few = f"{found.seeds} of {rules.minimum_seeds} seeds"
        return decided(row, "inconclusive", f"{size}; {few}", "too few seeds", few)
    if lack := undertrained(evidence, arm, local):
        return decided(row, "inconclusive", f"{size}; {lack}", "undertrained", lack)
    if p < rules.alpha and found.exceeds:
        return decided(row, "supported", f"{size}, Holm p = {p:.2g}", short="lower, on the same documents")
    limit = -math.log1p(-rule.margin)
    if found.below(limit):
        excluded = f"an improvement of {rule.margin:.0%} is excluded (TOST)"
        row = decided(row, "refuted", f"{size}; {excluded}", short=excluded)
        return behind(row, control_bracket(evidence), perplexity_bracket(evidence, evidence.text))
    short = needed(found, rules, limit=limit, arms=arms, unit="documents")
    return decided(row, "inconclusive", f"{size}, Holm p = {p:.2g}; {short}", "underpowered", short)


def seeds(evidence: Evidence) -> Finding:
    """C13: the gap to the local arm against the margin of the study file; seeds are the unit, every one is printed."""
    from stages.statistics.tests import paired_t

    rules, rule = evidence.rules, evidence.rules.seeds
    local = evidence.arms_of_kind(FLOOR)[:1]
    if not evidence.memory_arms or not local:
        return not_measured("the study has no pair of a memory arm and the local arm")
    pairs = {arm: pair_of_arms(evidence, arm, local[0]) for arm in evidence.memory_arms}
    found = {arm: pair for arm, pair in pairs.items() if pair is not None}
    if not found:
        return not_measured("no evaluation of a memory arm and the local arm on the same documents and seeds")
    margin = -math.log1p(-rule.margin)
    effects = {arm: effect(pair, rules, null=margin) for arm, pair in found.items()}
    adjusted = family({arm: [one] for arm, one in effects.items()})
    rows = []
    for arm, pair in found.items():
        gaps, one, p = pair.by_seed, effects[arm], adjusted[arm]
        test = paired_t(gaps, level=1 - rules.alpha)
        each = ", ".join(
            f"{seed}: {signed_percent(math.expm1(-gap))}" for seed, gap in zip(pair.seeds, gaps, strict=True)
        )
        row = Number(
            f"seeds.{arm}.{local[0]}",
            f"{arm} against {local[0]}, seeds alone{evidence.when}",
            math.expm1(-test.estimate),
            math.expm1(-test.high) if math.isfinite(test.high) else None,
            math.expm1(-test.low) if math.isfinite(test.low) else None,
            test.n,
            UNIT,
            test.method,
            evidence.text_sources("", arm, local[0]),
        )
        worse = test.estimate < 0
        side = f"{local[0]} has the lower perplexity" if worse else f"{arm} has the lower perplexity"
        size = f"{signed_percent(row.estimate)} perplexity{evidence.when}, {side} (seeds {each})"
        if evidence.shared_base:
            size += "; all seeds start from one base, so another base is not covered"
        if len(gaps) < rules.minimum_seeds:
            few = f"{len(gaps)} of {rules.minimum_seeds} seeds"
            rows.append(decided(row, "inconclusive", f"{size}; {few}", "too few seeds", few))
        elif lack := undertrained(evidence, arm, local[0]):
            rows.append(decided(row, "inconclusive", f"{size}; {lack}", "undertrained", lack))
        elif p < rules.alpha and test.low > margin:
            short = f"{side}, by more than {rule.margin:.1%} beyond what seeds vary"
            rows.append(decided(row, "supported", f"{size}, Holm p = {p:.2g}", short=short))
        elif paired_t(gaps, null=margin, alternative="less").p < rules.alpha:  # one side of TOST
            short = f"a gap of {rule.margin:.1%} in favour of {arm} is excluded (TOST): {side}"
            row = decided(row, "refuted", f"{size}: {short}", short=short)
            rows.append(behind(row, control_bracket(evidence), perplexity_bracket(evidence, evidence.text)))
        else:
            short = needed(one, rules, limit=margin, arms=len(found), unit="documents")
            rows.append(decided(row, "inconclusive", f"{size}, Holm p = {p:.2g}; {short}", "underpowered", short))
    return conclude(rows)
