"""Summaries that no model wrote. A metric that prefers them to a model's summary says nothing for the model.

- ``lead``: how the text begins, as long as a model's summary may be.
- ``central``: its most central sentences in their order (continuous LexRank, Erkan and Radev 2004), as long.
- ``shuffled``: the reference of another book, written by a person, about something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from stages.evidence.summarize.items import SummaryExample
from stages.evidence.summarize.lexical import words
from stages.evidence.summarize.rouge import sentences

BASELINES = ("lead", "central", "shuffled")
DAMPING = 0.85
LONGEST = 20_000  # sentences of a text that are ranked


def lead(text: str, fits: Callable[[str], bool]) -> str:
    """Whole sentences from the beginning while they fit; where not even the first does, as many of its words."""
    taken: list[str] = []
    for sentence in sentences(text):
        if not fits(" ".join([*taken, sentence])):
            break
        taken.append(sentence)
    return " ".join(taken) if taken else _words_that_fit(text, fits)


def central(text: str, fits: Callable[[str], bool]) -> str:
    """The sentences of the highest centrality that fit together, in the order of the text."""
    said = [" ".join(s.split()) for s in sentences(re.sub(r"(?<!\n)\n(?!\n)", " ", text))[:LONGEST]]
    said = [s for s in said if len(words(s)) > 3] or said
    if not said:
        return lead(text, fits)
    taken: list[int] = []
    for index in np.argsort(-centrality(said), kind="stable").tolist():
        if not fits(" ".join(said[i] for i in sorted([*taken, index]))):
            break
        taken.append(index)
    return " ".join(said[i] for i in sorted(taken)) if taken else _words_that_fit(said[0], fits)


def centrality(said: Sequence[str], *, steps: int = 100, tolerance: float = 1e-10) -> NDArray[np.float64]:
    """Continuous LexRank of sentences [n], summing to 1: the stationary distribution of a walk from sentence to
    sentence with probabilities proportional to the cosine of their TF-IDF vectors, which jumps anywhere with
    probability 1 - DAMPING.

    The matrix of all cosines is never formed: it is X X' with sparse rows X, so a step costs what the words of the
    text cost, and a whole book takes seconds.
    """
    from scipy import sparse

    n = len(said)
    vocabulary: dict[str, int] = {}
    rows, columns = [], []
    for row, sentence in enumerate(said):
        for word in words(sentence):
            rows.append(row)
            columns.append(vocabulary.setdefault(word, len(vocabulary)))
    counts = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(n, max(1, len(vocabulary))))
    inverse = np.log(n / np.maximum(1, (counts > 0).sum(0).A1)) + 1
    weighted = counts.multiply(inverse).tocsr()
    norms = np.sqrt(weighted.multiply(weighted).sum(1).A1)
    unit = sparse.diags(1 / np.maximum(norms, 1e-12)) @ weighted
    degree = np.maximum(unit @ (unit.T @ np.ones(n)), 1e-12)
    rank = np.full(n, 1 / n)
    for _ in range(steps):
        after = DAMPING * (unit @ (unit.T @ (rank / degree))) + (1 - DAMPING) / n
        after /= after.sum()
        if np.abs(after - rank).sum() < tolerance:
            break
        rank = after
    return np.asarray(after, dtype=np.float64)


def shuffled(examples: Sequence[SummaryExample]) -> list[str | None]:
    """For each example a reference of another book of its task and level, each used once as far as possible; None where
    there is no other."""
    found: list[str | None] = [None] * len(examples)
    groups: dict[tuple[str, str], list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault((example.task, example.level), []).append(index)
    for indices in groups.values():
        for place, index in enumerate(indices):
            others = (indices[(place + step) % len(indices)] for step in range(1, len(indices)))
            other = next((o for o in others if examples[o].book != examples[index].book), None)
            if other is not None:
                found[index] = examples[other].references[0]
    return found


def _words_that_fit(text: str, fits: Callable[[str], bool]) -> str:
    """The longest beginning in whole words that fits: found by halving."""
    said = text.split()
    low, high = 0, len(said)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(" ".join(said[:middle])) else (low, middle - 1)
    return " ".join(said[:low])
