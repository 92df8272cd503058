"""Hypothesis tests over seeds, equivalence, multiplicity.

``differences`` is one number per seed (arm A minus arm B on the same items); where the items count as drawn too, take
``intervals.hierarchical``, its ``p`` and ``equivalence``. With three seeds the two-sided 95% factor is t_2 = 4.30; no
test here hides that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from stages.statistics.intervals import Alternative, Estimate


@dataclass(frozen=True)
class TestResult(Estimate):
    """An estimate with its test. ``null``: the value tested against; ``df``: degrees of freedom (nan if none)."""

    __test__ = False  # not a pytest class

    statistic: float = float("nan")
    p: float = float("nan")
    df: float = float("nan")
    null: float = 0.0


@dataclass(frozen=True)
class Equivalence(Estimate):
    """Outcome of TOST. low, high: the 1 - 2 alpha interval; ``p``: the larger of the two one-sided p values.

    ``smallest_margin``: the smallest symmetric margin these data would have called equivalent: the honest
    statement of what an inconclusive result still excludes.
    """

    p: float = float("nan")
    margin_low: float = float("nan")
    margin_high: float = float("nan")
    equivalent: bool = False
    smallest_margin: float = float("nan")


def paired_t(
    differences: ArrayLike, *, null: float = 0.0, alternative: Alternative = "two-sided", level: float = 0.95
) -> TestResult:
    """Student's t over seeds: is the mean difference ``null``? The interval is always two-sided at ``level``.

    ``null`` with ``alternative="greater"`` asks "more than the margin". One seed: infinite interval, p = nan.
    All differences equal: a zero-width interval and p of 0 or 1.
    """
    values = _differences(differences)
    n, mean = len(values), float(values.mean())
    if n < 2:
        return TestResult(mean, -np.inf, np.inf, n, "paired t (one seed: no interval)", level, null=null)
    error = float(values.std(ddof=1) / np.sqrt(n))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    statistic = (mean - null) / error if error > 0 else _signed_infinity(mean - null)
    p = _p_value(statistic, n - 1, alternative)
    return TestResult(mean, mean - half, mean + half, n, f"paired t, {n - 1} df", level, statistic, p, n - 1, null)


def tost(differences: ArrayLike, margin: float | tuple[float, float], *, alpha: float = 0.05) -> Equivalence:
    """Two one-sided t tests (Schuirmann 1987): is the mean difference inside the margin?

    ``margin``: m for (-m, m), or (low, high). Equivalent iff the 1 - 2 alpha interval lies inside, i.e. iff p < alpha.
    Raises ValueError for an empty margin.
    """
    low, high = _margin(margin)
    below = paired_t(differences, null=low, alternative="greater", level=1 - 2 * alpha)
    above = paired_t(differences, null=high, alternative="less", level=1 - 2 * alpha)
    p = float("nan") if below.n < 2 else max(below.p, above.p)
    return Equivalence(
        below.estimate,
        below.low,
        below.high,
        below.n,
        f"TOST, {below.n - 1} df",
        1 - 2 * alpha,
        p,
        low,
        high,
        bool(p < alpha),
        float(max(abs(below.low), abs(below.high))),
    )


def equivalence(estimate: Estimate, margin: float | tuple[float, float]) -> Equivalence:
    """TOST by interval inclusion: give it an estimate of level 1 - 2 alpha, as from ``Contrast.at``."""
    low, high = _margin(margin)
    return Equivalence(
        estimate.estimate,
        estimate.low,
        estimate.high,
        estimate.n,
        f"TOST by inclusion of: {estimate.method}",
        estimate.level,
        margin_low=low,
        margin_high=high,
        equivalent=estimate.within(low, high),
        smallest_margin=max(abs(estimate.low), abs(estimate.high)),
    )


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm-adjusted p values [..., family] in the given order (family-wise error; the pre-registered primary family).

    Over leading axes at once, as simulated studies need it (statsmodels' own collects garbage at every call, 0.15 s).
    """
    p = _p_table(p_values)
    order = np.argsort(p, axis=-1, kind="stable")
    steps = np.take_along_axis(p, order, -1) * np.arange(p.shape[-1], 0, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, -1), 1), -1)
    return adjusted


def benjamini_hochberg(p_values: ArrayLike) -> NDArray[np.float64]:
    """Benjamini-Hochberg-adjusted p values in the given order (false discovery rate; grids of cells)."""
    p = _p_table(p_values)
    return np.asarray(stats.false_discovery_control(p, method="bh"), dtype=np.float64) if p.size else p


def power_paired_t(
    effect: float, sd: float, n: int, *, alpha: float = 0.05, alternative: Alternative = "two-sided"
) -> float:
    """Probability that a paired t test over ``n`` seeds finds a true mean difference ``effect``; sd of differences."""
    if n < 2 or sd < 0:
        raise ValueError(f"n = {n}, sd = {sd}: allowed are n >= 2 and sd >= 0")
    if sd == 0:
        return float(effect != 0)
    df, shift = n - 1, effect / sd * np.sqrt(n)
    if alternative == "two-sided":
        critical = stats.t.ppf(1 - alpha / 2, df)
        # scipy's noncentral t gives nan where the far tail is below float range
        far = np.nan_to_num(stats.nct.cdf(-critical, df, abs(shift)), nan=0.0)
        return float(stats.nct.sf(critical, df, abs(shift)) + far)
    critical = stats.t.ppf(1 - alpha, df)
    return float(stats.nct.sf(critical, df, shift if alternative == "greater" else -shift))


def minimum_detectable(
    sd: float, n: int, *, alpha: float = 0.05, power: float = 0.8, alternative: Alternative = "two-sided"
) -> float:
    """Smallest true mean difference that ``n`` seeds would find with probability ``power``: printed with every null.

    ``sd``: standard deviation of the per-seed differences. Infinite for one seed, 0 where nothing varies.
    """
    if n < 2:
        return float("inf")
    if sd == 0:
        return 0.0
    side: Alternative = "greater" if alternative == "less" else alternative

    def excess(d: float) -> float:
        return power_paired_t(d, 1.0, n, alpha=alpha, alternative=side) - power

    upper = 1.0
    while excess(upper) < 0:
        upper *= 2
    return float(optimize.brentq(excess, 1e-9, upper)) * sd


def _p_table(p_values: ArrayLike) -> NDArray[np.float64]:
    p = np.atleast_1d(np.asarray(p_values, dtype=np.float64))
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values = {p.tolist()}: allowed are numbers from 0 to 1")
    return p


def _p_value(statistic: float, df: int, alternative: Alternative) -> float:
    if alternative == "two-sided":
        return float(2 * stats.t.sf(abs(statistic), df))
    return float(stats.t.sf(statistic if alternative == "greater" else -statistic, df))


def _signed_infinity(value: float) -> float:
    return float(np.sign(value) * np.inf) if value else 0.0


def _margin(margin: float | tuple[float, float]) -> tuple[float, float]:
    low, high = margin if isinstance(margin, tuple) else (-margin, margin)
    if not low < high:
        raise ValueError(f"margin = {margin!r}: allowed is a positive number or (low, high) with low < high")
    return float(low), float(high)


def _differences(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"differences: shape {array.shape}; allowed is one finite number per seed")
    return array
