"""From paired items to one number with interval and p value: the few estimates that several claims share.

Every difference is taken so that it is positive where it speaks for the hypothesis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.claims.config import ClaimsConfig
from stages.claims.verdict import Number, Source

if TYPE_CHECKING:
    import pandas as pd

    from stages.claims.evidence import Paired
    from stages.statistics.intervals import Estimate


@dataclass(frozen=True)
class Effect:
    """A paired difference over seeds and items.

    estimate, low, high: hierarchical interval at 1 - alpha. narrow_low, narrow_high: at 1 - 2 alpha, what TOST needs.
    p: t test over seeds that the difference is larger than ``null``, doubled, so that it is compared with the
    two-sided alpha as the interval is. 1 for a single seed.
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


def effect(pair: Paired, rules: ClaimsConfig, *, null: float = 0.0) -> Effect:
    """Mean over seeds of sum(a - b) / sum(weights), tested against ``null``."""
    from stages.statistics.intervals import hierarchical
    from stages.statistics.tests import paired_t

    def interval(level: float) -> Estimate:
        return hierarchical(pair.differences, pair.weights, level=level)

    wide, narrow = interval(1 - rules.alpha), interval(1 - 2 * rules.alpha)
    by_seed = pair.by_seed
    test = paired_t(by_seed, null=null, alternative="greater")
    return Effect(
        estimate=wide.estimate,
        low=wide.low,
        high=wide.high,
        narrow_low=narrow.low,
        narrow_high=narrow.high,
        p=min(1.0, 2 * test.p) if len(by_seed) > 1 else 1.0,
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


def needed(found: Effect, rules: ClaimsConfig, *, limit: float, arms: int) -> str:
    """What would decide an open comparison, if its difference is what it was measured to be: more items at these
    seeds, or more seeds with these items. ``limit``: below it the comparison is refuted; ``arms``: size of the family,
    whose first Holm step is what the smallest p value must pass."""
    from stages.statistics.power import deciding_sample, pilot

    def decides(seeds: int, items: int) -> object:
        return deciding_sample(
            pilot(found.pair.differences, found.pair.weights),
            null=found.null,
            limit=limit,
            alpha=rules.alpha,
            family=arms,
            power=rules.power,
            seeds=seeds,
            items=items,
        )

    raise NotImplementedError(decides)


def accuracy(name: str, label: str, rows: pd.DataFrame, *, sources: tuple[Source, ...], rules: ClaimsConfig) -> Number:
    """Share of right answers over seeds and prompts, both drawn at random; ``rows``: seed, item, correct."""
    from stages.statistics.intervals import accuracy as interval

    table = rows.pivot_table(index="seed", columns="item", values="correct", aggfunc="mean").dropna(axis=1)
    found = interval(table.to_numpy(float), level=1 - rules.alpha)
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


def percent(value: float, digits: int = 1) -> str:
    """0.1234 -> '12.3%'."""
    return f"{100 * value:.{digits}f}%"


def signed(value: float, digits: int = 2) -> str:
    """-0.01234 -> '−1.23%'."""
    return f"{100 * value:+.{digits}f}%".replace("-", "−")


def points(value: float) -> str:
    """A difference of scores in points: 0.0123 -> '+1.2 points'."""
    return f"{100 * value:+.1f} points".replace("-", "−")
