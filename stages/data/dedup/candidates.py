"""Which pairs are worth comparing: documents in one bucket of a band, and fingerprints found in a longer document.

Documents are numbered by preference here: 0 is the one kept before all others.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Pair = tuple[int, int]
"""(preferred document, other document)."""

SMALL_BUCKET = 16  # documents among which all pairs are proposed at once
POSTINGS = 64  # of one fingerprint: in more documents it is a common phrase and says little
FEW = 8  # fingerprints that are none: with fewer a document is judged by all, in the first POSTINGS documents of each
DEVIATIONS = 3.0  # of the sampling error below the threshold: misses 1 in 700 pairs at it


def buckets(bands: NDArray[np.uint64], members: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Groups of ``members`` (ascending) with the same value in a band, each once, ascending; ``bands`` [N, B]."""
    found: dict[bytes, NDArray[np.int64]] = {}
    for band in bands[members].T:
        order = np.argsort(band, kind="stable")  # stable: ascending within a group
        ordered = band[order]
        edges = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1], True]) if len(ordered) else np.zeros(1, int)
        for k in np.flatnonzero(np.diff(edges) > 1):
            group = members[order[edges[k] : edges[k + 1]]]
            found.setdefault(group.tobytes(), group)
    return list(found.values())


def proposals(bucket: NDArray[np.int64], compared: Container[Pair]) -> Iterator[Pair]:
    """Pairs of a bucket to compare next: all of a small one; of a large one those of the first document that has
    not been compared with every other. Repeated with what is still kept until nothing comes, that settles a bucket as
    comparing all its pairs would, without comparing the dropped ones with one another."""
    members = bucket.tolist()
    for i, preferred in enumerate(members):
        new = [pair for other in members[i + 1 :] if (pair := (preferred, other)) not in compared]
        yield from new
        if new and len(members) > SMALL_BUCKET:
            return


def contained_pairs(
    fingerprints: NDArray[np.uint64], owners: NDArray[np.int32], small: NDArray[np.int32], threshold: float
) -> list[Pair]:
    """Pairs (longer document, document of ``small``) whose shared fingerprints suggest a containment of ``threshold``.

    ``fingerprints`` [F] belong to documents ``owners`` [F], in the owners' order. The share of ``s`` fingerprints
    found again scatters around the true containment t by sqrt(t (1 - t) / s); candidates lie above the threshold
    less ``DEVIATIONS`` of that.
    """
    if not len(fingerprints) or not len(small):
        return []
    order = np.argsort(fingerprints, kind="stable")
    values, postings = fingerprints[order], owners[order]
    first = np.flatnonzero(np.r_[True, values[1:] != values[:-1], True])
    of_owner = np.empty(len(values), np.int32)  # the number of a fingerprint's group
    of_owner[order] = np.cumsum(np.r_[False, values[1:] != values[:-1]], dtype=np.int32)
    del order, values
    documents = int(owners.max()) + 1
    begins = np.searchsorted(owners, np.arange(documents + 1))
    found = _contained(of_owner, begins, postings, first, small, threshold, documents)
    return [(int(longer), int(document)) for longer, document in found]


@njit(cache=True, nogil=True)
def _contained(
    of_owner: Any, begins: Any, postings: Any, first: Any, small: Any, threshold: float, documents: int
) -> Any:
    counts = np.zeros(documents, np.int32)
    touched = np.empty(documents, np.int32)
    found = []
    for document in small:
        mine = of_owner[begins[document] : begins[document + 1]]
        rare = 0
        for group in mine:
            rare += first[group + 1] - first[group] <= POSTINGS
        total, seen = rare if rare >= FEW else len(mine), 0
        for group in mine:
            start, end = first[group], first[group + 1]
            if end - start > POSTINGS and rare >= FEW:
                continue
            for at in range(start, min(end, start + POSTINGS)):
                longer = postings[at]
                if longer >= document:
                    break
                if counts[longer] == 0:
                    touched[seen] = longer
                    seen += 1
                counts[longer] += 1
        needed = threshold * total - DEVIATIONS * np.sqrt(threshold * (1 - threshold) * total)
        for k in range(seen):
            longer = touched[k]
            if counts[longer] >= max(needed, 2.0):
                found.append((longer, document))
            counts[longer] = 0
    return found
