"""Which pairs are worth comparing: documents in one bucket of a band, and fingerprints found in a longer document.

Documents are ranked by preference here: 0 is the one kept before all others. A task reads one column or one range of
fingerprints of all runs; it gives back only documents that share something.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stages.data.dedup.signatures import BINS, SignedParts
from stages.data.parallel import spread

DocumentPair = tuple[int, int]
"""(preferred document, other document)."""

SMALL_BUCKET = 16  # documents among which all pairs are proposed at once
POSTINGS = 64  # of one fingerprint: in more documents it is a common phrase and says little
FEW = 8  # fingerprints that are none: with fewer a document is judged by all, in the first POSTINGS documents of each
DEVIATIONS = 3.0  # of the sampling error below the threshold: misses 1 in 700 pairs at it
KEYS = 2**26  # of a column read by one task, about: 1.5 GiB of memory
PRINTS = 2**25  # fingerprints of one task: about 2 GiB
RANGES = 8  # of fingerprints, at least: so many nodes share the little there is


class Groups(NamedTuple):
    """Documents with something in common: ``members`` [M] by rank, ascending in each group of ``lengths`` [G]."""

    members: NDArray[np.int32]
    lengths: NDArray[np.int32]

    def each(self) -> Iterator[NDArray[np.int32]]:
        """Group by group."""
        yield from np.split(self.members, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else ()


def equal_groups(
    file: str, columns: Sequence[Sequence[int]], runs: Sequence[SignedParts], rank: NDArray[np.int32], worth_it: bool
) -> Iterator[Groups]:
    """Documents with equal numbers in all of ``columns[i]``, for each i in turn; a rank below 0 does not count."""
    shards = -(-len(rank) // KEYS) or 1
    jobs = [(file, tuple(which), shard, shards) for which in columns for shard in range(shards)]
    yield from spread(_equal, jobs, tuple(runs), rank, worth_it=worth_it)


def _equal(job: tuple[str, tuple[int, ...], int, int], runs: Sequence[SignedParts], rank: NDArray[np.int32]) -> Groups:
    """One task: of the documents whose first number falls to ``shard``."""
    file, columns, shard, shards = job
    found: list[list[NDArray[np.uint64]]] = []
    ranks: list[NDArray[np.int32]] = []
    for run in runs:
        mine = rank[run.first : run.first + run.documents]
        values = [run.column(file, at) for at in columns]
        here = mine >= 0
        if shards > 1:
            here &= values[0] % np.uint64(shards) == shard
        found.append([value[here] for value in values])
        ranks.append(mine[here])
    return groups([np.concatenate(column) for column in zip(*found, strict=True)], np.concatenate(ranks))


def groups(columns: Sequence[NDArray[np.uint64]], ranks: NDArray[np.int32]) -> Groups:
    """Those of ``ranks`` [N] that have the same number in every one of ``columns`` [N]."""
    keys: list[NDArray[Any]] = [ranks, *columns]
    order = np.lexsort(keys)
    differs = np.zeros(max(0, len(order) - 1), bool)
    for column in columns:
        ordered = column[order]
        differs |= ordered[1:] != ordered[:-1]
    edges = np.flatnonzero(np.r_[True, differs, True]) if len(order) else np.zeros(1, np.int64)
    lengths = np.diff(edges)
    several = lengths > 1
    return Groups(ranks[order[np.repeat(several, lengths)]], lengths[several].astype(np.int32))


class Components:
    """Documents connected through groups (union-find over ranks)."""

    def __init__(self, documents: int) -> None:
        self._above = np.arange(documents, dtype=np.int32)

    def join(self, found: Groups) -> None:
        """All members of each group belong together."""
        _join(self._above, found.members, found.lengths)

    def roots(self, ranks: NDArray[np.int32]) -> NDArray[np.int32]:
        """The first document, by rank, of the component of each of ``ranks``."""
        return np.asarray(_roots(self._above, ranks))


@njit(cache=True, nogil=True)
def _root(above: Any, at: Any) -> Any:
    while above[at] != at:
        above[at] = above[above[at]]
        at = above[at]
    return at


@njit(cache=True, nogil=True)
def _join(above: Any, members: Any, lengths: Any) -> None:
    start = 0
    for length in lengths:
        first = _root(above, members[start])
        for k in range(start + 1, start + length):
            other = _root(above, members[k])
            first, other = min(first, other), max(first, other)
            above[other] = first
        start += length


@njit(cache=True, nogil=True)
def _roots(above: Any, ranks: Any) -> Any:
    found = np.empty_like(ranks)
    for k in range(len(ranks)):
        found[k] = _root(above, ranks[k])
    return found


def proposals(bucket: NDArray[Any], compared: Container[DocumentPair]) -> Iterator[DocumentPair]:
    """Pairs of a bucket to compare next: all of a small one; of a large one those of the first document that has
    not been compared with every other. Repeated with what is still kept until nothing comes, that settles a bucket as
    comparing all its pairs would, without comparing the dropped ones with one another."""
    members = bucket.tolist()
    for i, preferred in enumerate(members):
        new = [pair for other in members[i + 1 :] if (pair := (preferred, other)) not in compared]
        yield from new
        if new and len(members) > SMALL_BUCKET:
            return


class Shared(NamedTuple):
    """What documents share with longer ones: ``hits`` [pairs] fingerprints of ``document`` in ``longer``, by rank."""

    document: NDArray[np.int32]
    longer: NDArray[np.int32]
    hits: NDArray[np.int32]


def contained_pairs(
    runs: Sequence[SignedParts],
    rank: NDArray[np.int32],
    prints: NDArray[np.int32],
    small: NDArray[np.bool_],
    threshold: float,
    worth_it: bool,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Pairs (longer document, document of ``small``) by rank, whose shared fingerprints suggest a containment of
    ``threshold``.

    ``prints``, ``small``: by rank, how many fingerprints a document has, and whether it is looked for. The share of
    ``s`` fingerprints found again scatters around the true containment t by sqrt(t (1 - t) / s); candidates lie above
    the threshold less ``DEVIATIONS`` of that. Fingerprints in more than ``POSTINGS`` documents do not count, but for
    documents that have fewer than ``FEW`` others.
    """
    total = sum(int(run.bins[-1]) for run in runs)
    step = max(1, min(BINS // RANGES, BINS * PRINTS // max(1, total)))
    ranges = [(start, min(BINS, start + step)) for start in range(0, BINS, step)]
    rare = prints.copy()
    for who, count in spread(_common, ranges, tuple(runs), rank, small, worth_it=worth_it):
        rare[who] -= count
    few = rare < FEW
    found = list(spread(_shared, ranges, tuple(runs), rank, small, few, worth_it=worth_it))
    return likely(found, np.where(few, prints, rare), threshold)


def likely(
    found: Sequence[Shared], counted: NDArray[np.int32], threshold: float
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(longer, document) of the pairs of all ranges taken together, in their order by (document, longer); ``counted``:
    fingerprints of each document that could be found."""
    document, longer, hits = summed(*map(np.concatenate, zip(*found, strict=True)))
    total = counted[document].astype(np.int64)
    needed = threshold * total - DEVIATIONS * np.sqrt(threshold * (1 - threshold) * total)
    chosen = hits >= np.maximum(needed, 2.0)
    return longer[chosen], document[chosen]


def summed(document: NDArray[np.int32], longer: NDArray[np.int32], hits: NDArray[np.int32]) -> Shared:
    """Each pair once, in order."""
    if not len(hits):
        return Shared(document, longer, hits)
    key = document.astype(np.int64) << 32 | longer
    order = np.argsort(key, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(key[order]) != 0])
    return Shared(document[order][first], longer[order][first], np.add.reduceat(hits[order], first))


def _printed(bins: tuple[int, int], runs: Sequence[SignedParts], rank: NDArray[np.int32]) -> tuple[Any, Any]:
    """(edges of the groups of one fingerprint, documents by rank) in a range of those of all documents that are kept
    (rank not below 0)."""
    values, ranks = [np.empty(0, np.uint64)], [np.empty(0, np.int32)]
    for run in runs:
        found, numbers = run.printed(*bins)
        mine = rank[numbers]
        values.append(found[mine >= 0])
        ranks.append(mine[mine >= 0])
    value, who = np.concatenate(values), np.concatenate(ranks)
    order = np.lexsort((who, value))
    value, who = value[order], who[order]
    edges = np.flatnonzero(np.r_[True, value[1:] != value[:-1], True]) if len(value) else np.zeros(1, np.int64)
    return edges, who


def _common(
    bins: tuple[int, int], runs: Sequence[SignedParts], rank: NDArray[np.int32], small: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """One task: (documents of ``small``, how many of their fingerprints are common)."""
    edges, who = _printed(bins, runs, rank)
    lengths = np.diff(edges)
    common = who[np.repeat(lengths > POSTINGS, lengths)]
    found, counts = np.unique(common[small[common]], return_counts=True)
    return found, counts.astype(np.int32)


def _shared(
    bins: tuple[int, int],
    runs: Sequence[SignedParts],
    rank: NDArray[np.int32],
    small: NDArray[np.bool_],
    few: NDArray[np.bool_],
) -> Shared:
    """One task: the pairs of a range of fingerprints."""
    edges, who = _printed(bins, runs, rank)
    document = np.empty(_pairs(who, edges, small, few, who[:0], who[:0]), np.int32)
    longer = np.empty_like(document)
    _pairs(who, edges, small, few, document, longer)
    return summed(document, longer, np.ones(len(document), np.int32))


@njit(cache=True, nogil=True)
def _pairs(who: Any, edges: Any, small: Any, few: Any, document: Any, longer: Any) -> Any:
    """How many pairs share a fingerprint; ``document``, ``longer`` take them up if they are not empty."""
    total = 0
    for group in range(len(edges) - 1):
        start, end = edges[group], edges[group + 1]
        for at in range(start + 1, end):
            if small[who[at]] and (end - start <= POSTINGS or few[who[at]]):
                before = min(at, start + POSTINGS)
                if len(document):
                    for other in range(start, before):
                        document[total + other - start], longer[total + other - start] = who[at], who[other]
                total += before - start
    return total
