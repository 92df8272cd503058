"""Estimates with confidence intervals, all in closed form.

The unit of an interval is always the thing that was drawn: the prompt, the document or book, and the seed. Tokens are
never the unit. Seeds answer the *same* prompts (a crossed design, [seeds, items]), so an odd prompt moves all seeds
together; a control draws fresh trials for every seed (nested). docs/statistics.md has the formulas and the simulated
coverage of each interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Floats = NDArray[np.float64]
Alternative = Literal["two-sided", "greater", "less"]

# Share of the noise within seeds that is taken off the spread between them before the rest counts as the seeds' own.
# At 1 three seeds cover 90% at the worst, at 0.7 seeds that do not differ are covered 98% of the time.
WITHIN = 0.8


@dataclass(frozen=True)
class Estimate:
    """A number with its interval. ``n``: units that were drawn; ``level``: confidence, e.g. 0.95."""

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


@dataclass(frozen=True)
class Contrast(Estimate):
    """A paired difference over seeds and items; interval, p value and TOST all come from the same two variances.

    ``n``: seeds. ``v_seed``: variance of the mean of the seeds, seeds - 1 degrees of freedom; ``v_item``: what the
    items' common part adds, items - 1 degrees of freedom; ``v_floor``: half the variance over items alone, below
    which the sum is not taken. All in squared units of the estimate.
    """

    items: int = 1
    v_seed: float = 0.0
    v_item: float = 0.0
    v_floor: float = 0.0

    def at(self, level: float) -> Contrast:
        """The same contrast with its interval at another level (1 - 2 alpha is what TOST needs)."""
        half = float(_half(self._variances, 1 - level)[0])
        return replace(self, low=self.estimate - half, high=self.estimate + half, level=level)

    def p(self, null: float = 0.0, alternative: Alternative = "two-sided") -> float:
        """p value of "the difference is ``null``": the smallest alpha whose 1 - alpha interval excludes it.

        One-sided: half of that, for the difference lying beyond ``null`` in the stated direction.
        """
        return float(_p_values(np.array([self.estimate - null]), self._variances, alternative)[0])

    @property
    def _variances(self) -> _Variances:
        return _Variances(
            np.array([self.v_seed]), np.array([self.v_item]), np.array([self.v_floor]), self.n, self.items
        )


def wilson(successes: int, trials: int, level: float = 0.95) -> Estimate:
    """Wilson score interval of a proportion (Wilson 1927). Raises ValueError without trials."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"successes = {successes}, trials = {trials}: allowed are 0 <= successes <= trials, trials >= 1"
        )
    interval = stats.binomtest(int(successes), int(trials)).proportion_ci(level, method="wilson")
    return Estimate(successes / trials, float(interval.low), float(interval.high), trials, "Wilson", level)


def clustered_mean(values: ArrayLike, clusters: Sequence[object], *, level: float = 0.95) -> Estimate:
    """Mean over rows whose unit is the cluster (document, book): rows of one book are not independent.

    ``values`` [rows], ``clusters`` [rows]. Variance by leaving out one cluster at a time (jackknife), t with
    clusters - 1 degrees of freedom; one cluster gives an infinite interval. ``n``: clusters. Raises ValueError where
    values and clusters differ in length.
    """
    score = _vector(values, "values")
    if len(clusters) != len(score):
        raise ValueError(f"clusters: {len(clusters)} labels for {len(score)} values")
    code = {label: i for i, label in enumerate(dict.fromkeys(clusters))}
    index, count = np.array([code[label] for label in clusters]), len(code)
    mean, half = float(score.mean()), float("inf")
    if count > 1:
        without = (score.sum() - np.bincount(index, score)) / (len(score) - np.bincount(index))
        variance = (count - 1) / count * float(((without - without.mean()) ** 2).sum())
        half = float(_t(count - 1, 1 - level) * np.sqrt(variance))
    return Estimate(mean, mean - half, mean + half, count, f"clustered mean, t with {count - 1} df", level)


def hierarchical(differences: ArrayLike, weights: ArrayLike | None = None, *, level: float = 0.95) -> Contrast:
    """Paired difference of two arms over seeds and items, both random.

    ``differences`` [seeds, items]: arm A minus arm B on the same item and seed (nats of a document, 0/1 of a prompt).
    ``weights`` [items]: tokens of the document; the estimate is the mean over seeds of
    sum_i differences / sum_i weights (weights 1: the plain mean).

    Half width: sqrt(t(seeds-1)^2 v_seed + t(items-1)^2 v_item), Banerjee's (1960) interval for a sum of independent
    variances, which covers at least ``level`` whatever their ratio; 4.30 for three seeds. v_seed is the variance of
    the seeds' own estimates over their number and holds the noise of each seed's items; v_item is what the items
    share over all seeds (linearised ratio), the residual taken off so that it is not counted twice. Seeds that agree
    by chance, as sums of few 0/1 answers often do, do not make the interval vanish: the variance is at least half of
    that over items alone. One seed gives an interval over items only, and the method says so. Raises ValueError for a
    table that is not finite and full.
    """
    table = np.atleast_2d(np.asarray(differences, dtype=np.float64))
    if table.ndim != 2 or 0 in table.shape or not np.isfinite(table).all():
        raise ValueError(f"differences: shape {table.shape}; allowed is a finite [seeds, items] table, at least 1 x 1")
    seeds, items = table.shape
    mean, parts = _contrasts(table[None], _weights(weights, items))
    v_seed, v_item, v_floor = (float(x[0]) for x in (parts.v_seed, parts.v_item, parts.v_floor))
    if seeds * items == 1:
        v_floor = float("inf")
    method = f"seeds x items, t with {seeds - 1} and {items - 1} df" if seeds > 1 else "over items (one seed)"
    centre = float(mean[0])
    return Contrast(centre, centre, centre, seeds, method, level, items, v_seed, v_item, v_floor).at(level)


def hierarchical_many(
    tables: ArrayLike, weights: ArrayLike | None = None, *, level: float = 0.95
) -> tuple[Floats, Floats]:
    """low, high [draws] of ``hierarchical`` for every table of ``tables`` [draws, seeds, items] at once."""
    many = np.asarray(tables, dtype=np.float64)
    mean, variances = _contrasts(many, _weights(weights, many.shape[2]))
    half = _half(variances, 1 - level)
    return mean - half, mean + half


def hierarchical_p_many(
    tables: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    null: float = 0.0,
    alternative: Alternative = "two-sided",
) -> Floats:
    """p values [draws] of ``Contrast.p`` for every table of ``tables`` [draws, seeds, items] at once."""
    many = np.asarray(tables, dtype=np.float64)
    mean, variances = _contrasts(many, _weights(weights, many.shape[2]))
    return _p_values(mean - null, variances, alternative)


def accuracy(table: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Accuracy of one arm whose seeds answer the same prompts; seeds and prompts both random.

    ``table`` [seeds, items] of 0/1 or fractions. Score interval: all p with (estimate - p)^2 <= k p (1 - p), where
    k estimate (1 - estimate) = z^2 v_within + t(seeds-1)^2 v_between. v_within: the larger of the binomial variance of
    all answers and that of the prompts' means; v_between: the seeds' variance beyond four fifths of what prompts
    alone make them differ. With one seed, or seeds that agree on every prompt, it is Wilson's over the prompts; for
    independent answers nearly Wilson's over all of them. It is never narrower at its end than Wilson's of all prompts
    right (or wrong), so that one error more does not raise the lower bound. ``n``: prompts.
    Raises ValueError for a score outside [0, 1].
    """
    score = np.atleast_2d(np.asarray(table, dtype=np.float64))
    if score.ndim != 2 or 0 in score.shape or not ((score >= 0) & (score <= 1)).all():
        raise ValueError(
            f"table: shape {score.shape}; allowed are scores from 0 to 1 of [seeds, items], at least 1 x 1"
        )
    low, high = accuracy_many(score[None], level=level)
    seeds, items = score.shape
    method = (
        f"score interval, {seeds} seeds x {items} prompts" if seeds > 1 else "score interval over prompts (one seed)"
    )
    return Estimate(float(score.mean()), float(low[0]), float(high[0]), items, method, level)


def accuracy_many(tables: ArrayLike, *, level: float = 0.95) -> tuple[Floats, Floats]:
    """low, high [draws] of ``accuracy`` for every table of ``tables`` [draws, seeds, items] at once."""
    many = np.asarray(tables, dtype=np.float64)
    _, seeds, items = many.shape
    mean = many.mean((1, 2))
    by_seed, by_item = many.mean(2) - mean[:, None], many.mean(1) - mean[:, None]
    cells = ((many - mean[:, None, None]) ** 2).sum((1, 2))
    v_items = (by_item**2).sum(1) / (items * max(items - 1, 1))
    v_seeds = (by_seed**2).sum(1) / (seeds * max(seeds - 1, 1))
    left = cells - items * (by_seed**2).sum(1) - seeds * (by_item**2).sum(1)
    v_residual = np.maximum(left, 0) / (max((seeds - 1) * (items - 1), 1) * seeds * items)
    v_within = np.maximum(cells / (seeds * items) ** 2, v_items * (items - 1) / items)
    v_between = np.maximum(v_seeds - WITHIN * v_residual, 0)
    return score_interval(mean, v_within, v_between, seeds=seeds, units=items, level=level)


def nested_accuracy(hits: ArrayLike, trials: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Accuracy whose seeds were asked fresh trials: ``hits`` [seeds] of ``trials`` [seeds]; every seed counts equally.

    The interval of ``accuracy`` with the binomial variance within seeds. All right: Wilson's over all trials.
    ``n``: trials. Raises ValueError for hits outside 0..trials or a seed without trials.
    """
    hit, trial = _vector(hits, "hits"), _vector(trials, "trials")
    if len(hit) != len(trial) or not ((trial > 0) & (hit >= 0) & (hit <= trial)).all():
        raise ValueError(
            f"hits = {hit.tolist()}, trials = {trial.tolist()}: allowed are 0 <= hits <= trials, trials > 0"
        )
    share, seeds = hit / trial, len(hit)
    mean = share.mean()
    v_within = mean * (1 - mean) * (1 / trial).sum() / seeds**2
    v_seeds = ((share - mean) ** 2).sum() / (seeds * max(seeds - 1, 1))
    v_between = max(float(v_seeds - WITHIN * v_within), 0.0)
    units = seeds**2 / (1 / trial).sum()  # trials of one size that give this variance
    low, high = score_interval(
        mean[None], np.array([v_within]), np.array([v_between]), seeds=seeds, units=units, level=level
    )
    method = f"score interval, {seeds} seeds of fresh trials"
    return Estimate(float(mean), float(low[0]), float(high[0]), int(trial.sum()), method, level)


def score_interval(
    mean: Floats, v_within: Floats, v_between: Floats, *, seeds: int, units: float | Floats, level: float
) -> tuple[Floats, Floats]:
    """low, high [n] of proportions ``mean`` [n]: Wilson's form with the variances [n] of ``accuracy``.

    ``units``: independent prompts behind a mean of 0 or 1, where the variances say nothing (scalar or [n]).
    """
    z2 = float(special.ndtri((1 + level) / 2)) ** 2
    squared = z2 * v_within + (_t(seeds - 1, 1 - level) ** 2 * v_between if seeds > 1 else 0.0)
    spread = mean * (1 - mean)
    least = z2 / units
    with np.errstate(divide="ignore", invalid="ignore"):
        k = np.where(spread > 1e-12, squared / spread, least)
    centre = (mean + k / 2) / (1 + k)
    half = np.sqrt(k * (spread + k / 4)) / (1 + k)
    end = 1 / (1 + least)  # Wilson's lower bound of ``units`` right of ``units``
    low = np.clip(np.minimum(centre - half, end), 0, mean)
    high = np.clip(np.maximum(centre + half, 1 - end), mean, 1)
    return np.where(mean <= 0, 0.0, low), np.where(mean >= 1, 1.0, high)


@dataclass(frozen=True)
class _Variances:
    """Those of ``Contrast`` for many tables, [draws] each."""

    v_seed: Floats
    v_item: Floats
    v_floor: Floats
    seeds: int
    items: int


def _contrasts(tables: Floats, weight: Floats) -> tuple[Floats, _Variances]:
    """estimate [draws] and variances of ``tables`` [draws, seeds, items], ``weight`` [items]."""
    draws, seeds, items = tables.shape
    share = weight / weight.mean()
    by_seed = tables.sum(2) / weight.sum()
    mean = by_seed.mean(1)
    v_seed = by_seed.var(1, ddof=1) / seeds if seeds > 1 else np.zeros(draws)
    if items == 1:
        return mean, _Variances(v_seed, np.zeros(draws), np.zeros(draws), seeds, items)
    by_item = tables.mean(1) / weight.mean() - mean[:, None] * share
    v_items = (by_item**2).sum(1) / (items * (items - 1))
    v_item = v_items
    if seeds > 1:
        rest = tables / weight.mean() - by_seed[:, :, None] * share - by_item[:, None, :]
        v_rest = (rest**2).sum((1, 2)) / ((seeds - 1) * (items - 1) * seeds * items)
        v_item = np.maximum(v_items - v_rest, 0)
    return mean, _Variances(v_seed, v_item, v_items / 2, seeds, items)


def _half(parts: _Variances, alpha: float | Floats) -> Floats:
    """Half width [draws] of Banerjee's interval, or that of the floor where it is wider."""
    of_seed = _t(parts.seeds - 1, alpha) ** 2 * parts.v_seed if parts.seeds > 1 else np.zeros_like(parts.v_seed)
    if parts.items == 1:
        return np.asarray(np.sqrt(of_seed + parts.v_floor))
    of_item = _t(parts.items - 1, alpha) ** 2
    return np.asarray(np.sqrt(np.maximum(of_seed + of_item * parts.v_item, of_item * parts.v_floor)))


def _p_values(distance: Floats, parts: _Variances, alternative: Alternative) -> Floats:
    """Bisection on log alpha: the interval's half width falls as alpha grows."""
    low, high = np.full(len(distance), -100.0), np.zeros(len(distance))
    for _ in range(45):
        middle = (low + high) / 2
        wide = _half(parts, np.exp(middle)) >= np.abs(distance)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    still = (parts.v_seed == 0) & (parts.v_item == 0) & (parts.v_floor == 0)
    two = np.where(still, np.where(distance == 0, 1.0, 0.0), np.exp(high))
    if alternative == "two-sided":
        return np.asarray(two)
    right = distance > 0 if alternative == "greater" else distance < 0
    return np.asarray(np.where(right, two / 2, 1 - two / 2))


def _t(df: float, alpha: float | Floats) -> Floats:
    """Two-sided 1 - alpha quantile of Student's t; from the lower tail, which keeps its digits at a small alpha."""
    return np.asarray(-special.stdtrit(df, np.asarray(alpha) / 2))


def _weights(weights: ArrayLike | None, items: int) -> Floats:
    weight = np.ones(items) if weights is None else _vector(weights, "weights")
    if len(weight) != items or not weight.sum() > 0:
        raise ValueError(f"weights: {len(weight)} for {items} items; allowed is one per item with a positive sum")
    return weight


def _vector(values: ArrayLike, name: str) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or len(vector) == 0 or not np.isfinite(vector).all():
        raise ValueError(f"{name}: shape {vector.shape}; allowed is a list of at least one finite number")
    return vector
