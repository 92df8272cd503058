"""Writing and reading back: the measurement of the capacity stage, batched over seeds and repeats.

Shapes: S seeds (the memory's batch), R repeats (its heads), n associations, d key size, F feature size, E value size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from model import memory
from model.allocator import keep_freed_memory
from model.config import FeatureMap, Rule
from stages.evidence.capacity import keys, reference
from stages.evidence.capacity.config import CapacityConfig, CapacityRule, Keys
from stages.stage import Context, Summary

RECALLED = 0.95  # of the headline: all but one in twenty


@dataclass(frozen=True)
class Readout:
    """How well each of n associations was read back, [S, R, n]: recalled by nearest value; |read - v|^2 / |v|^2."""

    recalled: Tensor
    error: Tensor

    def of(self, first: int) -> Readout:
        """The first ``first`` associations."""
        return Readout(self.recalled[:, :, :first], self.error[:, :, :first])


def write_all(
    state: memory.MemoryState,
    phi: Tensor,
    values: Tensor,
    rule: CapacityRule,
    segment: int,
    eps: float,
    stops: list[int],
) -> Iterator[tuple[int, memory.MemoryState]]:
    """Write the associations in order and yield the memory at each number of ``stops``.

    phi [S, R, n, F], values [S, R, n, E]. The linear rule does not depend on the grouping; ``delta`` writes ``segment``
    associations at a time, ``delta-token`` one.
    """
    plain: Rule = "linear" if rule == "linear" else "delta"
    step = 1 if rule == "delta-token" else segment
    written = 0
    for stop in stops:
        while written + step <= stop:
            part = slice(written, written + step)
            state = memory.write(state, phi[:, :, part], values[:, :, part], plain, eps)
            written += step
        if written < stop:  # a first segment that is not full: read here, but no part of what comes after
            part = slice(written, stop)
            yield stop, memory.write(state, phi[:, :, part], values[:, :, part], plain, eps)
        else:
            yield stop, state


def nearest(read: Tensor, candidates: Tensor) -> Tensor:
    """Index [S, R, n] of the candidate [S, R, m, E] nearest (Euclid) to each read vector [S, R, n, E]."""
    scores = read @ candidates.transpose(-1, -2) - 0.5 * candidates.square().sum(-1).unsqueeze(-2)
    return scores.argmax(-1)


def read_back(
    phi: Tensor, values: Tensor, rule: CapacityRule, segment: int, eps: float, stops: list[int]
) -> Iterator[tuple[int, Readout]]:
    """What the memory returns of everything written so far, at each number of ``stops``: phi and values as in
    ``write_all``, into an empty memory."""
    samples, repeats = phi.shape[:2]
    state = memory.empty(samples, repeats, phi.shape[-1], values.shape[-1], device=phi.device)
    for count, now in write_all(state, phi, values, rule, segment, eps, stops):
        wanted = values[:, :, :count]
        read = memory.read(now, phi[:, :, :count], eps)
        error = (read - wanted).double().square().sum(-1) / wanted.double().square().sum(-1)
        yield count, Readout(nearest(read, wanted) == torch.arange(count, device=phi.device), error)


def numbers(readout: Readout, tolerance: float) -> list[dict[str, float]]:
    """``accuracy``, ``error`` and ``exact`` per entry of the first axis."""
    recalled, exact = readout.recalled.double().mean((1, 2)), (readout.error < tolerance).double().mean((1, 2))
    columns = zip(recalled.tolist(), readout.error.mean((1, 2)).tolist(), exact.tolist(), strict=True)
    return [{"accuracy": a, "error": e, "exact": x} for a, e, x in columns]


class Measurements:
    """Rows of capacity.parquet and forgetting.parquet as they are measured."""

    def __init__(self, config: CapacityConfig) -> None:
        self.config = config
        self.capacity: list[dict[str, Any]] = []
        self.forgetting: list[dict[str, Any]] = []

    def add(self, kind: Keys, feature_map: FeatureMap, rule: CapacityRule, drawn: Tensor, stops: list[int]) -> None:
        """Write ``drawn`` keys [S or 1, R or 1, n, d] in order, and read back at each of ``stops``.

        Trained keys are a set: their capacity is that of all n, and the largest set's own writes are what its first
        segment is forgotten under.
        """
        trained = kind.startswith("learned")
        remembers = not trained or stops[-1] == self.config.learned.associations[-1]
        config, first = self.config, self.config.segment_length
        seeds = config.seeds[: len(drawn)] if trained else config.seeds
        values = keys.values(config, stops[-1])[: len(seeds)]
        phi = memory.feature_map(feature_map, drawn).expand(len(seeds), config.repeats, -1, -1)
        cell = {"keys": kind, "feature_map": feature_map, "rule": rule}
        for count, readout in read_back(phi, values, rule, first, config.eps, stops):
            bound = max(0.0, 1 - phi.shape[-1] / count)
            size = {"feature_dim": phi.shape[-1], "d_key": config.d_key, "associations": count, "error_bound": bound}
            for seed, row in zip(seeds, numbers(readout, config.tolerance), strict=True):
                if not trained or count == stops[-1]:
                    self.capacity.append(cell | size | {"seed": seed} | row)
            if remembers and count >= first:  # of the first segment's, with all values written since as rivals
                for seed, row in zip(seeds, numbers(readout.of(first), config.tolerance), strict=True):
                    kept = {"later": count - first, "seed": seed, "accuracy": row["accuracy"], "error": row["error"]}
                    self.forgetting.append(cell | kept)


def overwrite_rows(config: CapacityConfig, rule: CapacityRule) -> list[dict[str, Any]]:
    """All n keys written, then all again with new values: which of the 2 n values is nearest to what is read."""
    rows = []
    for count in config.overwrite_associations:
        old, new = keys.values(config, count), keys.values(config, count, keys.NEW_VALUES)
        phi = memory.feature_map(config.overwrite_feature_map, keys.random(config, count))
        twice, values = torch.cat([phi, phi], dim=2), torch.cat([old, new], dim=2)
        state = memory.empty(len(config.seeds), config.repeats, phi.shape[-1], config.d_value)
        segment = min(config.segment_length, count)  # the first write of a key and the second are never in one segment
        *_, (_, state) = write_all(state, twice, values, rule, segment, config.eps, [2 * count])
        found = nearest(memory.read(state, phi, config.eps), values)
        is_new = (found == torch.arange(count, 2 * count)).double().mean((1, 2))
        is_old = (found == torch.arange(count)).double().mean((1, 2))
        for index, seed in enumerate(config.seeds):
            rows.append(
                {
                    "feature_map": config.overwrite_feature_map,
                    "rule": rule,
                    "associations": count,
                    "seed": seed,
                    "new_value_accuracy": is_new[index].item(),
                    "old_value_accuracy": is_old[index].item(),
                }
            )
    return rows


def run(config: CapacityConfig, output: Path, context: Context) -> Summary:
    """Measure the whole grid and write the stage's four tables."""
    keep_freed_memory()
    tables, overwrites = Measurements(config), []
    fixed = [(m, r) for m in config.feature_maps for r in config.rules]
    trained = [
        (kind, feature_map, rule, count)
        for kind in config.keys
        if kind.startswith("learned")
        for feature_map, rule in config.trained()
        for count in config.learned.associations
    ]
    total = len(fixed) + len(config.rules) + len(trained)
    done = 0.0

    def step(more: float = 1.0) -> None:
        nonlocal done
        done += more
        context.progress(round(done, 2), total, "curves")

    context.progress(0, total, "curves")
    for feature_map, rule in fixed:
        if "random" in config.keys:
            drawn = keys.random(config, config.associations[-1])
            tables.add("random", feature_map, rule, drawn, list(config.associations))
        if "orthogonal" in config.keys:
            most = keys.most_orthogonal(feature_map, config.d_key)
            stops = sorted({n for n in config.associations if n < most} | {_whole(most, config)})
            apart = keys.orthogonal(feature_map, config.d_key, stops[-1])
            tables.add("orthogonal", feature_map, rule, apart[None, None], stops)
        step()
    for kind, feature_map, rule, count in trained:
        drawn = keys.learn(config, feature_map, rule, count, kind, lambda _: step(1 / config.learned.steps))
        tables.add(kind, feature_map, rule, drawn, [n for n in config.associations if n < count] + [count])
    for rule in config.rules:
        overwrites += overwrite_rows(config, rule)
        step()
    made = {
        "capacity": tables.capacity,
        "forgetting": tables.forgetting,
        "overwrite": overwrites,
        "reference": reference.rows(),
    }
    for name, rows in made.items():
        pq.write_table(pa.Table.from_pylist(rows), output / f"{name}.parquet")
    return Summary(
        headline(config, tables.capacity),
        {"curves": float(total), "seeds": float(len(config.seeds))},
        {name: f"{name}.parquet" for name in made},
    )


def _whole(most: int, config: CapacityConfig) -> int:
    """The largest number up to ``most`` that every rule can write."""
    return most if most <= config.segment_length else most // config.segment_length * config.segment_length


def headline(config: CapacityConfig, rows: list[dict[str, Any]]) -> str:
    """What the first feature map recalls and what it reads back exactly, per kind of keys: the largest measured number
    of associations at which, and below which, ``RECALLED`` of them are, under each rule."""
    feature_map = config.feature_maps[0]
    parts = []
    for kind in config.keys:
        of_kind = [r for r in rows if (r["keys"], r["feature_map"]) == (kind, feature_map)]
        if not of_kind:
            continue
        column = "exact" if kind == "learned-exact" else "accuracy"
        held = {rule: _held([r for r in of_kind if r["rule"] == rule], column) for rule in config.rules}
        most = max(r["associations"] for r in of_kind)
        by_rule = {rule: count for rule, count in held.items() if count is not None}
        if len(set(by_rule.values())) == 1:
            span = str(next(iter(by_rule.values())))
        else:
            span = ", ".join(f"{count} ({rule})" for rule, count in by_rule.items())
        verb = "read back exactly" if column == "exact" else "recalled"
        parts.append(f"{kind} keys {verb} up to {span} of {most}")
    dim = next(r["feature_dim"] for r in rows if r["feature_map"] == feature_map)
    return (
        f"{feature_map}, {dim} features, {RECALLED:.0%} of the associations: {'; '.join(parts)} "
        "(recall is by nearest value, which rank does not bound; exact readout ends at the number of features)"
    )


def _held(rows: list[dict[str, Any]], column: str) -> int | None:
    """The largest number of associations up to which the mean over seeds is at least ``RECALLED``; None: no rows."""
    if not rows:
        return None
    held = 0
    for count in sorted({r["associations"] for r in rows}):
        seeds = [r[column] for r in rows if r["associations"] == count]
        if sum(seeds) / len(seeds) < RECALLED:
            break
        held = count
    return held
