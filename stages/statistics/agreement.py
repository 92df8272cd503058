"""Judgements of people: how far raters agree, and how strong what they compare is.

Krippendorff, K. (2011). Computing Krippendorff's alpha-reliability. Bradley, R. and Terry, M. (1952). Rank analysis of
incomplete block designs: the method of paired comparisons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.statistics.intervals import Estimate

PRIOR = 0.5
"""Ties that everyone is taken to have played against one of average strength: without them who never lost has no finite
strength."""


def krippendorff_alpha(units: Sequence[Sequence[Hashable]]) -> float | None:
    """Nominal alpha of the values that raters gave each unit, missing ones left out: 1 - observed / expected
    disagreement. None where no unit has two values, or all values are the same."""
    paired = [values for values in units if len(values) > 1]
    counts = Counter(value for values in paired for value in values)
    n = sum(counts.values())
    expected = n * n - sum(c * c for c in counts.values())
    if expected == 0:
        return None
    observed = 0.0
    for values in paired:
        m = len(values)
        observed += (m * m - sum(c * c for c in Counter(values).values())) / (m - 1)
    return 1 - (n - 1) * observed / expected


@dataclass(frozen=True)
class Game:
    """One comparison: ``score`` of ``a`` against ``b`` (1 won, 0 lost, 0.5 a tie) on one book."""

    a: str
    b: str
    score: float
    book: str


def bradley_terry(
    games: Sequence[Game], *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Estimate]:
    """Log strength of everyone who plays, mean 0, with percentile intervals over resampled books.

    P(a beats b) = exp(s_a) / (exp(s_a) + exp(s_b)); a tie counts as half a win for each. ``n``: books. Books are drawn
    whole, since comparisons on one book are not independent; one book gives infinite intervals.
    """
    names = list(dict.fromkeys(name for game in games for name in (game.a, game.b)))
    books = list(dict.fromkeys(game.book for game in games))
    place, shelf = {name: i for i, name in enumerate(names)}, {book: i for i, book in enumerate(books)}
    wins = np.zeros((len(books), len(names), len(names)))
    for game in games:
        wins[shelf[game.book], place[game.a], place[game.b]] += game.score
        wins[shelf[game.book], place[game.b], place[game.a]] += 1 - game.score
    strengths = _strengths(wins.sum(0))
    rng = np.random.default_rng(seed)
    low = np.full(len(names), -np.inf)
    high = np.full(len(names), np.inf)
    if len(books) > 1:
        drawn = rng.multinomial(len(books), np.full(len(books), 1 / len(books)), size=draws)
        fitted = _strengths(np.tensordot(drawn.astype(float), wins, 1))
        low, high = np.quantile(fitted, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {
        name: Estimate(
            float(strengths[i]), float(low[i]), float(high[i]), len(books), "Bradley-Terry, books drawn", level
        )
        for name, i in place.items()
    }


def _strengths(wins: NDArray[np.float64], *, steps: int = 40, tolerance: float = 1e-9) -> NDArray[np.float64]:
    """Log strengths [..., n] of wins [..., n, n] by Newton's steps on the concave likelihood, none longer than 1."""
    n = wins.shape[-1]
    played, won = wins + np.swapaxes(wins, -1, -2), wins.sum(-1) + PRIOR / 2
    s = np.zeros(wins.shape[:-1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(s[..., None, :] - s[..., :, None]))  # that the row beats the column
        average = 1 / (1 + np.exp(-s))
        slope = won - (played * p).sum(-1) - PRIOR * average
        curve = -played * p * (1 - p)
        own = PRIOR * average * (1 - average) - curve.sum(-1)
        step = np.linalg.solve(curve + own[..., None] * np.eye(n), slope[..., None])[..., 0]
        step /= np.maximum(1, np.abs(step).max(-1, keepdims=True))
        s = s + step
        if np.abs(step).max(initial=0.0) < tolerance:
            break
    strengths: NDArray[np.float64] = s - s.mean(-1, keepdims=True)
    return strengths


def preferences_agree(people: Sequence[float], metric: Sequence[float]) -> list[float]:
    """Of the comparisons that people decided (``people`` not 0): 1 where the metric's difference has the same sign, 0
    where it has the other, 0.5 where it is 0."""
    pairs: list[tuple[float, float]] = [(p, m) for p, m in zip(people, metric, strict=True) if p]
    return [0.5 if not m else float(np.sign(p) == np.sign(m)) for p, m in pairs]
