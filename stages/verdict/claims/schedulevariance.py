"""How far schedules move an arm's perplexity, beside how far seeds do."""

from __future__ import annotations

from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.verdict import Number

TABLE = "perplexity.parquet"


def variation(evidence: Evidence, arm: str) -> list[Number]:
    """Two standard deviations of an arm's nats per token, as relative perplexity: over schedules, and over the seeds of
    one schedule. Seeds share their base and data order over the schedules (crossed), so that of the schedules is the
    component of an analysis of variance, what seed and schedule leave unexplained taken off. Empty for fewer than two
    schedules or seeds on the same documents."""
    import numpy as np

    table, names = evidence.scheduled_perplexity, evidence.schedules_of(arm)
    table = table[table["arm"].isin(names)] if len(table) else table
    if not len(table):
        return []
    cells = table.pivot_table(index=["arm", "seed"], columns="doc_id", values="nll_sum", aggfunc="sum")
    documents = cells.dropna(axis=1).columns
    own = table[table["doc_id"].isin(documents)]
    sums = own.groupby(["arm", "seed"])[["nll_sum", "tokens"]].sum()
    nats = (sums["nll_sum"] / sums["tokens"]).unstack("seed").dropna(axis=1).to_numpy(float)  # [schedules, seeds]
    if min(nats.shape) < 2:
        return []
    schedules, seeds = nats.shape
    rest = nats - nats.mean(1, keepdims=True) - nats.mean(0, keepdims=True) + nats.mean()
    residual = float((rest**2).sum() / ((schedules - 1) * (seeds - 1)))
    between = max(0.0, float(nats.mean(1).var(ddof=1)) - residual / seeds)
    within = float(np.mean(nats.var(1, ddof=1)))
    sources = evidence.scheduled_sources(TABLE, "", *names)
    return [
        Number(
            f"schedule.spread.{what}.{arm}",
            f"{arm}: sd over {count} {what}",
            float(np.sqrt(variance)),
            n=count,
            unit="share of perplexity",
            method=f"{method}; {schedules} schedules x {seeds} seeds, {len(documents)} documents",
            sources=sources,
        ).of(kind="schedule_spread", arm=arm, of=what)
        for what, count, variance, method in (
            ("schedules", schedules, between, "component of a two-way analysis of variance"),
            ("seeds", seeds, within, "mean variance over the seeds of a schedule"),
        )
    ]
