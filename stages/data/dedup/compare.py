"""Second pass: the true similarity of candidate pairs, from their texts, with a passage both share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.data.dedup.candidates import Pair
from stages.data.dedup.shingles import common, passage, shingle
from stages.data.dedup.signatures import SAID, Texts
from stages.data.parallel import spread

GROUP_BYTES = 16 * 2**20  # of text for one task

Group = tuple[list[Pair], dict[int, NDArray[np.uint8]]]


class Compared(NamedTuple):
    """Two documents by their sets of n-grams A (the document) and B (the other one, preferred).

    ``text`` and ``other_text``: the beginning of the longest passage they share.
    """

    document: int
    other: int
    jaccard: float
    containment: float  # |A and B| / |A|
    containment_of_other: float  # |A and B| / |B|
    shared: int
    text: str
    other_text: str


def compare(
    pairs: Sequence[Pair],
    texts: Texts,
    sizes: Sequence[int],
    ngram: int,
    worth_it: bool,
    report: Callable[[int], None],
) -> Iterator[Compared]:
    """(other, document) pairs compared, in their order."""
    done = 0
    for found in spread(_compare, _groups(sorted(pairs), texts, sizes), ngram, worth_it=worth_it):
        done += len(found)
        report(done)
        yield from found


def _groups(pairs: Sequence[Pair], texts: Texts, sizes: Sequence[int]) -> Iterator[Group]:
    """Pairs that fit into one task, with the texts they need."""
    group: list[Pair] = []
    held: dict[int, NDArray[np.uint8]] = {}
    for pair in pairs:
        new = [document for document in pair if document not in held]
        if group and sum(map(len, held.values())) + sum(sizes[document] for document in new) > GROUP_BYTES:
            yield group, held
            group, held, new = [], {}, list(pair)
        group.append(pair)
        held |= {document: texts[document] for document in new}
    if group:
        yield group, held


def _compare(group: Group, ngram: int) -> list[Compared]:
    pairs, texts = group
    sets = {document: shingle(text, ngram).grams for document, text in texts.items()}
    found = []
    for other, document in pairs:
        a, b = sets[document], sets[other]
        shared = common(a, b)
        union = len(a) + len(b) - shared
        found.append(
            Compared(
                document,
                other,
                shared / union if union else 0.0,
                shared / len(a) if len(a) else 0.0,
                shared / len(b) if len(b) else 0.0,
                shared,
                *passage(texts[document], texts[other], b, ngram, SAID),
            )
        )
    return found
