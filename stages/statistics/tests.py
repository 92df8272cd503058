"""Tests over seeds, and multiplicity.

``differences`` is one number per seed (arm A minus arm B on the same items); where the items count as drawn too, take
``intervals.hierarchical`` and its ``p``. Equivalence (TOST, Schuirmann 1987) needs no function of its own: a difference
lies within a margin at alpha where the interval of level 1 - 2 alpha does. With three seeds the two-sided 95% factor is
t_2 = 4.30; no test here hides that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from stages.statistics.intervals import Alternative, Estimate


@dataclass(frozen=True)
class TestResult(Estimate):
    """An estimate with its test. ``null``: the value tested against; ``df``: degrees of freedom (nan if none)."""

    __test__ = False  # not a pytest class

    statistic: float = float("nan")
    p: float = float("nan")
    df: float = float("nan")
    null: float = 0.0


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


def _differences(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"differences: shape {array.shape}; allowed is one finite number per seed")
    return array
