"""C3 retrieval: one passkey, found at any position of a long prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.display.numbers import percent
from stages.verdict.claims.bracket import behind, ceiling_bracket, control_bracket, task_bracket
from stages.verdict.claims.effects import accuracy, needed_to_clear
from stages.verdict.claims.evidence import BEYOND, WITHIN, Evidence
from stages.verdict.claims.verdict import Finding, Number, conclude, decided, not_measured

if TYPE_CHECKING:
    import pandas as pd

TABLE = "retrieval.parquet"


def passkey(evidence: Evidence, arm: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Passkey prompts of one arm with the needle beyond, and within, the last segment."""
    table = evidence.retrieval
    if not len(table):
        return table, table
    rows = table[(table["arm"] == arm) & (table["task"] == "passkey")]
    beyond = rows["beyond_local"].astype(bool)
    return rows[beyond], rows[~beyond]


def at_length(evidence: Evidence, arm: str, rows: pd.DataFrame, length: int) -> Number:
    """Accuracy of one arm at one length, needle beyond the last segment."""
    condition = f"task == 'passkey' and length == {length} and {BEYOND}"
    return accuracy(
        f"passkey.{arm}.{length}",
        f"{arm} at {length:,} tokens",
        rows[rows["length"] == length],
        sources=evidence.sources("evaluate", TABLE, condition, arm),
        rules=evidence.rules,
    )


def reach(evidence: Evidence, arm: str, rows: pd.DataFrame) -> Number:
    """Effective length: the longest length, all shorter ones included, whose lower bound clears the threshold."""
    from stages.statistics.curves import effective_length

    rules, rule = evidence.rules, evidence.rules.retrieval
    found = effective_length(
        rows["length"],
        rows["correct"],
        seeds=rows["seed"],
        items=rows["item"],
        threshold=rule.threshold,
        level=1 - rules.alpha,
    )
    sources = evidence.sources("evaluate", TABLE, f"task == 'passkey' and {BEYOND}", arm)
    return Number(
        f"passkey_effective.{arm}",
        f"{arm}: longest prompt with {rule.threshold:.0%} accuracy",
        float(found.unbroken or 0),
        high=None,
        n=found.n,
        unit="tokens",
        method=f"{found.method}; tested up to {found.longest_tested:,}",
        sources=sources,
        note="none of the lengths tested" if found.unbroken is None else "",
    )


def retrieval(evidence: Evidence) -> Finding:
    """C3: accuracy at the deciding length, per memory arm, over all positions beyond the last segment."""
    if not evidence.memory_arms:
        return not_measured("the study has no arm with a compressive memory")
    rows, others = [], []
    for arm in evidence.memory_arms:
        beyond, within = passkey(evidence, arm)
        if not len(beyond):
            continue
        length = evidence.rules.retrieval.length or int(beyond["length"].max())
        at = beyond[beyond["length"] == length]
        if not len(at):
            return not_measured(f"no passkey prompt of {length:,} tokens was evaluated (claims.retrieval.length)")
        inside = None
        if len(within):
            inside = accuracy(
                f"passkey_within.{arm}",
                f"{arm}, needle inside the last segment",
                within,
                sources=evidence.sources("evaluate", TABLE, f"task == 'passkey' and {WITHIN}", arm),
                rules=evidence.rules,
            )
            others.append(inside)
        others.append(reach(evidence, arm, beyond))
        rows.append(_judge(evidence, arm, at_length(evidence, arm, beyond, length), at, inside, length))
    if not rows:
        return not_measured("no evaluation of a memory arm has passkey prompts beyond the last segment")
    return conclude(rows, others)


def _judge(evidence: Evidence, arm: str, row: Number, at: pd.DataFrame, inside: Number | None, length: int) -> Number:
    rules, rule = evidence.rules, evidence.rules.retrieval
    low, high = row.low or 0.0, 1.0 if row.high is None else row.high
    family = rules.model_copy(update={"alpha": min(rules.alpha, 2 * rules.alpha / len(evidence.memory_arms))})
    clears = (accuracy("", "", at, sources=(), rules=family).low or 0.0) >= rule.threshold  # one-sided, Bonferroni
    per_seed = at.groupby("seed")["correct"].mean()
    text = f"{percent(row.estimate)} [{percent(low)}, {percent(high)}], seeds " + ", ".join(
        percent(x, 0) for x in per_seed
    )
    if len(per_seed) < rules.minimum_seeds:
        few = f"{len(per_seed)} of {rules.minimum_seeds} seeds"
        return decided(row, "inconclusive", f"{text}; {few}", "too few seeds", few)
    if high < rule.threshold:
        if inside is None:
            note = f"{text}; no prompt has its needle inside the last segment, so a failure is not the memory's"
            return decided(row, "inconclusive", note, "task not learned", "no needle stood inside the last segment")
        if (inside.low or 0.0) < rule.learned:
            note = f"{text}; inside the last segment {percent(inside.estimate)}: the task itself was not learned"
            short = "the passkey is not found inside the last segment either"
            return decided(row, "inconclusive", note, "task not learned", short)
        if inside.high is not None and inside.high < rule.threshold:
            note = f"{text}; inside the last segment {percent(inside.estimate)}, below {rule.threshold:.0%} as well"
            short = f"inside the last segment it stays below {rule.threshold:.0%} as well"
            return decided(row, "inconclusive", note, "task not learned", short)
        short = f"below {rule.threshold:.0%}, though {percent(inside.estimate, 0)} inside the last segment"
        row = decided(row, "refuted", f"{text} stays below {rule.threshold:.0%}, {short}", short=short)
        found = task_bracket(evidence, "passkey", length, (1,), rule.learned)
        every = evidence.retrieval
        every = every[(every["task"] == "passkey") & (every["length"] == length) & every["beyond_local"].astype(bool)]
        return behind(row, control_bracket(evidence), found, ceiling_bracket(evidence, every, arm))
    failing = _failing(evidence, at)
    prompts = at["item"].nunique()
    if clears and not failing and prompts >= rule.minimum_trials:
        short = f"at least {rule.threshold:.0%} at {length:,} tokens, no part of the positions below it"
        return decided(row, "supported", f"{text}: {short}", short=short)
    if prompts < rule.minimum_trials:
        few = f"{prompts} of {rule.minimum_trials} prompts"
        return decided(row, "inconclusive", f"{text}; {few}", "underpowered", few)
    if failing:
        short = f"not at {', '.join(failing)} of the prompt"
        return decided(row, "inconclusive", f"{text}, but {short}", "not at every position", short)
    more = needed_to_clear(at, rules, rule.threshold)
    short = f"the interval straddles {rule.threshold:.0%}; {more}"
    return decided(row, "inconclusive", f"{text}; {short}", "underpowered", short)


def _failing(evidence: Evidence, at: pd.DataFrame) -> list[str]:
    """Parts of the positions whose upper bound lies below the threshold, as ranges of depth."""
    import numpy as np

    rules, rule = evidence.rules, evidence.rules.retrieval
    places = np.unique(at["depth"])
    edges = np.array_split(places, min(rule.positions, len(places)))
    found = []
    for part in edges:
        rows = at[at["depth"].between(part[0], part[-1])]
        strict = rules.model_copy(update={"alpha": rules.alpha / len(edges)})  # Bonferroni
        if (accuracy("", "", rows, sources=(), rules=strict).high or 0.0) < rule.threshold:
            found.append(f"{part[0]:.0%} to {part[-1]:.0%}" if len(part) > 1 else f"{part[0]:.0%}")
    return found
