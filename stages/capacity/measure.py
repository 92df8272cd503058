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
from model.config import FeatureMap, Rule
from stages.capacity import reference
from stages.capacity.stage import CapacityConfig, CapacityRule
from stages.stage import Context, Summary

# own streams for keys and values of a seed, the same for every feature map and rule
_KEYS, _VALUES, _NEW_VALUES = 1, 2, 3


@dataclass(frozen=True)
class Associations:
    """keys [S, R, n, d] Gaussian; values [S, R, n, E] of unit length."""

    keys: Tensor
    values: Tensor


def draw(config: CapacityConfig, count: int, values_stream: int = _VALUES) -> Associations:
    """``count`` associations of every seed and repeat; a smaller ``count`` gives a prefix."""

    def normal(stream: int, size: int) -> Tensor:
        per_seed = []
        for seed in config.seeds:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + stream)
            # drawn association by association, so that a longer sequence begins with the shorter one
            per_seed.append(torch.randn(count, config.repeats, size, generator=generator).transpose(0, 1))
        return torch.stack(per_seed)

    values = normal(values_stream, config.d_value)
    return Associations(config.key_scale * normal(_KEYS, config.d_key), values / values.norm(dim=-1, keepdim=True))


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


def capacity_rows(config: CapacityConfig, feature_map: FeatureMap, rule: CapacityRule) -> list[dict[str, Any]]:
    """One curve per seed: accuracy and mean squared error (per component) against associations stored."""
    stops = list(config.associations)
    drawn = draw(config, stops[-1])
    phi = memory.feature_map(feature_map, drawn.keys)
    state = memory.empty(len(config.seeds), config.repeats, phi.shape[-1], config.d_value)
    rows = []
    for count, now in write_all(state, phi, drawn.values, rule, config.segment_length, config.eps, stops):
        values = drawn.values[:, :, :count]
        read = memory.read(now, phi[:, :, :count], config.eps)
        right = (nearest(read, values) == torch.arange(count)).double().mean((1, 2))
        error = (read - values).double().square().mean((1, 2, 3))
        for index, seed in enumerate(config.seeds):
            rows.append(
                {
                    "feature_map": feature_map,
                    "feature_dim": phi.shape[-1],
                    "d_key": config.d_key,
                    "rule": rule,
                    "associations": count,
                    "seed": seed,
                    "accuracy": right[index].item(),
                    "mse": error[index].item(),
                }
            )
    return rows


def overwrite_rows(config: CapacityConfig, rule: CapacityRule) -> list[dict[str, Any]]:
    """All n keys written, then all again with new values: which of the 2 n values is nearest to what is read."""
    rows = []
    for count in config.overwrite_associations:
        old, new = draw(config, count), draw(config, count, _NEW_VALUES)
        phi = memory.feature_map(config.overwrite_feature_map, old.keys)
        twice, values = torch.cat([phi, phi], dim=2), torch.cat([old.values, new.values], dim=2)
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
    """Measure the whole grid and write the stage's three tables."""
    cells = [(feature_map, rule) for feature_map in config.feature_maps for rule in config.rules]
    total = len(cells) + len(config.rules)
    curves: list[dict[str, Any]] = []
    overwrites: list[dict[str, Any]] = []
    with torch.no_grad():
        for done, (feature_map, rule) in enumerate(cells):
            context.progress(done, total, "curves")
            curves += capacity_rows(config, feature_map, rule)
        for done, rule in enumerate(config.rules):
            context.progress(len(cells) + done, total, "curves")
            overwrites += overwrite_rows(config, rule)
    context.progress(total, total, "curves")
    tables = {"capacity": curves, "overwrite": overwrites, "reference": reference.rows()}
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), output / f"{name}.parquet")
    return Summary(
        _headline(config, curves),
        {"curves": float(len(cells)), "seeds": float(len(config.seeds))},
        {name: f"{name}.parquet" for name in tables},
    )


def _headline(config: CapacityConfig, curves: list[dict[str, Any]]) -> str:
    """Largest measured number of associations that the first feature map recalls to 95%, per rule."""
    first, parts = config.feature_maps[0], []
    for rule in config.rules:
        held = 0
        for count in config.associations:
            seeds = [
                r["accuracy"]
                for r in curves
                if (r["feature_map"], r["rule"], r["associations"]) == (first, rule, count)
            ]
            if sum(seeds) / len(seeds) < 0.95:
                break
            held = count
        parts.append(f"{rule} {held}")
    return f"{first}, d_key {config.d_key}: 95% recall up to {', '.join(parts)} associations"
