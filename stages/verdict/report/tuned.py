"""Before and after a further training, on the same items: what fine-tuning costs in perplexity, and what alignment
taught and changes in retrieval by length, tasks, perplexity by position, gates and what the memory is worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from stages.display.numbers import percent
from stages.statistics.intervals import clustered_mean
from stages.training.align.config import BEFORE
from stages.verdict.claims.alignment import ADDED, LOST, passkeys, perplexity_added, retrieval_lost
from stages.verdict.claims.bracket import FLOOR
from stages.verdict.claims.effects import effect
from stages.verdict.claims.evidence import BASE, BEYOND, Evidence, Paired, paired
from stages.verdict.claims.verdict import Number, Source

if TYPE_CHECKING:
    import pandas as pd

LISTED_HEADS = 32  # of a model, above which gates are printed by layer


def finetune_costs(evidence: Evidence) -> list[Number]:
    """Relative perplexity that fine-tuning adds to each arm and to the base, whole documents, and how the memory arms
    then stand to local: C2 compares them as they were before. Empty without any."""
    before = evidence.variant(BEFORE, "evaluate", "perplexity.parquet")
    found = []
    for arm in (BASE, *evidence.arms) if len(before) else ():
        after = evidence.base_perplexity if arm == BASE else _of(evidence.perplexity, arm)
        sources = evidence.variant_sources(BEFORE, "evaluate", "perplexity.parquet", "", arm)
        number = _text(evidence, _of(before, arm), after, f"finetune.{arm}", f"{arm}: perplexity by fine-tuning")
        found += [replace(number, sources=sources)] if number is not None else []
    for local in evidence.arms_of_kind(FLOOR)[:1] if len(before) else ():
        for arm in evidence.memory_arms:
            theirs, own = (_of(evidence.perplexity, name) for name in (local, arm))
            label = f"{arm} against {local}, after fine-tuning"
            number = _text(evidence, theirs, own, f"finetune.{arm}.{local}", label)
            sources = evidence.sources("evaluate", "perplexity.parquet", "", arm, local)
            found += [replace(number, sources=sources)] if number is not None else []
    return found


def alignment_numbers(evidence: Evidence) -> list[Number]:
    """All comparisons of every arm before and after every alignment, controls among them."""
    return [
        number
        for variant in evidence.variants
        for arm in evidence.arms
        for parts in (_learned, _retrieval, _tasks, _perplexity, _gates, _knockouts)
        for number in parts(evidence, arm, variant)
    ]


def _learned(evidence: Evidence, arm: str, variant: str) -> Iterator[Number]:
    """How much better the arm does at the end than at the beginning at what it is aligned on: where it learned nothing,
    that nothing was lost says nothing."""
    logs = _of(evidence.variant(variant, "align", "train_log.parquet"), arm)
    if not len(logs):
        return
    preferences = bool(logs["loss"].notna().any())
    column = "loss" if preferences else "answer_loss"
    firsts, lasts = [], []
    for _, log in logs.dropna(subset=[column]).groupby("seed"):
        part = max(1, len(log) // 10)
        firsts.append(float(log[column].iloc[:part].mean()))
        lasts.append(float(log[column].iloc[-part:].mean()))
    if firsts:
        was, became = sum(firsts) / len(firsts), sum(lasts) / len(lasts)
        what = "loss of preferences" if preferences else "nats per token of answers"
        label = f"{arm} after {variant}: {what}"
        taught = np.array(lasts) - np.array(firsts)
        mean = clustered_mean(taught, list(range(len(taught))), level=1 - evidence.rules.alpha)
        sources = evidence.variant_sources(variant, "align", "train_log.parquet", "", arm)
        note = f"{was:.3f} at first, {became:.3f} in the end"
        yield Number(
            f"align.learned.{arm}.{variant}",
            label,
            mean.estimate,
            mean.low,
            mean.high,
            n=len(firsts),
            unit="nats",
            method=f"last tenth of the steps less the first, mean over seeds, t with {len(firsts) - 1} df",
            sources=sources,
            note=note,
        )


def _retrieval(evidence: Evidence, arm: str, variant: str) -> Iterator[Number]:
    for beyond in (True, False):
        whole = retrieval_lost(evidence, arm, variant, beyond=beyond)
        if whole is not None:
            yield whole[0]
    before = passkeys(evidence.retrieval, arm, beyond=True)
    after = passkeys(evidence.variant(variant, "evaluate", "retrieval.parquet"), arm, beyond=True)
    for length in sorted(set(before["length"]) & set(after["length"])) if len(before) and len(after) else ():
        pair = paired(before[before["length"] == length], after[after["length"] == length], "item", "correct")
        if pair is not None:
            where = f"task == 'passkey' and {BEYOND} and length == {length}"
            name = f"align.length.{arm}.{variant}.{length}"
            label = f"{arm} after {variant}: passkeys beyond the last segment, {length:,} tokens"
            sources = evidence.variant_sources(variant, "evaluate", "retrieval.parquet", where, arm)
            yield _lost(evidence, pair, name, label, sources)


def _tasks(evidence: Evidence, arm: str, variant: str) -> Iterator[Number]:
    """Score lost in every further task."""
    before, after = _of(evidence.tasks, arm), _of(evidence.variant(variant, "evaluate", "tasks.parquet"), arm)
    for task in dict.fromkeys(before["task"]) if len(before) and len(after) else ():
        pair = paired(before[before["task"] == task], after[after["task"] == task], "item", "score")
        if pair is not None:
            name, label = f"align.task.{arm}.{variant}.{task}", f"{arm} after {variant}: {task}"
            sources = evidence.variant_sources(variant, "evaluate", "tasks.parquet", f"task == '{task}'", arm)
            yield _lost(evidence, pair, name, label, sources)


def _perplexity(evidence: Evidence, arm: str, variant: str) -> Iterator[Number]:
    """Beyond the first segment, and by position."""
    added = perplexity_added(evidence, arm, variant)
    if added is not None:
        yield added[0]
    before, after = _of(evidence.perplexity, arm), _of(evidence.variant(variant, "evaluate", "perplexity.parquet"), arm)
    for start in sorted(set(before["bucket_start"]) & set(after["bucket_start"])) if len(before) and len(after) else ():
        where = f"bucket_start == {start}"
        name = f"align.position.{arm}.{variant}.{start}"
        label = f"{arm} after {variant}: perplexity from token {start:,}"
        earlier, later = (table[table["bucket_start"] == start] for table in (before, after))
        number = _text(evidence, earlier, later, name, label)
        if number is not None:
            sources = evidence.variant_sources(variant, "evaluate", "perplexity.parquet", where, arm)
            yield replace(number, sources=sources)


def _gates(evidence: Evidence, arm: str, variant: str) -> Iterator[Number]:
    """How far the heads' gates moved: mean and largest, then each head's, or each layer's where there are many."""
    before, after = _of(evidence.gates, arm), _of(evidence.variant(variant, "ablate", "gates.parquet"), arm)
    if not len(before) or not len(after):
        return
    both = before.merge(after, on=["seed", "layer", "head"], suffixes=("_before", "_after"))
    moved = (both["gate_after"] - both["gate_before"]).abs()
    sources = evidence.variant_sources(variant, "ablate", "gates.parquet", "", arm)
    for name, what, value in (("mean", "mean", moved.mean()), ("most", "largest", moved.max())):
        yield Number(
            f"align.gates_{name}.{arm}.{variant}",
            f"{arm} after {variant}: {what} change of a head's gate",
            float(value),
            n=len(both),
            unit="g",
            method=f"{what} over heads and seeds",
            sources=sources,
        )
    few = len(both[["layer", "head"]].drop_duplicates()) <= LISTED_HEADS
    for place, rows in both.groupby(["layer", "head"] if few else ["layer"]):
        layer, *head = (int(number) for number in place)
        name = f"{layer}.{head[0]}" if few else str(layer)
        was, became = rows["gate_before"].mean(), rows["gate_after"].mean()
        yield Number(
            f"align.gate.{arm}.{variant}.{name}",
            f"{arm} after {variant}: gate of layer {layer}" + (f", head {head[0]}" if few else ""),
            float(became - was),
            n=len(rows),
            unit="g",
            method="mean over seeds" if few else "mean over heads and seeds",
            sources=sources,
            note=f"{was:.3f} before, {became:.3f} after",
        )


def _knockouts(evidence: Evidence, arm: str, variant: str) -> Iterator[Number]:
    """What each knock-out costs in retrieval after the alignment, with what it cost before."""
    table = _of(evidence.variant(variant, "ablate", "retrieval.parquet"), arm)
    earlier = _of(evidence.knocked_retrieval, arm)
    for knockout in (name for name in dict.fromkeys(table["knockout"]) if name != "none") if len(table) else ():
        pair, before = _knocked(table, knockout), _knocked(earlier, knockout)
        if pair is not None:
            where = f"{BEYOND} and knockout in ['none', '{knockout}']"
            name, label = f"align.knockout.{arm}.{variant}.{knockout}", f"{arm} after {variant}, {knockout}: retrieval"
            sources = evidence.variant_sources(variant, "ablate", "retrieval.parquet", where, arm)
            was = "" if before is None else f"{percent(effect(before, evidence.rules).estimate)} before"
            yield replace(_lost(evidence, pair, name, label, sources), note=was)


def _knocked(table: pd.DataFrame, knockout: str) -> Paired | None:
    """Answers to the same prompts without and with a knock-out; needles beyond the last segment."""
    if not len(table):
        return None
    rows = table[table["beyond_local"].astype(bool) & ~table["task"].str.endswith("_absent")]
    return paired(rows[rows["knockout"] == "none"], rows[rows["knockout"] == knockout], "item", "correct")


def _lost(evidence: Evidence, pair: Paired, name: str, label: str, sources: tuple[Source, ...]) -> Number:
    """Accuracy lost on the same prompts."""
    return effect(pair, evidence.rules).number(name, label, LOST, sources)


def _text(evidence: Evidence, before: pd.DataFrame, after: pd.DataFrame, name: str, label: str) -> Number | None:
    """Relative perplexity added on the same documents."""
    pair = paired(after, before, "doc_id", "nll_sum", "tokens") if len(before) and len(after) else None
    if pair is None:
        return None
    return effect(pair, evidence.rules).added(name, label, ADDED)


def _of(table: pd.DataFrame, arm: str) -> pd.DataFrame:
    return table[table["arm"] == arm] if len(table) else table
