"""Simulated coverage of every interval of this package and size of every test: nominal against actual.

``python -m stages.statistics.coverage [--draws N]`` prints the tables of docs/statistics.md. Truths: an accuracy is the
mean over seeds and prompts, E expit(logit p + sd z); seeds differ by a normal ``sd`` on the logit scale.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from stages.statistics import curves, intervals, tests

Floats = NDArray[np.float64]

SEED_SDS = (0.0, 0.5)
SEEDS = (3, 5)
ITEMS = (24, 100, 500)
ACCURACIES = (0.05, 0.5, 0.9, 0.98)
SPREADS = ((0, 0, 1), (0, 1, 0), (0, 1, 1), (0.1, 0, 1), (0.5, 0, 1), (0.2, 1, 0), (1, 1, 1))  # sd of seed, item, rest
LENGTHS = np.array([128.0, 256, 512, 1024, 2048])


@dataclass(frozen=True)
class CoverageRow:
    """``actual``: share of ``draws`` in which the interval held the truth, or the test rejected a true null.

    ``seeds_differ``: a seed sd above 0. ``few``: fewer than five expected right or wrong answers per seed, where an
    interval can only be as fine as counts are.
    """

    name: str
    setting: str
    nominal: float
    actual: float
    draws: int
    seeds_differ: bool = False
    few: bool = False


def accuracies(draws: int) -> Iterator[CoverageRow]:
    """``accuracy`` (same prompts for every seed) and ``nested_accuracy`` (fresh ones), independent answers."""
    rng = np.random.default_rng(1)
    for sd in SEED_SDS:
        for seeds in SEEDS:
            for items in ITEMS:
                for p in ACCURACIES:
                    truth = _mean_accuracy(p, sd)
                    hits, crossed, nested = 0, 0, 0
                    for start in range(0, draws, 250):
                        size = min(250, draws - start)
                        chance = special.expit(special.logit(p) + sd * rng.standard_normal((size, seeds, 1)))
                        table = (rng.random((size, seeds, items), dtype=np.float32) < chance).astype(np.float64)
                        low, high = intervals.accuracy_many(table)
                        crossed += int(((low <= truth) & (truth <= high)).sum())
                        fresh = [intervals.nested_accuracy(hit, [items] * seeds) for hit in table.sum(2)[:100]]
                        nested += sum(not one.excludes(truth) for one in fresh)
                        hits += len(fresh)
                    setting = f"seed sd {sd:g}, {seeds} seeds, {items} prompts, p = {p:g}"
                    few = items * min(p, 1 - p) < 5
                    yield CoverageRow("accuracy", setting, 0.95, crossed / draws, draws, sd > 0, few)
                    yield CoverageRow("nested_accuracy", setting, 0.95, nested / hits, hits, sd > 0, few)


def prompts_in_common(draws: int) -> Iterator[CoverageRow]:
    """``accuracy`` where prompts differ in difficulty (sd 1 on the logit scale) for all seeds alike."""
    rng = np.random.default_rng(2)
    for seeds in SEEDS:
        for items in ITEMS[:2]:
            for p in (0.5, 0.9):
                eta = special.logit(p) + rng.standard_normal((draws, 1, items))
                table = (rng.random((draws, seeds, items)) < special.expit(eta)).astype(np.float64)
                truth = _mean_accuracy(p, 1.0)
                low, high = intervals.accuracy_many(table)
                held = float(((low <= truth) & (truth <= high)).mean())
                setting = f"prompt sd 1, {seeds} seeds, {items} prompts, p = {p:g}"
                yield CoverageRow("accuracy", setting, 0.95, held, draws, False, items * min(p, 1 - p) < 5)


def contrasts(draws: int) -> Iterator[CoverageRow]:
    """``hierarchical``: interval at a true difference of 0, size of its tests, and of equivalence at both margins."""
    rng = np.random.default_rng(3)
    for seeds in SEEDS:
        for items in (40, 200):
            weights = rng.lognormal(0, 0.7, items)
            for of_seed, of_item, rest in (
                (0, 0, 1),
                (0, 1, 0),
                (0, 1, 1),
                (0.1, 0, 1),
                (0.5, 0, 1),
                (0.2, 1, 0),
                (1, 1, 1),
            ):
                tables = of_seed * weights * rng.standard_normal((draws, seeds, 1))
                tables = tables + of_item * rng.standard_normal((draws, 1, items))
                tables = tables + rest * rng.standard_normal((draws, seeds, items))
                setting = f"sd of seed {of_seed:g}, item {of_item:g}, rest {rest:g}; {seeds} seeds, {items} items"
                differ = of_seed > 0
                low, high = intervals.hierarchical_many(tables, weights)
                yield CoverageRow(
                    "hierarchical", setting, 0.95, float(((low <= 0) & (high >= 0)).mean()), draws, differ
                )
                for side in ("two-sided", "greater", "less"):
                    p = intervals.hierarchical_p_many(tables, weights, alternative=side)
                    yield CoverageRow(
                        f"test of hierarchical, {side}", setting, 0.05, float((p < 0.05).mean()), len(p), differ
                    )
                # a true difference of 0 is on the edge of the margins (0, wide) and (-wide, 0)
                low, high = intervals.hierarchical_many(tables, weights, level=0.9)
                wide = 100.0 * float(np.abs(tables).max())
                for edge, inside in (("lower", (low > 0) & (high < wide)), ("upper", (low > -wide) & (high < 0))):
                    name = f"equivalence at the {edge} margin"
                    yield CoverageRow(name, setting, 0.05, float(inside.mean()), draws, differ)


def knock_outs(draws: int) -> Iterator[CoverageRow]:
    """``hierarchical`` of 0/1 answers intact minus knocked out: accuracy a against b on the same prompts."""
    rng = np.random.default_rng(4)
    for seeds in SEEDS:
        for items in (24, 100):
            for a, b in ((0.98, 0.94), (0.9, 0.5), (1.0, 0.06)):
                tables = (rng.random((draws, seeds, items)) < a) * 1.0 - (rng.random((draws, seeds, items)) < b)
                low, high = intervals.hierarchical_many(tables)
                held = float(((low <= a - b) & (a - b <= high)).mean())
                setting = f"{a:g} against {b:g}, {seeds} seeds, {items} prompts"
                yield CoverageRow("hierarchical, 0/1", setting, 0.95, held, draws, few=items * max(1 - a, b) < 5)


def curve_and_crossing(draws: int) -> Iterator[CoverageRow]:
    """``accuracy_curve`` at every tested length, ``crossing`` of 50%, ``effective_length``.

    True logit: 3 - 1.2 log2(L / 256); for ``effective_length`` an accuracy that is exactly the threshold.
    """
    rng = np.random.default_rng(5)
    eta = 3 - 1.2 * (np.log2(LENGTHS) - 8)
    for sd in SEED_SDS:
        for seeds in SEEDS:
            for items in (24, 100):
                band, cross, wrong = np.zeros(len(LENGTHS)), 0, 0
                labels = np.repeat(np.arange(seeds), len(LENGTHS) * items)
                x = np.tile(np.repeat(LENGTHS, items), seeds)
                prompt = np.tile(np.arange(len(LENGTHS) * items), seeds)
                truth = special.expit(eta)
                for _ in range(draws):
                    chance = special.expit(eta[None, :, None] + sd * rng.standard_normal((seeds, 1, 1)))
                    y = (rng.random((seeds, len(LENGTHS), items)) < chance).astype(float).ravel()
                    curve = curves.accuracy_curve(x, y, seeds=labels, items=prompt, at=LENGTHS, log=True)
                    band += (curve.low <= truth) & (truth <= curve.high)
                    place = curves.crossing(x, y, 0.5, seeds=labels, items=prompt)
                    cross += not place.excludes(2.0 ** (8 + 3 / 1.2))
                    chance = special.expit(special.logit(0.9) + sd * rng.standard_normal((seeds, 1)))
                    y = (rng.random((seeds, items)) < chance).astype(float).ravel()
                    reached = curves.effective_length(
                        np.full(len(y), 512),
                        y,
                        threshold=_mean_accuracy(0.9, sd),
                        seeds=labels[:: len(LENGTHS)],
                        items=np.tile(np.arange(items), seeds),
                    )
                    wrong += reached.length is not None
                setting = f"seed sd {sd:g}, {seeds} seeds, {items} prompts a length"
                for length, share in zip(LENGTHS, band / draws, strict=True):
                    yield CoverageRow("accuracy_curve", f"{setting}, at {length:g}", 0.95, float(share), draws, sd > 0)
                yield CoverageRow("crossing", setting, 0.95, cross / draws, draws, sd > 0)
                yield CoverageRow("effective_length too long", setting, 0.025, wrong / draws, draws, sd > 0)


def others(draws: int) -> Iterator[CoverageRow]:
    """``wilson``, ``clustered_mean``, ``interpolated_crossing``, ``paired_t``, ``holm``."""
    rng = np.random.default_rng(6)
    for p in ACCURACIES:
        held = [not intervals.wilson(hits, 100).excludes(p) for hits in rng.binomial(100, p, draws)]
        yield CoverageRow(
            "wilson", f"100 trials, p = {p:g}", 0.95, float(np.mean(held)), draws, False, 100 * min(p, 1 - p) < 5
        )
    for books in (5, 17):
        label = np.repeat(np.arange(books), np.arange(books) % 4 + 1)
        held = []
        for _ in range(draws):
            values = rng.standard_normal(books)[label] + rng.standard_normal(len(label))
            held.append(not intervals.clustered_mean(values, label.tolist()).excludes(0))
        yield CoverageRow("clustered_mean", f"{books} books of 1 to 4 rows", 0.95, float(np.mean(held)), draws)
    x = 2.0 ** np.arange(3, 9)
    for seeds in (3, 5, 10):
        for sd in SEED_SDS:
            eta = 2.2 - 1.1 * (np.log2(x) - 4.5)
            mean = np.array([_mean_accuracy(p, sd) for p in special.expit(eta)])
            truth = curves.interpolated_crossing(x, mean[None], 0.5).estimate
            held = []
            for _ in range(draws):
                chance = special.expit(eta + sd * rng.standard_normal((seeds, 1)))
                held.append(not curves.interpolated_crossing(x, rng.binomial(64, chance) / 64, 0.5).excludes(truth))
            setting = f"seed sd {sd:g}, {seeds} seeds, 64 associations"
            yield CoverageRow("interpolated_crossing", setting, 0.95, float(np.mean(held)), draws, sd > 0)
    for seeds in SEEDS:
        values = rng.standard_normal((draws, seeds))
        found = [tests.paired_t(one) for one in values]
        yield CoverageRow(
            "paired_t", f"{seeds} seeds", 0.95, float(np.mean([not one.excludes(0) for one in found])), draws
        )
        yield CoverageRow(
            "test of paired_t", f"{seeds} seeds", 0.05, float(np.mean([one.p < 0.05 for one in found])), draws
        )
        for side in ("greater", "less"):  # the two halves of TOST, each at its own margin
            tail = np.array([tests.paired_t(one, alternative=side).p for one in values])
            yield CoverageRow(f"test of paired_t, {side}", f"{seeds} seeds", 0.05, float((tail < 0.05).mean()), draws)
        for name, of_seed, of_item in (("seeds", 1.0, 0.0), ("items", 0.0, 1.0)):
            shape = (4, draws, seeds, 24)
            family = of_seed * rng.standard_normal((*shape[:3], 1)) + rng.standard_normal(shape)
            family = family + of_item * rng.standard_normal((4, draws, 1, 24))
            values = np.stack([intervals.hierarchical_p_many(tables) for tables in family], 1)
            rejected = float((tests.holm(values) < 0.05).any(1).mean())
            yield CoverageRow("holm, family of 4", f"{seeds} seeds, {name} differ", 0.05, rejected, draws, of_seed > 0)


def rows(draws: int) -> Iterator[CoverageRow]:
    """Every row; ``draws`` per setting, a third of it for curves, whose draws cost ten times as much."""
    parts: tuple[tuple[Callable[[int], Iterator[CoverageRow]], int], ...] = (
        (accuracies, draws),
        (prompts_in_common, draws),
        (contrasts, draws),
        (knock_outs, draws),
        (curve_and_crossing, max(draws // 5, 20)),
        (others, draws),
    )
    for part, number in parts:
        yield from part(number)


def _mean_accuracy(p: float, sd: float) -> float:
    """E expit(logit p + sd z), Gauss-Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return float((special.expit(special.logit(p) + sd * nodes) * weights).sum() / weights.sum())


def main() -> None:
    """Print all rows as Markdown tables, one per interval or test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000, help="simulated studies per setting")
    draws = parser.parse_args().draws
    start, last = time.monotonic(), ""
    for row in rows(draws):
        if row.name != last:
            print(f"\n| {row.name} | nominal | actual | draws |\n|---|---|---|---|")
            last = row.name
        print(f"| {row.setting} | {row.nominal:.3f} | {row.actual:.3f} | {row.draws} |", flush=True)
    print(f"\n{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
