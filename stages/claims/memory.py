"""C1 memory-is-used (knock-outs) and C7 saturation (stability of the delta rule during training)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from stages.claims.effects import Effect, effect, holm, percent, signed
from stages.claims.evidence import BEYOND, Evidence, paired
from stages.claims.gate import behind_gate
from stages.claims.verdict import Finding, Number, Source, conclude, decided, not_measured

if TYPE_CHECKING:
    import pandas as pd

KNOCKOUTS = ("gate_closed", "reset", "swap", "zero_read")
RETRIEVAL_UNIT = "accuracy lost"
PERPLEXITY_UNIT = "relative perplexity added"


def _asked_beyond(table: pd.DataFrame) -> pd.DataFrame:
    """Prompts whose needle exists and lies outside the last segment."""
    return table[table["beyond_local"].astype(bool) & ~table["task"].str.endswith("_absent")]


def retrieval_cost(evidence: Evidence, arm: str, knockout: str, margin: float = 0.0) -> tuple[Number, Effect] | None:
    """Accuracy lost by a knock-out beyond the local window, same prompts; None where there are no such rows."""
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
    return Number(
        f"knockout.retrieval.{arm}.{knockout}",
        f"{arm}, {knockout}: retrieval",
        found.estimate,
        found.low,
        found.high,
        found.items,
        RETRIEVAL_UNIT,
        found.method,
        evidence.sources("ablate", "retrieval.parquet", rows, arm),
    ), found


def perplexity_cost(evidence: Evidence, arm: str, knockout: str) -> tuple[Number, Effect] | None:
    """Relative perplexity added by a knock-out after the first segment, same documents."""
    table = evidence.knocked_perplexity
    if not len(table):
        return None
    table = table[(table["arm"] == arm) & (table["bucket_start"] >= evidence.segment_length())]
    intact, knocked = table[table["knockout"] == "none"], table[table["knockout"] == knockout]
    pair = paired(knocked, intact, "doc_id", "nll_sum", "tokens")
    if pair is None:
        return None
    found = effect(pair, evidence.rules)
    rows = f"bucket_start >= {evidence.segment_length()} and knockout in ['none', '{knockout}']"
    return Number(
        f"knockout.perplexity.{arm}.{knockout}",
        f"{arm}, {knockout}: perplexity",
        math.expm1(found.estimate),
        math.expm1(found.low),
        math.expm1(found.high),
        found.items,
        PERPLEXITY_UNIT,
        found.method,
        evidence.sources("ablate", "perplexity.parquet", rows, arm),
    ), found


def memory_is_used(evidence: Evidence) -> Finding:
    """C1: the primary knock-out per memory arm, Holm over arms; the others are printed beside it."""
    rule = evidence.rules.memory_is_used
    if not evidence.memory_arms:
        return not_measured("the study has no arm with a compressive memory")
    tested = []
    others: list[Number] = []
    for arm in evidence.memory_arms:
        lost = retrieval_cost(evidence, arm, rule.knockout, rule.margin)
        added = perplexity_cost(evidence, arm, rule.knockout)
        if lost is not None:
            tested.append((arm, *lost, added))
        if added is not None:
            others.append(added[0])
        for knockout in KNOCKOUTS:
            if knockout != rule.knockout:
                found = (retrieval_cost(evidence, arm, knockout), perplexity_cost(evidence, arm, knockout))
                others += [one[0] for one in found if one is not None]
    if not tested:
        reason = f"no ablation of a memory arm has knock-out {rule.knockout!r} on prompts beyond the local window"
        return not_measured(reason, others)
    adjusted = holm([found.p for _, _, found, _ in tested])
    rows = [
        _judge(evidence, arm, row, found, p=p, added=added)
        for (arm, row, found, added), p in zip(tested, adjusted, strict=True)
    ]
    return conclude(rows, others)


def _judge(
    evidence: Evidence, arm: str, row: Number, found: Effect, *, p: float, added: tuple[Number, Effect] | None
) -> Number:
    from stages.statistics.intervals import wilson

    rules, rule = evidence.rules, evidence.rules.memory_is_used
    table = evidence.knocked_retrieval
    intact = _asked_beyond(table[(table["arm"] == arm) & (table["knockout"] == "none")])["correct"]
    skill = wilson(round(float(intact.sum())), len(intact), level=1 - rules.alpha)
    cost = f"knock-out costs {percent(row.estimate)} of retrieval (intact {percent(skill.estimate)})"
    if added is not None:
        cost += f" and {signed(added[0].estimate)} perplexity"
    if found.seeds < rules.minimum_seeds:
        few = f"{found.seeds} of {rules.minimum_seeds} seeds"
        return decided(row, "inconclusive", f"{cost}; {few}", "too few seeds", few)
    if p < rules.alpha and found.low > rule.margin:
        note = f"{cost}, more than the margin {rule.margin:.0%}, Holm p = {p:.2g}"
        return decided(row, "supported", note, short=f"without the memory more than {rule.margin:.0%} is lost")
    if skill.low <= rule.margin:
        note = f"{cost}; the intact arm retrieves too little beyond the window for a loss of {rule.margin:.0%} to show"
        short = f"too little is retrieved beyond the window for a loss of {rule.margin:.0%} to show"
        return decided(row, "inconclusive", note, "underpowered", short)
    limit = math.log1p(rule.perplexity_margin)
    harmless = added is not None and added[1].narrow_low > -limit and added[1].narrow_high < limit
    if found.narrow_high < rule.margin and harmless:
        note = f"{cost}: less than {rule.margin:.0%} and {rule.perplexity_margin:.0%} (TOST)"
        short = f"costs less than {rule.margin:.0%} accuracy and {rule.perplexity_margin:.0%} perplexity (TOST)"
        return behind_gate(evidence, arm, decided(row, "refuted", note, short=short))
    note = f"{cost}, Holm p = {p:.2g}; detectable at {rules.power:.0%} power: {rule.margin + found.detectable:.1%}"
    short = f"only a loss of {rule.margin + found.detectable:.0%} would have been detected"
    return decided(row, "inconclusive", note, "underpowered", short)


def saturation(evidence: Evidence) -> Finding:
    """C7: largest erase eigenvalue and growth of the memory norm over training, per delta arm; worst seed decides."""
    rules, rule = evidence.rules, evidence.rules.saturation
    arms = [arm for arm in evidence.memory_arms if evidence.arms[arm].rule == "delta"]
    table = evidence.training
    if not arms:
        return not_measured("the study has no arm with the delta rule")
    if not len(table) or "erase_lambda_max" not in table:
        return not_measured("no training log with memory monitors (erase_lambda_max, memory_norm)")
    rows, others = [], []
    for arm in arms:
        log = table[(table["arm"] == arm) & table["erase_lambda_max"].notna()].sort_values(["seed", "step"])
        if not len(log):
            continue
        peaks = log.groupby("seed")["erase_lambda_max"].max()
        growth = log.groupby("seed")["memory_norm"].apply(_growth)
        sources = evidence.sources("pretrain", "train_log.parquet", "erase_lambda_max.notna()", arm)
        row = _range(f"saturation.lambda.{arm}", f"{arm}: largest eigenvalue", peaks, "erase λ_max", sources)
        grown = _range(f"saturation.norm.{arm}", f"{arm}: growth of |M|", growth, "times", sources)
        lowest = log.groupby("seed")["z_min"].min() if "z_min" in log else None
        others.append(grown)
        if lowest is not None and lowest.notna().any():
            others.append(_range(f"saturation.z.{arm}", f"{arm}: smallest σ(q)z", lowest, "σ(q)z", sources))
        text = (
            f"λ_max {row.high:.3g} of {rule.erase_lambda_max:g}, norm grew {grown.high:.3g}x of {rule.norm_growth:g}x"
        )
        worst, most = row.high or 0.0, grown.high or 0.0
        if not math.isfinite(row.estimate) or worst > rule.erase_lambda_max or most > rule.norm_growth:
            rows.append(decided(row, "refuted", f"{text}: a limit is passed", short=f"a limit is passed: {text}"))
        elif len(peaks) < rules.minimum_seeds:
            few = f"{len(peaks)} of {rules.minimum_seeds} seeds"
            rows.append(decided(row, "inconclusive", f"{text}; {few}", "too few seeds", few))
        else:
            note = f"{text}, {len(log)} readings during training at its lengths"
            rows.append(decided(row, "supported", note, short=text))
    if not rows:
        return not_measured("the training logs of the delta arms hold no memory monitors")
    return conclude(rows, others)


def _growth(norm: pd.Series) -> float:
    """Largest reading over the median of the first tenth of them."""
    return float(norm.max() / norm.iloc[: max(1, len(norm) // 10)].median())


def _range(name: str, label: str, values: pd.Series, unit: str, sources: tuple[Source, ...]) -> Number:
    """Mean over seeds, with the smallest and largest seed as limits."""
    return Number(
        name, label, float(values.mean()), float(values.min()), float(values.max()), len(values), unit,
        "mean, lowest and highest seed", sources,
    )  # fmt: skip
