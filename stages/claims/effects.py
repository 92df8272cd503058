"""From paired items to one number with interval and p value: the few estimates that several claims share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.claims.config import ClaimsConfig
from stages.claims.verdict import Number, Source

if TYPE_CHECKING:
    from stages.claims.evidence import Paired
    from stages.statistics.intervals import Estimate


@dataclass(frozen=True)
class Effect:
    """A paired difference over seeds and items.

    estimate, low, high: hierarchical bootstrap at 1 - alpha. narrow_low, narrow_high: at 1 - 2 alpha, what TOST needs.
    p: t test over seeds that the difference lies beyond ``null`` in the stated direction, doubled, so that it is
    compared with the two-sided alpha as the interval is.
    detectable: smallest true difference these seeds would find at the stated power.
    """

    estimate: float
    low: float
    high: float
    narrow_low: float
    narrow_high: float
    p: float
    detectable: float
    seeds: int
    items: int
    method: str
    by_seed: tuple[float, ...]


def effect(pair: Paired, rules: ClaimsConfig, *, null: float = 0.0, greater: bool = True) -> Effect:
    """Mean over seeds of sum(a - b) / sum(weights), tested against ``null`` (``greater``: is it above it)."""
    from stages.statistics.intervals import hierarchical
    from stages.statistics.tests import minimum_detectable, paired_t

    def interval(level: float) -> Estimate:
        return hierarchical(pair.differences, pair.weights, level=level)

    wide, narrow = interval(1 - rules.alpha), interval(1 - 2 * rules.alpha)
    by_seed = pair.by_seed
    test = paired_t(by_seed, null=null, alternative="greater" if greater else "less")
    spread = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("inf")
    return Effect(
        estimate=wide.estimate,
        low=wide.low,
        high=wide.high,
        narrow_low=narrow.low,
        narrow_high=narrow.high,
        p=min(1.0, 2 * test.p) if len(by_seed) > 1 else 1.0,
        detectable=minimum_detectable(spread, len(by_seed), alpha=rules.alpha, power=rules.power),
        seeds=len(by_seed),
        items=len(pair.items),
        method=f"{wide.method}; {len(by_seed)} seeds x {len(pair.items)} items",
        by_seed=tuple(float(x) for x in by_seed),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p values (empty in, empty out)."""
    from stages.statistics.tests import holm as adjust

    return [float(p) for p in adjust(list(p_values))] if p_values else []


def proportion(
    name: str, label: str, correct: Sequence[float], *, sources: tuple[Source, ...], rules: ClaimsConfig
) -> Number:
    """Accuracy over prompts with a Wilson interval."""
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
