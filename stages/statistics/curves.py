"""Accuracy as a continuous function of length and position, instead of pass/fail cells (claim C3).

A binomial regression on the logit scale: ``linear`` in x (monotone: length, number of rivals) or a natural cubic
``spline`` (positions: accuracy often sags in the middle). Bands come from a bootstrap over prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from stages.statistics.intervals import Estimate, wilson

Floats = NDArray[np.float64]
Shape = Literal["linear", "spline"]

# Ridge on the standardised slopes. All-right or all-wrong cells separate the data and send the slope to infinity; a
# penalty of 0.05 keeps it finite and moves a well-determined fit of 200 prompts by less than 0.01 in accuracy.
_RIDGE = 0.05


@dataclass(frozen=True)
class Curve:
    """A fitted curve with its pointwise band, all [points]; ``n``: prompts; ``level``: of the band."""

    x: Floats
    estimate: Floats
    low: Floats
    high: Floats
    n: int
    method: str
    level: float = 0.95


@dataclass(frozen=True)
class EffectiveLength:
    """The longest tested length whose lower bound clears the threshold.

    ``length``: None if none does. ``unbroken``: the longest one with every shorter tested length clear as well; it
    differs from ``length`` where accuracy dips and recovers. ``longest_tested`` bounds both from above.
    """

    length: int | None
    unbroken: int | None
    longest_tested: int
    threshold: float
    n: int
    method: str


def accuracy_curve(
    x: ArrayLike,
    correct: ArrayLike,
    *,
    at: ArrayLike | None = None,
    shape: Shape = "linear",
    log: bool = False,
    knots: int = 4,
    level: float = 0.95,
    draws: int = 500,
    seed: int = 0,
) -> Curve:
    """Fit P(correct | x) to prompts and evaluate it at ``at`` (default: 101 points over the range of x).

    ``x`` [prompts] (``log``: on a log2 scale, for lengths), ``correct`` [prompts] 0/1 or a fraction. Prompts are
    resampled within each distinct x, as the design fixes their number; a binary cell is resampled around
    (hits + 1/2) / (n + 1), so that a cell of n zeros keeps the uncertainty of n zeros instead of a band of width 0.
    Raises ValueError for fewer than two distinct x, a fraction outside [0, 1], or log of x <= 0.
    """
    place, score = _prompts(x, correct, log)
    cells, index = np.unique(place, return_inverse=True)
    if len(cells) < 2:
        raise ValueError(f"x: {len(cells)} distinct value; a curve needs at least two")
    shape = "linear" if len(cells) < 3 else shape
    trials = np.bincount(index).astype(float)
    hits = np.bincount(index, score).astype(float)
    points = np.linspace(cells[0], cells[-1], 101) if at is None else _scale(np.asarray(at, float), log)
    design, design_at = _basis(cells, points, shape, min(knots, len(cells)))
    fitted = special.expit(design_at @ _fit(design, hits[:, None] / trials[:, None], trials)[:, 0])
    shares = _resample(score, index, hits, trials, draws=draws, seed=seed)
    band = special.expit(design_at @ _fit(design, shares, trials))
    low, high = np.quantile(band, [(1 - level) / 2, (1 + level) / 2], axis=1)
    # the smoothing draws a saturated cell inwards; the fit itself always belongs to its band
    low, high = np.minimum(low, fitted), np.maximum(high, fitted)
    method = f"{shape} logistic regression, bootstrap over prompts"
    return Curve(2.0**points if log else points, fitted, low, high, len(score), method, level)


def crossing(
    x: ArrayLike,
    correct: ArrayLike,
    p: float,
    *,
    log: bool = True,
    level: float = 0.95,
    draws: int = 500,
    seed: int = 0,
) -> Estimate:
    """Where the fitted accuracy falls below ``p`` (0.5, 0.95): location on x with a bootstrap interval over prompts.

    ``log`` fits on log2 x. inf: accuracy stays at or above ``p``; 0 (-inf without ``log``): it is below from the
    start. A location outside the tested range extrapolates the logistic curve; beyond a factor 16 of the range (16
    ranges without ``log``) it becomes inf or 0, and so does a curve that does not fall.
    """
    if not 0 < p < 1:
        raise ValueError(f"p = {p}: allowed is 0 < p < 1")
    place, score = _prompts(x, correct, log)
    cells, index = np.unique(place, return_inverse=True)
    if len(cells) < 2:
        raise ValueError(f"x: {len(cells)} distinct value; a location needs at least two")
    trials, hits = np.bincount(index).astype(float), np.bincount(index, score).astype(float)
    design = np.stack([np.ones_like(cells), cells], 1)
    shares = np.concatenate(
        [(hits / trials)[:, None], _resample(score, index, hits, trials, draws=draws, seed=seed)], 1
    )
    intercept, slope = _fit(design, shares, trials)
    with np.errstate(divide="ignore", invalid="ignore"):
        where = (special.logit(p) - intercept) / slope
    middle = intercept + slope * cells.mean() >= special.logit(p)
    where = np.where(slope < -1e-9, where, np.where(middle, np.inf, -np.inf))
    slack = 4.0 if log else 16 * (cells[-1] - cells[0])
    where = np.where(where > cells[-1] + slack, np.inf, np.where(where < cells[0] - slack, -np.inf, where))
    where = 2.0**where if log else where
    low, high = np.quantile(where[1:], [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Estimate(
        float(where[0]),
        float(low),
        float(high),
        len(score),
        f"logistic location of {p:g}, bootstrap over prompts",
        level,
    )


def interpolated_crossing(
    x: ArrayLike, y: ArrayLike, p: float, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Estimate:
    """First x where the mean curve falls below ``p``, by linear interpolation; bootstrap over seeds.

    ``x`` [points] ascending, ``y`` [seeds, points]. inf: the curve never falls below ``p``; x[0]: it starts below.
    """
    place, table = np.asarray(x, float), np.atleast_2d(np.asarray(y, float))
    if table.shape[1] != len(place) or len(place) < 2 or not (np.diff(place) > 0).all():
        raise ValueError(f"x [{len(place)}], y {list(table.shape)}: allowed are ascending x and y [seeds, points]")
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=draws) / len(table)
    where = _first_below(place, np.concatenate([table.mean(0)[None], counts @ table]), p)
    low, high = np.quantile(where[1:], [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Estimate(
        float(where[0]),
        float(low),
        float(high),
        len(table),
        f"interpolated location of {p:g}, bootstrap over seeds",
        level,
    )


def effective_length(
    lengths: ArrayLike, correct: ArrayLike, *, threshold: float, level: float = 0.95
) -> EffectiveLength:
    """Longest tested length at which the lower Wilson bound of accuracy exceeds ``threshold`` (protocol C4).

    ``lengths`` [prompts] in tokens, ``correct`` [prompts] 0/1.
    """
    place, score = _prompts(lengths, correct, False)
    clear: dict[int, bool] = {}
    for length in np.unique(place):
        cell = score[place == length]
        clear[int(length)] = wilson(round(float(cell.sum())), len(cell), level).low > threshold
    passed = [length for length, ok in clear.items() if ok]
    unbroken = None
    for length, ok in clear.items():
        if not ok:
            break
        unbroken = length
    return EffectiveLength(
        max(passed, default=None), unbroken, max(clear), threshold, len(score), f"lower {level:.0%} Wilson bound"
    )


def _fit(design: Floats, shares: Floats, trials: Floats) -> Floats:
    """Coefficients [k, draws] of the penalised binomial regression for shares [cells, draws]; Newton, vectorised."""
    scale = np.maximum(np.abs(design[:, 1:] - design[:, 1:].mean(0)).max(0), 1e-12)
    centre = design[:, 1:].mean(0)
    z = np.concatenate([design[:, :1], (design[:, 1:] - centre) / scale], 1)
    penalty = np.diag([_RIDGE * 0.02] + [_RIDGE] * (z.shape[1] - 1))
    coef = np.zeros((z.shape[1], shares.shape[1]))
    objective = np.full(shares.shape[1], -np.inf)
    step = np.zeros_like(coef)
    for _ in range(60):
        for _halving in range(12):  # a Newton step that lowers the likelihood is halved
            eta = z @ (coef + step)
            value = (trials[:, None] * (shares * eta - np.logaddexp(0, eta))).sum(0)
            value -= 0.5 * np.einsum("kd,kj,jd->d", coef + step, penalty, coef + step)
            worse = value < objective - 1e-12
            if not worse.any():
                break
            step[:, worse] *= 0.5
        else:
            step[:, worse] = 0
        coef, objective = coef + step, np.maximum(value, objective)
        mean = special.expit(z @ coef)
        gradient = z.T @ (trials[:, None] * (shares - mean)) - penalty @ coef
        if np.abs(gradient).max() < 1e-8 * trials.sum():
            break
        weight = trials[:, None] * mean * (1 - mean)
        hessian = np.einsum("ck,cd,cj->dkj", z, weight, z) + penalty
        step = np.linalg.solve(hessian, gradient.T[:, :, None])[:, :, 0].T
    slopes = coef[1:] / scale[:, None]
    return np.concatenate([coef[:1] - (centre[:, None] * slopes).sum(0, keepdims=True), slopes])


def _basis(cells: Floats, points: Floats, shape: Shape, knots: int) -> tuple[Floats, Floats]:
    """Design matrices at the cells and at the points: intercept, x, and the natural spline's other columns."""

    def columns(x: Floats) -> Floats:
        base = [np.ones_like(x), x]
        if shape == "spline" and knots >= 3:
            place = np.quantile(cells, np.linspace(0, 1, knots))
            last, width = place[-1], place[-1] - place[0]

            def hinge(
                k: float,
            ) -> Floats:  # Hastie, Tibshirani and Friedman, Elements of Statistical Learning, eq. 5.4-5.5
                cubic = (np.maximum(x - k, 0) ** 3 - np.maximum(x - last, 0) ** 3) / (last - k)
                return np.asarray(cubic / width**2)

            base += [hinge(k) - hinge(place[-2]) for k in place[:-2]]
        return np.stack(base, 1)

    return columns(cells), columns(points)


def _resample(score: Floats, index: NDArray[np.intp], hits: Floats, trials: Floats, *, draws: int, seed: int) -> Floats:
    """Shares [cells, draws] after resampling prompts within each cell."""
    rng = np.random.default_rng(seed)
    if np.isin(score, (0.0, 1.0)).all():
        share = (hits + 0.5) / (trials + 1)
        return np.asarray(
            rng.binomial(trials.astype(int)[:, None], share[:, None], (len(trials), draws)) / trials[:, None]
        )
    rows = []
    for cell in range(len(trials)):
        values = score[index == cell]
        counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=draws)
        rows.append(counts @ values / len(values))
    return np.stack(rows)


def _first_below(x: Floats, curves: Floats, p: float) -> Floats:
    """[curves]: first x at which each row of ``curves`` [curves, points] is below p, interpolated."""
    below = curves < p
    first = below.argmax(1)
    rows = np.arange(len(curves))
    before = np.maximum(first - 1, 0)
    y0, y1 = curves[rows, before], curves[rows, first]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(y0 > y1, (y0 - p) / (y0 - y1), 0.0)
    where = np.where(first == 0, x[0], x[before] + share * (x[first] - x[before]))
    return np.asarray(np.where(below.any(1), where, np.inf))


def _prompts(x: ArrayLike, correct: ArrayLike, log: bool) -> tuple[Floats, Floats]:
    place, score = np.asarray(x, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if place.ndim != 1 or place.shape != score.shape or not len(place):
        raise ValueError(f"x {list(place.shape)}, correct {list(score.shape)}: allowed are two equal lists")
    if not ((score >= 0) & (score <= 1)).all():
        raise ValueError("correct: allowed are scores from 0 to 1")
    return _scale(place, log), score


def _scale(x: Floats, log: bool) -> Floats:
    if not log:
        return x
    if not (x > 0).all():
        raise ValueError(f"x = {x.min()}: a log scale needs x > 0")
    return np.asarray(np.log2(x))
