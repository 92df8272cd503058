"""C10 summarization: ROUGE of held-out documents, clustered by document. ROUGE alone never settles the claim."""

from __future__ import annotations

from stages.display.numbers import points
from stages.verdict.claims.effects import effect
from stages.verdict.claims.evidence import Evidence, paired
from stages.verdict.claims.verdict import Finding, Number, not_measured

OPEN = "ROUGE only: embedding and NLI scores, LLM judge and blind human comparison are not part of this study"

SHORT = "no embedding or NLI scores, judge or human comparison in this study"


def rouge_scores(evidence: Evidence, arm: str, task: str, metric: str) -> Number | None:
    """Mean ROUGE F1 of one arm over seeds and documents; documents are resampled whole."""
    from stages.statistics.intervals import clustered_mean

    table = evidence.summaries
    if not len(table):
        return None
    rows = table[(table["arm"] == arm) & (table["task"] == task)]
    if not len(rows):
        return None
    rules = evidence.rules
    found = clustered_mean(
        rows[metric].to_numpy(float),
        rows["doc_id"].tolist(),
        level=1 - rules.alpha,
    )
    sources = evidence.sources("summarize", "summaries.parquet", f"task == '{task}'", arm)
    label = f"{arm}, {task}: {metric}"
    return Number(
        f"rouge.{arm}.{task}.{metric}",
        label,
        found.estimate,
        found.low,
        found.high,
        found.n,
        "F1",
        found.method,
        sources,
    ).of(kind="rouge", arm=arm, task=task, metric=metric)


def summarization(evidence: Evidence) -> Finding:
    """C10: memory arms against the local arm on the same documents; printed, never decided on ROUGE alone."""
    rule = evidence.rules.summarization
    table = evidence.summaries
    if not len(table):
        return not_measured("the summarize stage is not part of this study")
    tasks = list(dict.fromkeys(table["task"]))
    task = rule.task if rule.task in tasks else tasks[0]
    rows = table[table["task"] == task]
    gaps, numbers = [], []
    for arm in evidence.arms:
        score = rouge_scores(evidence, arm, task, rule.metric)
        if score is not None:
            numbers.append(score)
    for arm in evidence.memory_arms:
        for baseline in evidence.arms_of_kind("local"):
            pair = paired(
                rows[rows["arm"] == arm].groupby(["seed", "doc_id"], as_index=False)[rule.metric].mean(),
                rows[rows["arm"] == baseline].groupby(["seed", "doc_id"], as_index=False)[rule.metric].mean(),
                "doc_id",
                rule.metric,
            )
            if pair is None:
                continue
            found = effect(pair, evidence.rules)
            gaps.append(
                Number(
                    f"rouge.{arm}.{baseline}.{task}.{rule.metric}",
                    f"{arm} against {baseline}, {task}",
                    found.estimate,
                    found.low,
                    found.high,
                    found.items,
                    f"{rule.metric} F1 difference",
                    found.method,
                    evidence.sources("summarize", "summaries.parquet", f"task == '{task}'", arm, baseline),
                )
            )
    shown = "; ".join(f"{gap.label}: {points(gap.estimate)} {rule.metric}" for gap in gaps)
    lead = gaps[0] if gaps else (numbers[0] if numbers else None)
    reason = f"{shown}. {OPEN}" if shown else OPEN
    return Finding("inconclusive", reason, "ROUGE only", lead, (*gaps, *numbers), SHORT)
