"""Estimates with confidence intervals.

The unit of resampling is always the thing that was drawn: the prompt for retrieval scores, the document for
perplexity and ROUGE, the seed and then the item for differences between arms. Tokens are never the unit.
Every function is deterministic in ``seed``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

_CHUNK = 4_000_000  # resampled values held at once (32 MB of float64)


@dataclass(frozen=True)
class Estimate:
    """A number with its interval. ``n``: units that were resampled or counted; ``level``: confidence, e.g. 0.95."""

    estimate: float
    low: float
    high: float
    n: int
    method: str
    level: float = 0.95

    def excludes(self, value: float) -> bool:
        """True if ``value`` lies outside the interval."""
        return not self.low <= value <= self.high

    def within(self, low: float, high: float) -> bool:
        """True if the whole interval lies strictly inside (low, high)."""
        return low < self.low and self.high < high


def wilson(successes: int, trials: int, level: float = 0.95) -> Estimate:
    """Wilson score interval of a proportion (Wilson 1927). Raises ValueError without trials."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"successes = {successes}, trials = {trials}: allowed are 0 <= successes <= trials, trials >= 1"
        )
    interval = stats.binomtest(int(successes), int(trials)).proportion_ci(level, method="wilson")
    return Estimate(successes / trials, float(interval.low), float(interval.high), trials, "Wilson", level)


def bootstrap_mean(values: ArrayLike, *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> Estimate:
    """Mean of scores (one per prompt) with a percentile interval; resamples prompts."""
    score = _vector(values, "values")
    low, high = _percentiles(_resampled_ratios(score, np.ones_like(score), draws, seed), level)
    return Estimate(float(score.mean()), low, high, len(score), "bootstrap over prompts", level)


def bootstrap_ratio(
    numerator: ArrayLike, denominator: ArrayLike, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Estimate:
    """sum(numerator) / sum(denominator), resampling the pairs (one per document): nats per token, bits per byte, ..."""
    top, bottom = _pair(numerator, denominator)
    low, high = _percentiles(_resampled_ratios(top, bottom, draws, seed), level)
    return Estimate(float(top.sum() / bottom.sum()), low, high, len(top), "bootstrap over documents", level)


def perplexity(
    nll_sum: ArrayLike, tokens: ArrayLike, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Estimate:
    """exp(sum nll / sum tokens) with a document bootstrap.

    ``nll_sum`` [documents] in nats, ``tokens`` [documents]. With words as ``tokens`` it is PG-19's word perplexity.
    """
    nats = bootstrap_ratio(nll_sum, tokens, level=level, draws=draws, seed=seed)
    low, estimate, high = (float(np.exp(x)) for x in (nats.low, nats.estimate, nats.high))
    return Estimate(estimate, low, high, nats.n, nats.method, level)


def bits_per_byte(
    nll_sum: ArrayLike, bytes_: ArrayLike, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Estimate:
    """sum nll / (ln 2 * sum bytes) with a document bootstrap: comparable between tokenizers."""
    return bootstrap_ratio(
        np.asarray(nll_sum, float), np.asarray(bytes_, float) * np.log(2), level=level, draws=draws, seed=seed
    )


def clustered_mean(
    values: ArrayLike, clusters: Sequence[object], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Estimate:
    """Mean over rows, resampling whole clusters (documents, books): rows of one book are not independent.

    ``n`` is the number of clusters. Raises ValueError where values and clusters differ in length.
    """
    score = _vector(values, "values")
    if len(clusters) != len(score):
        raise ValueError(f"clusters: {len(clusters)} labels for {len(score)} values")
    code = {label: i for i, label in enumerate(dict.fromkeys(clusters))}
    index = np.array([code[label] for label in clusters])
    ratios = _resampled_ratios(np.bincount(index, score).astype(float), np.bincount(index).astype(float), draws, seed)
    low, high = _percentiles(ratios, level)
    return Estimate(float(score.mean()), low, high, len(code), "bootstrap over clusters", level)


def hierarchical(
    differences: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Paired difference of two arms over seeds and items: bootstrap seed -> item, interval for few seeds.

    ``differences`` [seeds, items]: arm A minus arm B on the same item and seed (nats of a document, 0/1 of a prompt).
    ``weights`` [items]: tokens of the document; the estimate is the mean over seeds of
    sum_i differences / sum_i weights (weights 1: the plain mean).

    Every seed is scored on the *same* items, so an odd document moves all seeds together: each draw resamples seeds
    and, jointly for all of them, items (Owen 2007, the pigeonhole bootstrap). Items drawn anew within each seed would
    count that shared noise as independent and give too narrow an interval.
    Percentiles of three resampled seeds cover about 75%, not 95%. The interval is therefore estimate +- t * SE, SE from
    the bootstrap with its (S-1)/S shrinkage undone, t with Satterthwaite's degrees of freedom between seeds - 1 (seeds
    dominate: t_2 = 4.30 for three) and items - 1. ``n`` is the number of seeds; one seed gives an interval over items
    only, and the method says so.
    """
    table = np.atleast_2d(np.asarray(differences, dtype=np.float64))
    if table.ndim != 2 or 0 in table.shape or not np.isfinite(table).all():
        raise ValueError(f"differences: shape {table.shape}; allowed is a finite [seeds, items] table, at least 1 x 1")
    seeds, items = table.shape
    weight = np.ones(items) if weights is None else _vector(weights, "weights")
    if len(weight) != items or not weight.sum() > 0:
        raise ValueError(f"weights: {len(weight)} for {items} items; allowed is one per item with a positive sum")
    estimate = float(table.mean(0).sum() / weight.sum())
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for part in _chunks(draws, items + seeds):
        size = part.stop - part.start
        item_counts = rng.multinomial(items, np.full(items, 1 / items), size=size)
        seed_counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
        means[part] = ((seed_counts / seeds) @ table * item_counts).sum(1) / (item_counts @ weight)
    # Components of the variance by linearisation; they set the degrees of freedom and undo the shrinkage.
    by_seed = table.sum(1) / weight.sum()
    influence = (table.mean(0) - estimate * weight) / weight.mean()
    v_seed = float(by_seed.var(ddof=1) / seeds) if seeds > 1 else 0.0
    v_item = float(influence.var(ddof=1) / items) if items > 1 else 0.0
    shrunk = v_seed * (seeds - 1) / seeds + v_item * (items - 1) / items
    total = v_seed + v_item
    if total <= 0 or shrunk <= 0:  # a single item and seed, or no variation at all
        spread = 0.0 if seeds * items > 1 else float("inf")
        return Estimate(estimate, estimate - spread, estimate + spread, seeds, "hierarchical bootstrap", level)
    error = float(means.std(ddof=1)) * float(np.sqrt(total / shrunk))
    df = total**2 / ((v_seed**2 / (seeds - 1) if seeds > 1 else 0.0) + (v_item**2 / (items - 1) if items > 1 else 0.0))
    half = float(stats.t.ppf((1 + level) / 2, df)) * error
    method = f"hierarchical bootstrap, t with {df:.1f} df" if seeds > 1 else "bootstrap over items (one seed)"
    return Estimate(estimate, estimate - half, estimate + half, seeds, method, level)


def _resampled_ratios(top: Floats, bottom: Floats, draws: int, seed: int) -> Floats:
    """[draws] of sum(top[i]) / sum(bottom[i]) over resampled indices i; multinomial counts instead of gathers."""
    rng = np.random.default_rng(seed)
    n = len(top)
    ratios = np.empty(draws)
    for part in _chunks(draws, n):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=part.stop - part.start)
        ratios[part] = (counts @ top) / (counts @ bottom)
    return ratios


def _chunks(draws: int, width: int) -> Iterator[slice]:
    step = max(1, _CHUNK // max(1, width))
    for start in range(0, draws, step):
        yield slice(start, min(start + step, draws))


def _percentiles(draws: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _vector(values: ArrayLike, name: str) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or len(vector) == 0 or not np.isfinite(vector).all():
        raise ValueError(f"{name}: shape {vector.shape}; allowed is a list of at least one finite number")
    return vector


def _pair(numerator: ArrayLike, denominator: ArrayLike) -> tuple[Floats, Floats]:
    top, bottom = _vector(numerator, "numerator"), _vector(denominator, "denominator")
    if len(top) != len(bottom):
        raise ValueError(f"denominator: {len(bottom)} values for {len(top)} of the numerator")
    if not (bottom > 0).all():
        raise ValueError("denominator: a document without tokens; leave it out of the table")
    return top, bottom
