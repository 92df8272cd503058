"""Accuracy as a continuous function of length and position, instead of pass/fail cells (claims C3 and C4).

A binomial regression on the logit scale: ``linear`` in x (monotone: length, number of rivals) or a natural cubic
``spline`` (positions: accuracy often sags in the middle). The band has the two-way cluster-robust variance of the fit
over seeds and prompts (Cameron, Gelbach and Miller 2011) with the few-seed quantiles of ``intervals.accuracy``, and is
Wilson's where every prompt has the same x. Crossings are where that very band crosses: one contrast, one interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from stages.statistics.intervals import WITHIN, Estimate, accuracy, nested_accuracy, score_interval

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]
CurveShape = Literal["linear", "spline"]
Labels = Sequence[object] | NDArray[np.generic]

# Ridge on the standardised slopes. All-right or all-wrong cells separate the data and send the slope to infinity; a
# penalty of 0.05 keeps it finite and moves a well-determined fit of 200 prompts by less than 0.01 in accuracy.
_RIDGE = 0.05


@dataclass(frozen=True)
class Curve:
    """A fitted curve with its pointwise band, all [points]; ``n``: distinct prompts; ``level``: of the band."""

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
    differs from ``length`` where accuracy dips and recovers. ``longest_tested`` bounds both from above. ``cells``:
    the accuracy of every tested length, ascending. ``n``: answers.
    """

    length: int | None
    unbroken: int | None
    longest_tested: int
    threshold: float
    n: int
    method: str
    cells: tuple[tuple[int, Estimate], ...] = ()


def accuracy_curve(
    x: ArrayLike,
    correct: ArrayLike,
    *,
    seeds: Labels | None = None,
    items: Labels | None = None,
    at: ArrayLike | None = None,
    shape: CurveShape = "linear",
    log: bool = False,
    knots: int = 4,
    level: float = 0.95,
) -> Curve:
    """Fit P(correct | x) to answers and evaluate it at ``at`` (default: 101 points over the range of x).

    ``x`` [answers] (``log``: on a log2 scale, for lengths), ``correct`` [answers] 0/1 or a fraction, ``seeds``
    [answers] labels of the seed that answered (None: one seed), ``items`` [answers] labels of the prompt, equal where
    two seeds answered the same one (None: every answer has a prompt of its own). ``shape`` is ``linear`` below three
    distinct x. Raises ValueError for fewer than two distinct x, labels of another length, a fraction outside [0, 1],
    or log of x <= 0.
    """
    fit = _Fit.of(x, correct, seeds, items, log=log, shape=shape, knots=knots)
    points = np.linspace(fit.first, fit.last, 101) if at is None else _scale(np.asarray(at, float), log)
    estimate, low, high = fit.band(points, level)
    return Curve(2.0**points if log else points, estimate, low, high, fit.prompts, fit.method, level)


def crossing(
    x: ArrayLike,
    correct: ArrayLike,
    p: float,
    *,
    seeds: Labels | None = None,
    items: Labels | None = None,
    log: bool = True,
    level: float = 0.95,
) -> Estimate:
    """Where the fitted accuracy falls below ``p`` (0.5, 0.95): every x whose band of ``accuracy_curve`` holds ``p``.

    Arguments as for ``accuracy_curve``; ``log`` fits on log2 x. inf: accuracy stays at or above ``p``; 0 (-inf without
    ``log``): it is below from the start. A location outside the tested range extrapolates the logistic curve; beyond a
    factor 16 of the range (16 ranges without ``log``) it becomes inf or 0, and so does a curve that does not fall.
    ``n``: distinct prompts.
    """
    if not 0 < p < 1:
        raise ValueError(f"p = {p}: allowed is 0 < p < 1")
    fit = _Fit.of(x, correct, seeds, items, log=log, shape="linear", knots=2)
    slack = 4.0 if log else 16 * (fit.last - fit.first)
    points = np.linspace(fit.first - slack, fit.last + slack, 4001)
    intercept, slope = fit.coef
    middle = intercept + slope * (fit.first + fit.last) / 2 >= special.logit(p)
    where = (special.logit(p) - intercept) / slope if slope < -1e-9 else (np.inf if middle else -np.inf)
    where = np.inf if where > points[-1] else -np.inf if where < points[0] else where
    _, below, above = fit.band(points, level)
    holds = np.flatnonzero((below <= p) & (p <= above))
    low = high = where
    if len(holds):
        low = -np.inf if holds[0] == 0 else min(points[holds[0]], where)
        high = np.inf if holds[-1] == len(points) - 1 else max(points[holds[-1]], where)
    low, where, high = (float(2.0**value if log else value) for value in (low, where, high))
    return Estimate(where, low, high, fit.prompts, f"location of {p:g} in the band of a {fit.method}", level)


def interpolated_crossing(x: ArrayLike, y: ArrayLike, p: float, *, level: float = 0.95) -> Estimate:
    """First x where the mean curve falls below ``p``, by linear interpolation; interval from the band over seeds.

    ``x`` [points] ascending, ``y`` [seeds, points], every seed drawn anew. Interval: every x at which a t test over
    the seeds' interpolated curves (4.30 standard errors for three) does not tell the mean from ``p``. inf: never
    below ``p``; x[0]: below from the start. One seed gives x[0] to inf. ``n``: seeds.
    """
    place, table = np.asarray(x, float), np.atleast_2d(np.asarray(y, float))
    if table.shape[1] != len(place) or len(place) < 2 or not (np.diff(place) > 0).all():
        raise ValueError(f"x [{len(place)}], y {list(table.shape)}: allowed are ascending x and y [seeds, points]")
    seeds, where = len(table), _first_below(place, table.mean(0), p)
    method = f"interpolated location of {p:g}, t over seeds with {seeds - 1} df"
    if seeds == 1:
        return Estimate(where, float(place[0]), float("inf"), 1, method, level)
    steps = np.linspace(0, 1, 65)[:-1]
    fine = np.append((place[:-1, None] + np.diff(place)[:, None] * steps).ravel(), place[-1])
    each = np.stack([np.interp(fine, place, row) for row in table])
    half = stats.t.ppf((1 + level) / 2, seeds - 1) * each.std(0, ddof=1) / np.sqrt(seeds)
    holds = np.flatnonzero(np.abs(each.mean(0) - p) <= half)
    low = high = where
    if len(holds):  # a step of the grid further out on either side, so that rounding never narrows
        low = min(float(fine[max(holds[0] - 1, 0)]), where)
        high = float("inf") if holds[-1] == len(fine) - 1 else max(float(fine[holds[-1] + 1]), where)
    return Estimate(where, low, high, seeds, method, level)


def effective_length(
    lengths: ArrayLike,
    correct: ArrayLike,
    *,
    threshold: float,
    seeds: Labels | None = None,
    items: Labels | None = None,
    level: float = 0.95,
) -> EffectiveLength:
    """Longest tested length at which the lower bound of ``accuracy`` exceeds ``threshold`` (protocol C4).

    ``lengths`` [answers] in tokens, ``correct`` [answers] 0/1 or a fraction, ``seeds`` and ``items`` [answers] as for
    ``accuracy_curve``: with items the same prompts for every seed, without them fresh ones. A prompt that a seed has
    not answered is left out. Raises ValueError where no prompt of a length was answered by every seed.
    """
    place, score, by, what = _answers(lengths, correct, seeds, items)
    cells = []
    for length in np.unique(place):
        rows = place == length
        cells.append((int(length), _cell(score[rows], by[rows], None if items is None else what[rows], level, length)))
    clear = {length: cell.low > threshold for length, cell in cells}
    passed = [length for length, ok in clear.items() if ok]
    unbroken = None
    for length, ok in clear.items():
        if not ok:
            break
        unbroken = length
    method = f"lower bound of the {level:.0%} interval: {cells[-1][1].method}"
    return EffectiveLength(max(passed, default=None), unbroken, max(clear), threshold, len(score), method, tuple(cells))


def _cell(score: Floats, seed: Codes, item: Codes | None, level: float, length: float) -> Estimate:
    """Accuracy of the answers of one length."""
    labels, seed = np.unique(seed, return_inverse=True)
    count = len(labels)
    if item is None and count > 1:
        return nested_accuracy(np.bincount(seed, score), np.bincount(seed), level=level)
    columns = np.arange(len(score)) if item is None else np.unique(item, return_inverse=True)[1]
    width = int(columns.max()) + 1
    place = seed * width + columns
    answers = np.bincount(place, minlength=count * width).reshape(count, width)
    right = np.bincount(place, score, minlength=count * width).reshape(count, width)
    full = (answers > 0).all(0)
    if not full.any():
        raise ValueError(f"items: no prompt of length {length:g} was answered by all {count} seeds")
    return accuracy(right[:, full] / answers[:, full], level=level)


@dataclass(frozen=True)
class _Fit:
    """A penalised binomial regression with what its band needs. ``score`` [k, answers]: gradients per answer."""

    coef: Floats
    inverse: Floats  # [k, k] inverse Hessian
    score: Floats
    seed: Codes
    item: Codes
    cells: Floats
    shape: CurveShape
    knots: int
    dispersion: float

    @property
    def first(self) -> float:
        return float(self.cells[0])

    @property
    def last(self) -> float:
        return float(self.cells[-1])

    @property
    def prompts(self) -> int:
        return int(self.item.max()) + 1

    @property
    def method(self) -> str:
        seeds = int(self.seed.max()) + 1
        over = f"{seeds} seeds x {self.prompts} prompts" if seeds > 1 else f"{self.prompts} prompts (one seed)"
        return f"{self.shape} logistic regression, robust over {over}"

    @classmethod
    def of(
        cls,
        x: ArrayLike,
        correct: ArrayLike,
        seeds: Labels | None,
        items: Labels | None,
        *,
        log: bool,
        shape: CurveShape,
        knots: int,
    ) -> _Fit:
        place, score, seed, item = _answers(x, correct, seeds, items)
        place = _scale(place, log)
        cells, index = np.unique(place, return_inverse=True)
        if len(cells) < 2:
            raise ValueError(f"x: {len(cells)} distinct value; a curve or a location needs at least two")
        shape, knots = ("linear" if len(cells) < 3 else shape), min(knots, len(cells))
        trials, hits = np.bincount(index).astype(float), np.bincount(index, score).astype(float)
        design = _columns(cells, cells, shape, knots)
        coef, inverse = _regress(design, hits / trials, trials)
        mean = special.expit(design @ coef)
        dispersion = 1.0
        if not np.isin(score, (0.0, 1.0)).all():  # fractions vary less than 0/1 answers of the same mean
            model = float((mean * (1 - mean))[index].sum())
            dispersion = min(1.0, float(((score - mean[index]) ** 2).sum()) / max(model, 1e-12))
        return cls(coef, inverse, design[index].T * (score - mean[index]), seed, item, cells, shape, knots, dispersion)

    def band(self, points: Floats, level: float) -> tuple[Floats, Floats, Floats]:
        """estimate, low, high [points]; variances of the linear predictor brought to the scale of accuracy."""
        design = _columns(self.cells, points, self.shape, self.knots)
        # an estimate of exactly 0 or 1 in floating point would lose the spread that scales the variances back
        mean = np.clip(special.expit(design @ self.coef), 1e-12, 1 - 1e-12)
        project = design @ self.inverse
        slope = (mean * (1 - mean)) ** 2
        v_model = np.einsum("pk,pk->p", project, design) * self.dispersion * slope
        seeds, items, answers = int(self.seed.max()) + 1, self.prompts, self.score.shape[1]

        def form(vectors: Floats) -> Floats:  # [groups, k] -> [points]: sum over groups of (projection)^2
            return np.asarray(np.einsum("pk,kj,pj->p", project, vectors.T @ vectors, project) * slope)

        by_item = np.stack([np.bincount(self.item, row, items) for row in self.score], 1).astype(float)
        v_item = form(by_item) * (items / max(items - 1, 1))
        v_between = np.zeros(len(points))
        if seeds > 1:
            by_seed = np.stack([np.bincount(self.seed, row, seeds) for row in self.score], 1).astype(float)
            times = np.bincount(self.item, minlength=items)[self.item]
            own = np.where(times > 1, by_item[self.item].T / times, 0.0)
            rest = (self.score - own) * np.where(times > 1, np.sqrt(times / np.maximum(times - 1, 1)), 1.0)
            v_seed = form(by_seed - by_seed.mean(0)) * (seeds / (seeds - 1))
            v_between = np.maximum(v_seed - WITHIN * form(rest.T), 0)
        units = mean * (1 - mean) / np.maximum(v_model, 1e-300) * items / answers
        low, high = score_interval(mean, np.maximum(v_model, v_item), v_between, seeds=seeds, units=units, level=level)
        return mean, low, high


def _regress(design: Floats, share: Floats, trials: Floats) -> tuple[Floats, Floats]:
    """Coefficients [k] and inverse Hessian [k, k] of the penalised binomial regression of ``share`` [cells]; Newton."""
    centre = design[:, 1:].mean(0)
    scale = np.maximum(np.abs(design[:, 1:] - centre).max(0), 1e-12)
    z = np.concatenate([design[:, :1], (design[:, 1:] - centre) / scale], 1)
    penalty = np.diag([_RIDGE * 0.02] + [_RIDGE] * (z.shape[1] - 1))

    def objective(coef: Floats) -> float:
        eta = z @ coef
        return float((trials * (share * eta - np.logaddexp(0, eta))).sum() - 0.5 * coef @ penalty @ coef)

    coef = np.zeros(z.shape[1])
    for _ in range(60):
        mean = special.expit(z @ coef)
        gradient = z.T @ (trials * (share - mean)) - penalty @ coef
        hessian = (z * (trials * mean * (1 - mean))[:, None]).T @ z + penalty
        if np.abs(gradient).max() < 1e-9 * trials.sum():
            break
        step, now = np.linalg.solve(hessian, gradient), objective(coef)
        for _halving in range(30):  # a Newton step that lowers the likelihood is halved
            if objective(coef + step) >= now - 1e-12:
                break
            step = step / 2
        coef = coef + step
    back = np.zeros((len(coef), len(coef)))  # raw coefficients = back @ standardised ones
    back[0, 0] = 1
    back[0, 1:] = -centre / scale
    back[1:, 1:] = np.diag(1 / scale)
    return back @ coef, back @ np.linalg.inv(hessian) @ back.T


def _columns(cells: Floats, x: Floats, shape: CurveShape, knots: int) -> Floats:
    """Design matrix [points, k] at ``x``: intercept, x, and the natural spline's other columns with knots in cells."""
    base = [np.ones_like(x), x]
    if shape == "spline" and knots >= 3:
        place = np.quantile(cells, np.linspace(0, 1, knots))
        last, width = place[-1], place[-1] - place[0]

        def hinge(k: float) -> Floats:  # Hastie, Tibshirani and Friedman, Elements of Statistical Learning, eq. 5.4-5.5
            cubic = (np.maximum(x - k, 0) ** 3 - np.maximum(x - last, 0) ** 3) / (last - k)
            return np.asarray(cubic / width**2)

        base += [hinge(k) - hinge(place[-2]) for k in place[:-2]]
    return np.stack(base, 1)


def _first_below(x: Floats, curve: Floats, p: float) -> float:
    """First x at which ``curve`` [points] is below p, interpolated; inf if it never is."""
    below = np.flatnonzero(curve < p)
    if not len(below):
        return float("inf")
    first = int(below[0])
    if first == 0:
        return float(x[0])
    share = (curve[first - 1] - p) / (curve[first - 1] - curve[first])
    return float(x[first - 1] + share * (x[first] - x[first - 1]))


def _answers(
    x: ArrayLike, correct: ArrayLike, seeds: Labels | None, items: Labels | None
) -> tuple[Floats, Floats, Codes, Codes]:
    """x, score, seed and item codes, all [answers]. A prompt is an item at one x: labels may repeat over x."""
    place, score = np.asarray(x, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if place.ndim != 1 or place.shape != score.shape or not len(place):
        raise ValueError(f"x {list(place.shape)}, correct {list(score.shape)}: allowed are two equal lists")
    if not ((score >= 0) & (score <= 1)).all():
        raise ValueError("correct: allowed are scores from 0 to 1")
    for name, labels in (("seeds", seeds), ("items", items)):
        if labels is not None and len(labels) != len(place):
            raise ValueError(f"{name}: {len(labels)} labels for {len(place)} answers")
    by = np.zeros(len(place), np.intp) if seeds is None else np.unique(np.asarray(seeds), return_inverse=True)[1]
    if items is None:
        return place, score, by, np.arange(len(place))
    label = np.unique(np.asarray(items), return_inverse=True)[1]
    cell = np.unique(place, return_inverse=True)[1] * (label.max() + 1) + label
    return place, score, by, np.unique(cell, return_inverse=True)[1]


def _scale(x: Floats, log: bool) -> Floats:
    if not log:
        return x
    if not (x > 0).all():
        raise ValueError(f"x = {x.min()}: a log scale needs x > 0")
    return np.asarray(np.log2(x))
