"""Trained memories read as they were not trained: what forced gates, the other rule and an emptied memory cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from stages.verdict.claims import perplexity
from stages.verdict.claims.effects import accuracy, effect
from stages.verdict.claims.evidence import Evidence, paired
from stages.verdict.claims.verdict import Number, Source

if TYPE_CHECKING:
    import pandas as pd

WORDS = {"rule_linear": "written by the linear rule", "rule_delta": "written by the delta rule"}


def numbers(evidence: Evidence) -> list[Number]:
    """Per memory arm and probe: perplexity against the model as it was trained, and passkeys beyond the last segment
    lost; perplexity of a memory emptied at every window against one carried on, by position; recall of item i after j
    segments; what each layer's memory is worth; how far gates moved in the last quarter of training."""
    text, asked, windows = (
        _clean(evidence, evidence.stacked("ablate", f"{name}.parquet"))
        for name in ("probe_perplexity", "probe_retrieval", "windows")
    )
    found: list[Number | None] = []
    for arm in evidence.memory_arms:
        rows = text[text["arm"] == arm]
        for probe in dict.fromkeys(rows["knockout"]) if len(rows) else ():
            found += [_text(evidence, arm, probe, rows), _passkeys(evidence, arm, probe, asked)]
        along = windows[windows["arm"] == arm]
        for start, part in along.groupby("bucket_start") if len(along) else ():
            found.append(_window(evidence, arm, int(start), part))
        found += [*_recall(evidence, arm), *_layers(evidence, arm)]
    found += [_settled(evidence, arm) for arm in evidence.arms]
    return [number for number in found if number is not None]


def _clean(evidence: Evidence, table: pd.DataFrame) -> pd.DataFrame:
    return table[~table["doc_id"].isin(evidence.contaminated)] if "doc_id" in table else table


def _said(probe: str) -> str:
    return WORDS.get(probe) or f"every gate at {probe.removeprefix('gate_')}"


def _text(evidence: Evidence, arm: str, probe: str, rows: pd.DataFrame) -> Number | None:
    intact = evidence.knocked_perplexity
    intact = intact[(intact["arm"] == arm) & (intact["knockout"] == "none")] if len(intact) else intact
    pair = paired(intact, rows[rows["knockout"] == probe], "doc_id", "nll_sum", "tokens")
    if pair is None:
        return None
    name, label = f"probe.{probe}.{arm}", f"{arm}, {_said(probe)}"
    number = perplexity.relative(effect(pair, evidence.rules), name, label, evidence, arm)
    return _with(number, evidence.sources("ablate", "probe_perplexity.parquet", f"knockout == '{probe}'", arm))


def _passkeys(evidence: Evidence, arm: str, probe: str, asked: pd.DataFrame) -> Number | None:
    intact = evidence.knocked_retrieval
    if not len(intact) or not len(asked):
        return None
    whole = intact[(intact["arm"] == arm) & (intact["knockout"] == "none") & (intact["task"] == "passkey")]
    rows = asked[(asked["arm"] == arm) & (asked["knockout"] == probe) & (asked["task"] == "passkey")]
    pair = paired(whole, rows, "item", "correct")
    if pair is None:
        return None
    where = f"knockout == '{probe}' and task == 'passkey'"
    return effect(pair, evidence.rules).number(
        f"probe_passkey.{probe}.{arm}",
        f"{arm}, passkeys, {_said(probe)}",
        "accuracy lost",
        evidence.sources("ablate", "probe_retrieval.parquet", where, arm),
    )


def _window(evidence: Evidence, arm: str, start: int, rows: pd.DataFrame) -> Number | None:
    carried, emptied = (rows[rows["memory"] == memory] for memory in ("carried", "emptied"))
    pair = paired(carried, emptied, "doc_id", "nll_sum", "tokens")
    if pair is None:
        return None
    end = int(rows["bucket_end"].max())
    label = f"{arm}, memory emptied at every window, tokens {start:,} to {end:,}"
    number = perplexity.relative(effect(pair, evidence.rules), f"window.{arm}.{start}", label, evidence, arm)
    number = _with(number, evidence.sources("ablate", "windows.parquet", f"bucket_start == {start}", arm))
    return number.of(kind="window", arm=arm, end=end)


def _recall(evidence: Evidence, arm: str) -> Iterator[Number]:
    table = evidence.stacked("ablate", "recall.parquet")
    table = table[table["arm"] == arm]
    for (items, asked, segments), rows in table.groupby(["items", "asked", "segments"]) if len(table) else ():
        where = f"items == {items} and asked == {asked} and segments == {segments}"
        number = accuracy(
            f"recall.{arm}.{items}.{asked}.{segments}",
            f"{arm}, item {asked + 1} of {items} after {segments} segments",
            rows,
            sources=evidence.sources("ablate", "recall.parquet", where, arm),
            rules=evidence.rules,
        )
        yield number.of(kind="recall", arm=arm, items=int(items), asked=int(asked), segments=int(segments))


def _layers(evidence: Evidence, arm: str) -> Iterator[Number]:
    table = evidence.stacked("ablate", "layers.parquet")
    table = table[table["arm"] == arm]
    for (knockout, layer), rows in table.groupby(["knockout", "layer"]) if len(table) else ():
        pair = paired(rows.assign(correct=rows["intact"]), rows, "item", "correct")
        if pair is None:
            continue
        found = effect(pair, evidence.rules)
        yield Number(
            f"layer.{knockout}.{layer}.{arm}",
            f"{arm}, {knockout} in layer {layer} alone",
            found.estimate,
            found.low,
            found.high,
            found.items,
            "accuracy lost",
            found.method,
            evidence.sources("ablate", "layers.parquet", f"knockout == '{knockout}' and layer == {layer}", arm),
        )


def _settled(evidence: Evidence, arm: str) -> Number | None:
    """Largest change of any gate over the last quarter of training: have they converged?"""
    table = evidence.gates_over_training
    rows = table[table["arm"] == arm] if len(table) else table
    if not len(rows):
        return None
    late = rows[rows["step"] >= 0.75 * rows["step"].max()]
    moved = late.groupby(["seed", "layer", "head"])["gate"].agg(lambda gate: gate.max() - gate.min())
    by_seed = moved.groupby("seed").max()
    return Number(
        f"gates.moved.{arm}",
        f"{arm}: largest change of a gate in the last quarter of training",
        float(by_seed.mean()),
        float(by_seed.min()),
        float(by_seed.max()),
        len(moved),
        "g",
        "mean, lowest and highest seed",
        evidence.sources("pretrain", "gates.parquet", "step >= 0", arm),
    )


def _with(number: Number, sources: tuple[Source, ...]) -> Number:
    return replace(number, sources=sources)
