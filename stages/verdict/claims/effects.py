"""From paired items to one number with interval and p value: the few estimates that several claims share.

Every difference is taken so that it is positive where it speaks for the hypothesis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from stages.display.numbers import LARGEST
from stages.verdict.claims.config import ClaimsConfig
from stages.verdict.claims.verdict import Number, Source

if TYPE_CHECKING:
    import pandas as pd

    from stages.statistics.power import Decides, Needed, Pilot
    from stages.verdict.claims.evidence import Paired

Floats = NDArray[np.float64]
Decisions = NDArray[np.bool_]

MOST_SEEDS, MOST_ITEMS = 64, 100_000  # beyond that a sample that would decide is not looked for


@dataclass(frozen=True)
class Effect:
    """A paired difference over seeds and items.

    estimate, low, high: interval at 1 - alpha over seeds and items. narrow_low, narrow_high: at 1 - 2 alpha, what TOST
    needs. p: that the difference is larger than ``null``, doubled, so that it is compared with the two-sided alpha as
    the interval is; 1 for a single seed.
    """

    estimate: float
    low: float
    high: float
    narrow_low: float
    narrow_high: float
    p: float
    null: float
    seeds: int
    items: int
    method: str
    by_seed: tuple[float, ...]
    pair: Paired

    @property
    def exceeds(self) -> bool:
        """The whole interval lies above ``null``."""
        return self.low > self.null

    def below(self, limit: float) -> bool:
        """A difference of ``limit`` or more is excluded: one side of TOST."""
        return self.narrow_high < limit

    def number(self, name: str, label: str, unit: str, sources: tuple[Source, ...] = ()) -> Number:
        """The difference as the report shows it."""
        return self._shown(name, label, unit, sources, lambda value: value)

    def added(self, name: str, label: str, unit: str, sources: tuple[Source, ...] = ()) -> Number:
        """The same of nats per token, as the relative perplexity that they add."""
        return self._shown(name, label, unit, sources, lambda value: math.expm1(min(value, LARGEST)))

    def saved(self, name: str, label: str, unit: str, sources: tuple[Source, ...] = ()) -> Number:
        """The same of nats per token that are saved: the relative perplexity that is left of 0."""
        return self._shown(name, label, unit, sources, lambda value: math.expm1(min(-value, LARGEST)))

    def _shown(
        self, name: str, label: str, unit: str, sources: tuple[Source, ...], of: Callable[[float], float]
    ) -> Number:
        """One seed or item has no interval: its ends are infinite, which an exponential would make numbers of."""
        low = high = None
        if math.isfinite(self.low) or math.isfinite(self.high):
            low, high = sorted((of(self.low), of(self.high)))
        return Number(name, label, of(self.estimate), low, high, self.items, unit, self.method, sources)


def effect(pair: Paired, rules: ClaimsConfig, *, null: float = 0.0) -> Effect:
    """Mean over seeds of sum(a - b) / sum(weights), tested against ``null``."""
    from stages.statistics.intervals import hierarchical

    wide = hierarchical(pair.differences, pair.weights, level=1 - rules.alpha)
    narrow = wide.at(1 - 2 * rules.alpha)
    by_seed = pair.by_seed
    return Effect(
        estimate=wide.estimate,
        low=wide.low,
        high=wide.high,
        narrow_low=narrow.low,
        narrow_high=narrow.high,
        p=min(1.0, 2 * wide.p(null, "greater")) if len(by_seed) > 1 else 1.0,
        null=null,
        seeds=len(by_seed),
        items=len(pair.items),
        method=f"{wide.method}; {len(by_seed)} seeds x {len(pair.items)} items",
        by_seed=tuple(float(x) for x in by_seed),
        pair=pair,
    )


def family(arms: Mapping[str, Sequence[Effect]]) -> dict[str, float]:
    """Holm-adjusted p value of each arm of a claim's primary family.

    An arm must pass all of its own comparisons (an intersection-union test, which needs no correction): its p value is
    the largest of theirs. Holm then holds the family-wise error over the arms, of which one is enough.
    """
    from stages.statistics.tests import holm

    worst = [max(one.p for one in effects) for effects in arms.values()]
    return dict(zip(arms, (float(p) for p in holm(worst)), strict=True))


def comparison(rules: ClaimsConfig, *, null: float, limit: float, arms: int) -> Decides:
    """One comparison of one arm as the claims decide it, for simulated tables: supported above ``null`` (at the first
    Holm step over ``arms`` memory arms) or refuted below ``limit`` (TOST)."""
    from stages.statistics.intervals import hierarchical_many

    def decides(tables: Floats, weights: Floats) -> Decisions:
        # the interval at 1 - alpha / arms excludes null just where the doubled one-sided p value is below alpha / arms
        low, _ = hierarchical_many(tables, weights, level=1 - rules.alpha / arms)
        _, high = hierarchical_many(tables, weights, level=1 - 2 * rules.alpha)
        decided: Decisions = (low > null) | (high < limit)
        return decided

    return decides


def needed(found: Effect, rules: ClaimsConfig, *, limit: float, arms: int, unit: str = "items") -> str:
    """What would decide an open comparison, if the true difference is the measured one: more items at these seeds, or
    more seeds with these items. ``limit``: below it the comparison is refuted; ``arms``: size of the family."""
    from stages.statistics.power import Pilot, pilot

    if found.items > 1:
        seen = pilot(found.pair.differences, found.pair.weights)
    else:  # one number per seed: fresh trials, of which only the seeds' spread is known
        spread = float(found.pair.by_seed.std(ddof=1))
        seen = Pilot(found.estimate, spread, 0.0, 0.0, seeds=found.seeds, items=1)
    rule = comparison(rules, null=found.null, limit=limit, arms=arms)
    return _needed(rule, seen, rules, found.estimate, found.seeds, found.items, unit)


def needed_to_clear(rows: pd.DataFrame, rules: ClaimsConfig, threshold: float) -> str:
    """The same for an accuracy whose interval straddles ``threshold``; ``rows``: seed, item, correct."""
    from stages.statistics.intervals import accuracy_many
    from stages.statistics.power import pilot

    def decides(tables: Floats, weights: Floats) -> Decisions:
        low, high = accuracy_many(tables, level=1 - rules.alpha)
        decided: Decisions = (low >= threshold) | (high < threshold)
        return decided

    table = _crossed(rows)
    seeds, items = table.shape
    return _needed(decides, pilot(table), rules, float(table.mean()), seeds, items, "prompts")


def _needed(rule: Decides, seen: Pilot, rules: ClaimsConfig, estimate: float, seeds: int, items: int, unit: str) -> str:
    from stages.statistics.power import deciding_sample

    def sample(grow: Literal["items", "seeds"], limit: int) -> Needed | None:
        return deciding_sample(
            lambda seeds, items: rule,
            seen,
            effect=estimate,
            seeds=seeds,
            items=items,
            grow=grow,
            limit=limit,
            power=rules.power,
            draws=600,
            seed=rules.seed,
        )

    ways = []
    if items > 1 and (more := sample("items", min(MOST_ITEMS, 64 * items))) is not None:
        ways.append(f"{max(more.items, items + 1):,} {unit} at these {seeds} seeds")
    if (more := sample("seeds", MOST_SEEDS)) is not None:
        more_seeds = max(more.seeds, seeds + 1)  # this sample has just not decided it
        ways.append(f"{more_seeds} seeds with these {items:,} {unit}" if items > 1 else f"{more_seeds} seeds")
    if not ways:
        return f"as measured, not even {MOST_SEEDS} seeds would decide it"
    return f"{' or '.join(ways)} would decide it ({rules.power:.0%} power), if it is as measured"


def _crossed(rows: pd.DataFrame) -> Floats:
    """correct [seeds, items] of the prompts that every seed was asked."""
    from stages.verdict.claims.evidence import crossed

    return crossed(rows, "item", "correct", mean=True)[2]


def accuracy(name: str, label: str, rows: pd.DataFrame, *, sources: tuple[Source, ...], rules: ClaimsConfig) -> Number:
    """Share of right answers over seeds and prompts, both drawn at random; ``rows``: seed, item, correct."""
    from stages.statistics.intervals import accuracy as interval

    table = _crossed(rows)
    found = interval(table, level=1 - rules.alpha)
    method = f"{found.method}; {table.shape[0]} seeds x {table.shape[1]} prompts"
    return Number(name, label, found.estimate, found.low, found.high, table.size, "accuracy", method, sources)


def nested_accuracy(
    name: str, label: str, rows: pd.DataFrame, *, sources: tuple[Source, ...], rules: ClaimsConfig
) -> Number:
    """The same where every seed was asked prompts of its own; ``rows``: seed, hits, trials."""
    from stages.statistics.intervals import nested_accuracy as interval

    cells = rows.groupby("seed")[["hits", "trials"]].sum()
    found = interval(cells["hits"].to_numpy(float), cells["trials"].to_numpy(float), level=1 - rules.alpha)
    n = int(cells["trials"].sum())
    return Number(name, label, found.estimate, found.low, found.high, n, "accuracy", found.method, sources)


def proportion(
    name: str, label: str, correct: Sequence[float], *, sources: tuple[Source, ...], rules: ClaimsConfig
) -> Number:
    """Share of things that were drawn once and belong together (heads of one model), with a Wilson interval."""
    from stages.statistics.intervals import wilson

    hits = round(float(sum(correct)))
    found = wilson(hits, len(correct), level=1 - rules.alpha)
    return Number(name, label, found.estimate, found.low, found.high, found.n, "accuracy", found.method, sources)
