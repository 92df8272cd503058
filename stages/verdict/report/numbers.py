"""Every number of the report beside the verdicts', by section, each with the rows it came from.

A quantity is printed once: a number that a verdict rests on is not computed again, and two names for the same rows,
unit and estimate are one number with one interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stages.display.numbers import LARGEST, percent
from stages.verdict.claims import binding, mechanism, memory, perplexity, retrieval
from stages.verdict.claims.effects import accuracy, effect, proportion
from stages.verdict.claims.evidence import BEYOND, Evidence, corpus_filter, of_corpus, paired
from stages.verdict.claims.verdict import Number, Source, Verdict
from stages.verdict.report import calibration, probes, schedules, summaries, tuned

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CostRow:
    """What one arm costs: means over seeds of cost.json (states at batch 1, live segment counted apart)."""

    arm: str
    parameters: float
    flops_per_token: float
    tokens_per_s: float
    state_elements: float
    state_bytes: float
    live_kv_elements: float
    live_kv_bytes: float
    seeds: int
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Collected:
    """``sections``: numbers in the order of the page, each once. ``named``: every name, also those of quantities that
    another name already stands for."""

    sections: dict[str, list[Number]]
    named: dict[str, Number]


def collect(evidence: Evidence, verdicts: Iterable[Verdict]) -> Collected:
    """All numbers. Those that a verdict rests on come first and are not computed again."""
    own: dict[str, list[Number]] = {
        "calibration": calibration.numbers(evidence),
        "perplexity": perplexities(evidence),
        "perplexity differences": differences(evidence),
        "schedules": schedules.numbers(evidence),
        "perplexity by position": by_position(evidence),
        "perplexity by corpus": by_corpus(evidence),
        "passkey": passkey_by_length(evidence),
        "bindings": bindings(evidence),
        "tasks": tasks(evidence),
        "control": [n for arm in evidence.control_arms for n in binding.control_accuracies(evidence, arm)],
        "control learned": calibration.learning(evidence),
        "control by distance": calibration.distances(evidence),
        "control knocked out": calibration.knockouts(evidence),
        "capacity": capacity_points(evidence),
        "gates": gates(evidence),
        "probes": probes.numbers(evidence),
        "alignment": tuned.alignment_numbers(evidence),
        "fine-tuning": tuned.finetune_costs(evidence),
        "summarization": summaries.numbers(evidence),
        "cost": cost_numbers(evidence),
    }
    named: dict[str, Number] = {}
    known: dict[tuple[frozenset[Source], str, float], Number] = {}
    sections: dict[str, list[Number]] = {"verdicts": []}
    groups = [("verdicts", [number for verdict in verdicts for number in verdict.numbers]), *own.items()]
    for section, numbers in groups:
        for number in numbers:
            if number.name in named:
                continue
            quantity = (frozenset(number.sources), number.unit, round(number.estimate, 12))
            same = known.get(quantity) if number.sources and math.isfinite(number.estimate) else None
            named[number.name] = replace(same, about=number.about) if same else number
            if same is None:
                known[quantity] = number
                sections.setdefault(section, []).append(number)
    return Collected({name: numbers for name, numbers in sections.items() if numbers}, named)


def perplexities(evidence: Evidence, corpus: str = "") -> list[Number]:
    """Per arm: token perplexity, word perplexity (PG-19's convention) and bits per byte, over seeds and documents, all
    or those of one source."""
    table, before = of_corpus(evidence.text, corpus), f"corpus.{corpus}." if corpus else ""
    if not len(table):
        return []
    sizes = table.drop_duplicates(["arm", "seed", "doc_id"])[["arm", "seed", "doc_id", "words", "bytes"]]
    totals = table.groupby(["arm", "seed", "doc_id"], as_index=False)[["nll_sum", "tokens"]].sum().merge(sizes)
    found = []
    for arm in evidence.arms:
        rows = totals[totals["arm"] == arm]
        for unit, weight, scale, power in (
            ("nats per token", "tokens", 1.0, True),
            ("nats per word", "words", 1.0, True),
            ("bits per byte", "bytes", math.log(2), False),
        ):
            number = _level(evidence, rows, weight, scale)
            if number is None:
                continue
            if power:
                number = _exponential(number)
            name = {"tokens": "perplexity", "words": "word_perplexity", "bytes": "bits_per_byte"}[weight]
            what = {"tokens": "perplexity per token", "words": "perplexity per word", "bytes": "bits per byte"}[weight]
            sources = evidence.text_sources(corpus_filter(corpus), arm)
            found.append(
                replace(
                    number,
                    name=f"{before}{name}.{arm}",
                    label=f"{arm}{f' on {corpus}' if corpus else ''}: {what}{evidence.when}",
                    unit=unit if not power else what.split(" per ")[0] + "/" + what.split(" per ")[1],
                    sources=sources,
                )
            )
    return found


def _level(evidence: Evidence, rows: pd.DataFrame, weight: str, scale: float = 1.0) -> Number | None:
    """sum nll / sum weight of one arm with its hierarchical interval over seeds and documents."""
    from stages.statistics.intervals import hierarchical

    pair = paired(rows, rows, "doc_id", "nll_sum", weight)
    if pair is None or not pair.weights.sum() > 0:
        return None
    rules = evidence.rules
    found = hierarchical(pair.a, pair.weights * scale, level=1 - rules.alpha)
    return Number("", "", found.estimate, found.low, found.high, len(pair.items), "", found.method)


def _exponential(number: Number) -> Number:
    bounded = number.high is None or math.isfinite(number.high)  # of one document nothing is known but its number
    return replace(
        number,
        estimate=math.exp(min(number.estimate, LARGEST)),
        low=math.exp(min(number.low, LARGEST)) if number.low is not None and bounded else None,
        high=math.exp(min(number.high, LARGEST)) if number.high is not None and bounded else None,
    )


def differences(evidence: Evidence) -> list[Number]:
    """Every memory arm against every other arm, the others against local; all positions and after the first segment."""
    local = evidence.arms_of_kind("local")
    others = [arm for arm in evidence.arms if arm not in evidence.memory_arms]
    pairs = [(arm, other) for arm in evidence.memory_arms for other in others]
    pairs += [(arm, local[0]) for arm in others if local and arm not in local]
    pairs += [(a, b) for i, a in enumerate(evidence.memory_arms) for b in evidence.memory_arms[i + 1 :]]
    found = [perplexity.difference(evidence, a, b, beyond=beyond) for beyond in (False, True) for a, b in pairs]
    return [number for number in found if number is not None]


def by_position(evidence: Evidence, corpus: str = "") -> list[Number]:
    """Perplexity of every arm in every position bucket, and of the others against local, paired; on all documents or
    those of one source."""
    table = of_corpus(evidence.text, corpus)
    before, on = (f"corpus.{corpus}.", f" on {corpus}") if corpus else ("", "")
    about = {"corpus": corpus} if corpus else {}
    local = next(iter(evidence.arms_of_kind("local")), None)
    found = []
    for start, bucket in table.groupby("bucket_start") if len(table) else ():
        where = " and ".join(part for part in (f"bucket_start == {start}", corpus_filter(corpus)) if part)
        end = int(bucket["bucket_end"].max())
        for arm in evidence.arms:
            rows = bucket[bucket["arm"] == arm]
            number = _level(evidence, rows, "tokens")
            if number is None:
                continue
            found.append(
                replace(
                    _exponential(number),
                    name=f"{before}position.{arm}.{start}",
                    label=f"{arm}{on}, tokens {start:,} to {end:,}{evidence.when}",
                    unit="perplexity/token",
                    sources=evidence.text_sources(where, arm),
                ).of(kind=f"{'corpus_' if corpus else ''}position", arm=arm, start=int(start), **about)
            )
            pair = paired(bucket[bucket["arm"] == local], rows, "doc_id", "nll_sum", "tokens") if local else None
            if pair is None or arm == local:
                continue
            gap = perplexity.relative(
                effect(pair, evidence.rules),
                f"{before}position_gap.{arm}.{start}",
                f"{arm} against {local}{on}, tokens {start:,} to {end:,}",
                evidence,
                arm,
                str(local),
            )
            sources = evidence.text_sources(where, arm, str(local))
            kind = f"{'corpus_' if corpus else ''}position_gap"
            found.append(replace(gap, sources=sources).of(kind=kind, arm=arm, start=int(start), **about))
    return found


def by_corpus(evidence: Evidence) -> list[Number]:
    """Where documents of several sources are scored, each source by itself: every arm per token, word and byte, the
    memory arms against local and with their memory knocked out, paired, and all arms by position."""
    corpora = evidence.corpora if len(evidence.corpora) > 1 else []
    local = next(iter(evidence.arms_of_kind("local")), None)
    found: list[Number] = []
    for corpus in corpora:
        found += perplexities(evidence, corpus)
        others = [arm for arm in evidence.arms if arm != local] if local is not None else []
        found += [n for arm in others if (n := perplexity.difference(evidence, arm, str(local), corpus=corpus))]
        found += [
            cost[0]
            for arm in evidence.memory_arms
            for knockout in memory.KNOCKOUTS
            if (cost := memory.perplexity_cost(evidence, arm, knockout, corpus))
        ]
    for corpus in corpora:
        found += [*by_position(evidence, corpus), *memory_off(evidence, corpus)]
    return found


def memory_off(evidence: Evidence, corpus: str = "") -> list[Number]:
    """What closing every gate adds to the perplexity of the memory arms in each position bucket, on the documents of
    one source (all for "")."""
    table = of_corpus(evidence.knocked_perplexity, corpus)
    found = []
    for (arm, start), rows in table.groupby(["arm", "bucket_start"], sort=False) if len(table) else ():
        on, off = (rows[rows["knockout"] == knockout] for knockout in ("none", "gate_closed"))
        pair = paired(off, on, "doc_id", "nll_sum", "tokens")
        if pair is None:
            continue
        end = int(rows["bucket_end"].max())
        cost = effect(pair, evidence.rules)
        where = f"bucket_start == {start} and knockout in ['none', 'gate_closed']"
        number = cost.added(
            f"corpus.{corpus}.memory_off.{arm}.{start}",
            f"{arm}, memory off, on {corpus or 'all'}, tokens {start:,} to {end:,}",
            memory.PERPLEXITY_UNIT,
            evidence.sources(
                "ablate", perplexity.TABLE, " and ".join(filter(None, (where, corpus_filter(corpus)))), str(arm)
            ),
        )
        found.append(number.of(kind="corpus_memory_off", arm=str(arm), start=int(start), end=end, corpus=corpus))
    return found


def passkey_by_length(evidence: Evidence) -> list[Number]:
    """Passkey accuracy beyond the last segment per arm and length, and the answer's nll, the finer measure."""
    found = []
    for arm in evidence.arms:
        beyond, _ = retrieval.passkey(evidence, arm)
        if not len(beyond):
            continue
        for length, rows in beyond.groupby("length"):
            found.append(retrieval.at_length(evidence, arm, beyond, int(length)))
            if "answer_nll" in rows and rows["answer_nll"].notna().all():
                where = f"task == 'passkey' and length == {length} and {BEYOND}"
                sources = evidence.sources("evaluate", retrieval.TABLE, where, arm)
                label = f"{arm}, nll of the passkey at {length:,} tokens"
                found.append(_answer_nll(evidence, f"passkey_nll.{arm}.{length}", label, rows, sources))
    return found


def tasks(evidence: Evidence) -> list[Number]:
    """Score of every further task per arm, k and length, wherever its needles lie, and the right answer's nll."""
    table = evidence.tasks
    found = []
    for (task, k, length), cell in table.groupby(["task", "k", "length"], sort=False) if len(table) else ():
        several = table.loc[table["task"] == task, "k"].nunique() > 1
        guess = cell["chance"].iloc[0]
        for arm in evidence.arms:
            rows = cell[cell["arm"] == arm]
            if not len(rows):
                continue
            where = f"task == '{task}' and length == {length}" + (f" and k == {k}" if several else "")
            sources = evidence.sources("evaluate", "tasks.parquet", where, arm)
            name, label = f"{task}.{arm}.k{k}.{length}", f"{arm}, {task}{f', k = {k}' if several else ''}"
            scored = accuracy(
                f"task.{name}",
                f"{label} at {length:,} tokens",
                rows.assign(correct=rows["score"]),
                sources=sources,
                rules=evidence.rules,
            )
            found.append(scored if math.isnan(guess) else replace(scored, note=f"a guess: {percent(guess)}"))
            found.append(_answer_nll(evidence, f"task_nll.{name}", f"{label}, nll at {length:,} tokens", rows, sources))
    return found


def _answer_nll(evidence: Evidence, name: str, label: str, rows: pd.DataFrame, sources: tuple[Source, ...]) -> Number:
    from stages.statistics.intervals import clustered_mean

    rules = evidence.rules
    mean = clustered_mean(
        rows["answer_nll"].to_numpy(float),
        rows["item"].tolist(),
        level=1 - rules.alpha,
    )
    return Number(
        name,
        label,
        mean.estimate,
        mean.low,
        mean.high,
        mean.n,
        "nats/token",
        mean.method,
        sources,
    )


def bindings(evidence: Evidence) -> list[Number]:
    """Accuracy per k and arm; how often the answer is any needle's number (the set is known); and how often a rival's
    number drawn at random is given when the asked word is in no needle. At the longest length asked."""
    table = evidence.retrieval
    if not len(table):
        return []
    found = []
    for task, name, label, column in (
        ("bindings", "bindings", "bindings", "correct"),
        ("bindings", "bindings_set", "any needle's number", "in_set"),
        ("bindings_absent", "bindings_absent", "absent cue", "correct"),
    ):
        asked = table[(table["task"] == task) & table["beyond_local"].astype(bool)]
        if not len(asked) or column not in asked:
            continue
        length = int(asked["length"].max())
        asked = asked[asked["length"] == length].assign(correct=lambda rows, column=column: rows[column])
        for (arm, k), cell in asked.groupby(["arm", "rivals"], sort=False):
            where = f"task == '{task}' and length == {length} and rivals == {k} and {BEYOND}"
            sources = evidence.sources("evaluate", retrieval.TABLE, where, str(arm))
            number = accuracy(
                f"{name}.{arm}.k{k}", f"{arm}, {label}, k = {k}", cell, sources=sources, rules=evidence.rules
            )
            unit = "accuracy" if column == "correct" else "share of answers"
            found.append(replace(number, unit=unit).of(kind=name, arm=str(arm), k=int(k)))
    order = list(evidence.arms)
    return sorted(found, key=lambda number: order.index(number.text("arm")))


def capacity_points(evidence: Evidence) -> list[Number]:
    """50% and 95% points of argmax recall and of exact readout, by keys, feature map and rule."""
    table = evidence.table("capacity", mechanism.TABLE)
    if not len(table) or "keys" not in table:
        return []
    cells = table[["keys", "feature_map", "rule"]].drop_duplicates().itertuples(index=False)
    found = [
        mechanism.capacity_point(evidence, cell.keys, cell.rule, cell.feature_map, level, column)
        for cell in cells
        for column in ("accuracy", "exact")
        for level in dict.fromkeys((0.5, evidence.rules.capacity.accuracy))
    ]
    return [number for number in found if number is not None]


def gates(evidence: Evidence) -> list[Number]:
    """Share of heads whose gate moved to the memory (g > 0.9), to local attention (g < 0.1), and the mean gate."""
    table = evidence.gates
    found = []
    for arm in evidence.memory_arms if len(table) else ():
        rows = table[table["arm"] == arm]
        if not len(rows):
            continue
        for name, label, chosen in (
            ("memory", "heads with g > 0.9", rows["gate"] > 0.9),
            ("local", "heads with g < 0.1", rows["gate"] < 0.1),
        ):
            sources = evidence.sources("ablate", "gates.parquet", "", arm)
            share = proportion(
                f"gates.{name}.{arm}", f"{arm}: {label}", chosen.tolist(), sources=sources, rules=evidence.rules
            )
            found.append(replace(share, unit="share of heads"))
        found.append(
            Number(
                f"gates.mean.{arm}",
                f"{arm}: mean gate",
                float(rows["gate"].mean()),
                float(rows["gate"].min()),
                float(rows["gate"].max()),
                len(rows),
                "g",
                "mean, lowest and highest head",
                evidence.sources("ablate", "gates.parquet", "", arm),
            )
        )
    return found


def costs(evidence: Evidence) -> list[CostRow]:
    """One row per trained arm."""
    rows = []
    for arm in evidence.arms:
        found: list[dict[str, Any]] = [
            cost
            for name, seed in evidence.runs("pretrain")
            if name == arm and (cost := evidence.document(f"pretrain/{arm}/{seed}", "cost.json"))
        ]
        if found:
            fields = (
                "parameters",
                "flops_per_token",
                "tokens_per_s",
                "state_elements",
                "state_bytes",
                "live_kv_elements",
                "live_kv_bytes",
            )
            means = {name: sum(float(cost.get(name, math.nan)) for cost in found) / len(found) for name in fields}
            rows.append(
                CostRow(arm, **means, seeds=len(found), sources=evidence.sources("pretrain", "cost.json", "", arm))
            )
    return rows


def cost_numbers(evidence: Evidence) -> list[Number]:
    """The cost table as numbers."""
    units = {
        "parameters": "parameters",
        "flops_per_token": "FLOPs/token",
        "tokens_per_s": "tokens/s",
        "state_elements": "elements",
        "state_bytes": "bytes",
        "live_kv_elements": "elements",
        "live_kv_bytes": "bytes",
    }
    return [
        Number(
            f"cost.{name}.{row.arm}",
            f"{row.arm}: {name.replace('_', ' ')}",
            getattr(row, name),
            n=row.seeds,
            unit=unit,
            method="mean over seeds",
            sources=row.sources,
        )
        for row in costs(evidence)
        for name, unit in units.items()
    ]
