"""C1 memory-is-used: what is lost when the memory is knocked out, on the same prompts and documents."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from stages.display.numbers import percent, signed_percent
from stages.verdict.claims.bracket import behind, control_bracket
from stages.verdict.claims.effects import Effect, accuracy, effect, family, needed
from stages.verdict.claims.evidence import BEYOND, Evidence, corpus_filter, of_corpus, paired
from stages.verdict.claims.verdict import Finding, Number, conclude, decided, not_measured

if TYPE_CHECKING:
    import pandas as pd

KNOCKOUTS = ("gate_closed", "reset", "swap", "zero_read")
RETRIEVAL_UNIT = "accuracy lost"
PERPLEXITY_UNIT = "relative perplexity added"


def _asked_beyond(table: pd.DataFrame) -> pd.DataFrame:
    """Prompts whose needle exists and lies outside the last segment."""
    return table[table["beyond_local"].astype(bool) & ~table["task"].str.endswith("_absent")]


def retrieval_cost(evidence: Evidence, arm: str, knockout: str, margin: float = 0.0) -> tuple[Number, Effect] | None:
    """Accuracy lost by a knock-out beyond the last segment, same prompts; None where there are no such rows."""
    table = evidence.knocked_retrieval
    if not len(table):
        return None
    table = _asked_beyond(table[table["arm"] == arm])
    intact, knocked = table[table["knockout"] == "none"], table[table["knockout"] == knockout]
    pair = paired(intact, knocked, "item", "correct")
    if pair is None:
        return None
    found = effect(pair, evidence.rules, null=margin)
    rows = f"{BEYOND} and knockout in ['none', '{knockout}']"
    name, label = f"knockout.retrieval.{arm}.{knockout}", f"{arm}, {knockout}: retrieval"
    sources = evidence.sources("ablate", "retrieval.parquet", rows, arm)
    return found.number(name, label, RETRIEVAL_UNIT, sources).of(
        kind="knockout", measure="retrieval", arm=arm, knockout=knockout
    ), found


def perplexity_cost(evidence: Evidence, arm: str, knockout: str, corpus: str = "") -> tuple[Number, Effect] | None:
    """Relative perplexity added by a knock-out after the first segment, same documents: all, or those of one source."""
    table = of_corpus(evidence.knocked_perplexity, corpus)
    if not len(table):
        return None
    table = table[(table["arm"] == arm) & (table["bucket_start"] >= evidence.segment_length())]
    intact, knocked = table[table["knockout"] == "none"], table[table["knockout"] == knockout]
    pair = paired(knocked, intact, "doc_id", "nll_sum", "tokens")
    if pair is None:
        return None
    found = effect(pair, evidence.rules)
    rows = f"bucket_start >= {evidence.segment_length()} and knockout in ['none', '{knockout}']"
    rows += f" and {corpus_filter(corpus)}" if corpus else ""
    name = f"corpus.{corpus}.knockout.{arm}.{knockout}" if corpus else f"knockout.perplexity.{arm}.{knockout}"
    label = f"{arm}, {knockout}: perplexity" + (f" on {corpus}" if corpus else "")
    sources = evidence.sources("ablate", "perplexity.parquet", rows, arm)
    return found.added(name, label, PERPLEXITY_UNIT, sources).of(
        kind="corpus_knockout" if corpus else "knockout", measure="perplexity", arm=arm, knockout=knockout
    ), found


def memory_is_used(evidence: Evidence) -> Finding:
    """C1: all deciding knock-outs per memory arm, Holm over arms; the others and the single heads are printed."""
    rule = evidence.rules.memory_is_used
    if not evidence.memory_arms:
        return not_measured("the study has no arm with a compressive memory")
    tested: dict[str, list[tuple[Number, Effect]]] = {}
    others: list[Number] = []
    for arm in evidence.memory_arms:
        lost = [retrieval_cost(evidence, arm, knockout, rule.margin) for knockout in rule.knockouts]
        complete = [one for one in lost if one is not None]
        if len(complete) == len(rule.knockouts):
            tested[arm] = complete
        others += [one[0] for one in complete]
        for knockout in KNOCKOUTS:
            added = perplexity_cost(evidence, arm, knockout)
            others += [added[0]] if added is not None else []
            if knockout not in rule.knockouts:
                cost = retrieval_cost(evidence, arm, knockout)
                others += [cost[0]] if cost is not None else []
        others += single_heads(evidence, arm)
    if not tested:
        names = ", ".join(rule.knockouts)
        return not_measured(f"no ablation of a memory arm has the knock-outs {names} beyond the last segment", others)
    adjusted = family({arm: [found for _, found in rows] for arm, rows in tested.items()})
    rows = [_judge(evidence, arm, costs, adjusted[arm], len(tested)) for arm, costs in tested.items()]
    return conclude(rows, [number for number in others if number.name not in {row.name for row in rows}])


def _judge(evidence: Evidence, arm: str, costs: list[tuple[Number, Effect]], p: float, arms: int) -> Number:
    rules, rule = evidence.rules, evidence.rules.memory_is_used
    row, found = min(costs, key=lambda cost: cost[1].estimate)
    table = evidence.knocked_retrieval
    intact = _asked_beyond(table[(table["arm"] == arm) & (table["knockout"] == "none")])
    skill = accuracy("", "", intact, sources=(), rules=rules)
    each = ", ".join(
        f"{knockout} {percent(number.estimate)}" for knockout, (number, _) in zip(rule.knockouts, costs, strict=True)
    )
    text = f"of {percent(skill.estimate)} retrieved beyond the last segment the knock-outs cost {each}"
    if found.seeds < rules.minimum_seeds:
        few = f"{found.seeds} of {rules.minimum_seeds} seeds"
        return decided(row, "inconclusive", f"{text}; {few}", "too few seeds", few)
    if p < rules.alpha and all(one.exceeds for _, one in costs):
        short = f"another document's memory costs it {percent(costs[rule.knockouts.index('swap')][0].estimate, 0)}"
        return decided(row, "supported", f"{text}, each more than {rule.margin:.0%}, Holm p = {p:.2g}", short=short)
    if (skill.low or 0.0) <= rule.margin:
        short = f"too little is retrieved beyond the last segment for a loss of {rule.margin:.0%} to show"
        return decided(row, "inconclusive", f"{text}: {short}", "underpowered", short)
    limit = math.log1p(rule.perplexity_margin)
    added = [perplexity_cost(evidence, arm, knockout) for knockout in rule.knockouts]
    harmless = all(one is not None and one[1].below(limit) for one in added)
    if harmless and all(one.below(rule.margin) for _, one in costs):
        also = ", ".join(signed_percent(one[0].estimate) for one in added if one is not None)
        short = f"costs less than {rule.margin:.0%} accuracy and {rule.perplexity_margin:.0%} perplexity (TOST)"
        return behind(
            decided(row, "refuted", f"{text} and {also} perplexity: {short}", short=short), control_bracket(evidence)
        )
    differ = [knockout for knockout, (_, one) in zip(rule.knockouts, costs, strict=True) if not one.exceeds]
    if len(differ) < len(costs):
        short = f"{', '.join(differ)} is not shown to cost, another knock-out does: no proof of what was stored"
        return decided(row, "inconclusive", f"{text}: {short}", "knock-outs differ", short)
    short = needed(found, rules, limit=rule.margin, arms=arms, unit="prompts")
    return decided(row, "inconclusive", f"{text}, Holm p = {p:.2g}; {short}", "underpowered", short)


def single_heads(evidence: Evidence, arm: str) -> list[Number]:
    """Share of heads whose own knock-out costs anything at all (p < alpha over prompts, Benjamini-Hochberg over the
    heads of all seeds), per kind of knock-out: is it the majority of them, or a few?"""
    from scipy.stats import binomtest

    from stages.statistics.tests import benjamini_hochberg

    table = evidence.heads
    if not len(table):
        return []
    numbers = []
    for knockout, rows in table[table["arm"] == arm].groupby("knockout"):
        tested = [
            (int((head["intact"] > head["correct"]).sum()), int((head["intact"] != head["correct"]).sum()))
            for _, head in rows.groupby(["seed", "layer", "head"])
        ]  # prompts lost, prompts that changed: McNemar's exact test is binomial on them
        adjusted = benjamini_hochberg([binomtest(lost, moved).pvalue if moved else 1.0 for lost, moved in tested])
        costly = sum(
            p < evidence.rules.alpha and 2 * lost > moved for p, (lost, moved) in zip(adjusted, tested, strict=True)
        )
        numbers.append(
            Number(
                f"heads.{arm}.{knockout}",
                f"{arm}, one head at a time, {knockout}: heads that cost retrieval",
                costly / len(tested),
                n=len(tested),
                unit="share of heads",
                method="exact McNemar per head and seed, Benjamini-Hochberg",
                sources=evidence.sources("ablate", "heads.parquet", f"knockout == '{knockout}'", arm),
            )
        )
    return numbers
