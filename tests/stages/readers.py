"""Readers that answer prompts by a known rule, in place of a model: what they can do is their definition.

A reader maps (item, seed, random generator) to the text of its answer. ``ask`` runs one over the real prompts of a
study's evaluation and gives the rows that the evaluation of a model would.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from stages.data.tasks.config import RetrievalConfig
from stages.data.tasks.prompts import Item, evaluation_items
from stages.evidence.evaluate.retrieval import row, task_row

Reader = Callable[[Item, int, np.random.Generator], str]
NOTHING = "nothing"


class Bytes:
    """One token per byte."""

    begin: Sequence[int] = ()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


def prompts(config: RetrievalConfig, seed: int = 0) -> tuple[Item, ...]:
    """The evaluation's real prompts over bytes of lower-case text."""
    return _prompts(config.model_dump_json(), seed)


@functools.cache
def _prompts(config: str, seed: int) -> tuple[Item, ...]:
    haystack = np.random.default_rng(5).integers(97, 123, 20_000).astype(np.int32)
    return tuple(evaluation_items(RetrievalConfig.model_validate_json(config), Bytes(), haystack, seed))


def ask(reader: Reader, items: Sequence[Item], seed: int, segment: int, arm: str = "") -> pd.DataFrame:
    """Rows of retrieval.parquet for one run; its random answers depend on arm and seed alone."""
    rng = np.random.default_rng([seed, *arm.encode()])
    answers = [reader(item, seed, rng) for item in items]
    nll = [0.05 if answer == item.expected else 6.0 for answer, item in zip(answers, items, strict=True)]
    return pd.DataFrame([row(i, a, n, segment) for i, a, n in zip(items, answers, nll, strict=True)])


def further(config: RetrievalConfig, seed: int = 0) -> tuple[Item, ...]:
    """The real prompts of ``config.tasks``."""
    return _further(config.model_dump_json(), seed)


@functools.cache
def _further(config: str, seed: int) -> tuple[Item, ...]:
    asked = RetrievalConfig.model_validate_json(config)
    haystack = np.random.default_rng(5).integers(97, 123, 20_000).astype(np.int32)
    return tuple(evaluation_items(asked, Bytes(), haystack, seed, grids=asked.further))


def ask_tasks(reader: Reader, items: Sequence[Item], seed: int, segment: int, arm: str = "") -> pd.DataFrame:
    """Rows of tasks.parquet for one run."""
    rng = np.random.default_rng([seed, *arm.encode(), 1])
    return pd.DataFrame([task_row(item, reader(item, seed, rng), 1.0, segment, "compact") for item in items])


# --- readers ------------------------------------------------------------------------------------------------------
def perfect(item: Item, seed: int, rng: np.random.Generator) -> str:
    """Finds what was asked; says nothing where it is absent."""
    return NOTHING if item.task.endswith("_absent") else item.expected


def never(item: Item, seed: int, rng: np.random.Generator) -> str:
    return NOTHING


def first(item: Item, seed: int, rng: np.random.Generator) -> str:
    """Knows every needle, and answers with the first."""
    return item.values[0] if item.values else NOTHING


def last(item: Item, seed: int, rng: np.random.Generator) -> str:
    """The last, which is the nearest to the question."""
    return item.values[-1] if item.values else NOTHING


def any_of(item: Item, seed: int, rng: np.random.Generator) -> str:
    """One of the needles at random: knows the set, binds nothing."""
    return str(rng.choice(item.values)) if item.values else NOTHING


def most_frequent(item: Item, seed: int, rng: np.random.Generator) -> str:
    return Counter(item.values).most_common(1)[0][0] if item.values else NOTHING


def sometimes(p: float, otherwise: Reader = never, right: Reader = perfect) -> Reader:
    """Right with probability ``p``, each prompt by itself."""
    return lambda item, seed, rng: (right if rng.random() < p else otherwise)(item, seed, rng)


def skilled(logits: Mapping[int, float], otherwise: Reader = never) -> Reader:
    """Right with a probability of its own for each seed."""
    return lambda item, seed, rng: sometimes(1 / (1 + np.exp(-logits[seed])), otherwise)(item, seed, rng)


def by_seed(readers: Mapping[int, Reader]) -> Reader:
    """Another reader for each seed."""
    return lambda item, seed, rng: readers[seed](item, seed, rng)


def at_depth(low: float, high: float) -> Reader:
    """Finds needles at depths from ``low`` to ``high`` only."""
    return lambda item, seed, rng: (perfect if low <= item.depth <= high else never)(item, seed, rng)


def inside(segment: int, outside: Reader = never) -> Reader:
    """Finds what stands in the last segment, as a model without memory can; ``outside`` answers the rest."""
    return lambda item, seed, rng: (outside if item.beyond_local(segment) else perfect)(item, seed, rng)


def up_to(rivals: int, otherwise: Reader = any_of) -> Reader:
    """Binds among at most so many rivals."""
    return lambda item, seed, rng: (perfect if item.k <= rivals else otherwise)(item, seed, rng)


def complete(item: Item, seed: int, rng: np.random.Generator) -> str:
    """Says the whole answer, however many strings it has."""
    return ", ".join(item.answers)


def share_of(p: float) -> Reader:
    """Says each of the answers with probability ``p``."""
    return lambda item, seed, rng: ", ".join(a if rng.random() < p else NOTHING for a in item.answers)


def every_needle(item: Item, seed: int, rng: np.random.Generator) -> str:
    """Says what all needles hold, from the first on: knows the set, not what was asked."""
    return ", ".join(item.values)


def but_for(tasks: Sequence[str], reader: Reader, otherwise: Reader = never) -> Reader:
    """``otherwise`` in these tasks, ``reader`` in the others."""
    return lambda item, seed, rng: (otherwise if item.task in tasks else reader)(item, seed, rng)


def only_up_to(length: int, reader: Reader, otherwise: Reader = never) -> Reader:
    """``reader`` in prompts of at most so many tokens."""
    return lambda item, seed, rng: (reader if item.length <= length else otherwise)(item, seed, rng)
