"""The sequences of the control: a function of (task, seed, stream) alone, the same for every arm of a seed.

Tokens: 0 is the filler, 1 .. keys are keys, the rest values. Shapes: B sequences, N tokens a segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stages.evidence.control.config import RecallTask

Tokens = NDArray[np.int64]
Between = Literal["filler", "pairs"]
BASE_TRAINING, TRAINING, HELD, EVALUATION, DISTANCE = range(5)
"""Namespaces of random streams: what models are trained on, what may end their training, what they are scored on."""


@dataclass(frozen=True)
class Recall:
    """pairs, queries, answers [B, N] int64: the first segment, the last, and the values of its keys. others
    [B, keys - most]: keys of the vocabulary that no pair and no query of the row has, in random order."""

    pairs: Tokens
    queries: Tokens
    answers: Tokens
    others: Tokens

    def first(self, count: int) -> Recall:
        """The first ``count`` sequences."""
        return Recall(self.pairs[:count], self.queries[:count], self.answers[:count], self.others[:count])


def draw(task: RecallTask, count: int, pairs: tuple[int, ...], *stream: int) -> Recall:
    """``count`` sequences, with k cycling through ``pairs``.

    Pairs stand at random even places of the first segment, filler at the others; each query is one of the k keys at
    random, so that no place, no value and no frequency tells which is asked.
    """
    rng = np.random.default_rng(stream)
    n, most = task.segment_length, max(pairs)
    k = np.resize(np.array(pairs), count)
    order = 1 + rng.random((count, task.keys)).argsort(1)
    keys = order[:, :most]
    values = 1 + task.keys + rng.random((count, task.values)).argsort(1)[:, :most]
    places = 2 * rng.random((count, n // 2)).argsort(1)[:, :most]
    first = np.zeros((count, n), np.int64)
    for j in range(most):
        rows = np.flatnonzero(k > j)
        first[rows, places[rows, j]] = keys[rows, j]
        first[rows, places[rows, j] + 1] = values[rows, j]
    asked = (rng.random((count, n)) * k[:, None]).astype(np.int64)
    return Recall(first, np.take_along_axis(keys, asked, 1), np.take_along_axis(values, asked, 1), order[:, most:])


def between(task: RecallTask, kind: Between, recall: Recall, segments: int, *stream: int) -> Tokens:
    """``segments`` segments [B, segments x N] to stand between pairs and queries: filler, or pairs of other keys than
    the asked ones with values at random (each other key at most once a segment; over segments it is bound anew)."""
    count, n = len(recall.pairs), task.segment_length
    tokens = np.zeros((count, segments, n), np.int64)
    if kind == "filler":
        return tokens.reshape(count, -1)
    rng = np.random.default_rng(stream)
    each = min(n // 2, recall.others.shape[1])
    shape = (count, segments)
    chosen = rng.random((*shape, recall.others.shape[1])).argsort(2)[:, :, :each]
    places = 2 * rng.random((*shape, n // 2)).argsort(2)[:, :, :each]
    keys = np.take_along_axis(np.broadcast_to(recall.others[:, None], (*shape, recall.others.shape[1])), chosen, 2)
    np.put_along_axis(tokens, places, keys, 2)
    np.put_along_axis(tokens, places + 1, 1 + task.keys + rng.integers(task.values, size=keys.shape), 2)
    return tokens.reshape(count, -1)


def whole(task: RecallTask, recall: Recall, segments: int) -> Tokens:
    """[B, segments x N]: pairs, filler, queries."""
    middle = between(task, "filler", recall, segments - 2)
    return np.concatenate([recall.pairs, middle, recall.queries], axis=1)
