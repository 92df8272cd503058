"""The rule: which documents go, in favour of which. Filters, then equal texts, then editions, then parts.

Every dropped document but a filtered one names a document that was kept when it was dropped and that it was compared
with: there are no chains of "similar to something similar". Who is kept does not depend on the order of the input, on
part files or on workers: documents that share no bucket with one another are decided apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit
from numpy.typing import NDArray

from stages.data.dedup.buckets import Buckets
from stages.data.dedup.candidates import Components, DocumentPair, Groups, contained_pairs, equal_groups, proposals
from stages.data.dedup.compare import COMPARED, COMPARED_FILE, Compare, Compared, CompareJob, batches
from stages.data.dedup.config import DedupConfig
from stages.data.dedup.numbered import CONTAINED, COPY, EDITION, WORDS, Corpus, tables
from stages.data.dedup.signatures import BANDS_FILE, EQUAL_FILE

CompareJobs = Callable[[Sequence[CompareJob], Callable[..., Iterable[tuple[Compared, bool]]]], list[str]]
"""(jobs, what each does) -> folders of the files of what was found."""


@dataclass(frozen=True)
class Decided:
    """Every comparison, as ``COMPARED``, mapped: the first ``equal`` rows are of equal texts, which were no question.
    ``removals``: the rows that removed a document, ``removed`` [R] those documents, ascending."""

    compared: pa.Table
    equal: int
    removals: NDArray[np.int64]
    removed: NDArray[np.int64]


def decide(corpus: Corpus, config: DedupConfig, compare: CompareJobs, worth_it: bool) -> Decided:
    """All rules, one after the other; enters every removal in ``corpus``."""
    equal, found = COMPARED.empty_table(), COMPARED.empty_table()
    removals = []
    if config.exact:
        equal = _equal_texts(corpus, compare, worth_it)
        removals.append(np.arange(equal.num_rows))
    if config.editions is not None:
        found = _editions(corpus, config.editions.bands, config.editions.threshold, compare, worth_it)
        removals.append(equal.num_rows + np.flatnonzero(found["removes"].to_numpy()))
    if config.containment is not None:
        inside = config.containment
        found, rows = _contained(corpus, found, inside.threshold, inside.min_words, compare, worth_it)
        removals.append(equal.num_rows + rows)
    rows = np.concatenate([np.empty(0, np.int64), *removals])
    compared = pa.concat_tables([equal, found])
    documents = compared["document"].to_numpy()[rows].astype(np.int64)
    order = np.argsort(documents)
    return Decided(compared, equal.num_rows, rows[order], documents[order])


def _equal_texts(corpus: Corpus, compare: CompareJobs, worth_it: bool) -> pa.Table:
    pairs = [_dropped(corpus, equal_groups(EQUAL_FILE, [(0, 1)], corpus.runs, corpus.kept_ranks(), worth_it), COPY)]
    wordless = corpus.column("words") == 0
    ranks = corpus.kept_ranks(wordless)
    pairs.append(_dropped(corpus, equal_groups(EQUAL_FILE, [(2, 3)], corpus.runs, ranks, worth_it), WORDS))
    return _compared(corpus, np.concatenate(pairs), compare, decided_pairs)


def _dropped(corpus: Corpus, found: Iterable[Groups], rule: int) -> NDArray[np.int32]:
    """Drop all but the first document of every group; the pairs (first, dropped), [P, 2]."""
    pairs = [np.empty((0, 2), np.int32)]
    for groups in found:
        starts = np.cumsum(groups.lengths) - groups.lengths
        first = np.repeat(groups.members[starts], groups.lengths)
        others = np.ones(len(first), bool)
        others[starts] = False
        pairs.append(corpus.order[np.stack([first[others], groups.members[others]], 1)])
    all_pairs = np.concatenate(pairs)
    corpus.drop(all_pairs[:, 1], rule, all_pairs[:, 0])
    return all_pairs


def _compared(
    corpus: Corpus,
    pairs: NDArray[np.int32],
    compare: CompareJobs,
    work: Callable[..., Iterable[tuple[Compared, bool]]],
) -> pa.Table:
    """The pairs (other, document) compared, each by itself."""
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    new = np.r_[True, pairs[1:, 0] != pairs[:-1, 0]] if len(pairs) else np.empty(0, bool)
    sizes = corpus.column("bytes")
    task = batches(sizes[pairs[:, 1]] + sizes[pairs[:, 0]] * new)
    each = np.split(pairs, np.flatnonzero(np.diff(task)) + 1) if len(pairs) else []
    jobs = [CompareJob(np.unique(some), (some[:, 0], some[:, 1])) for some in each]
    return tables(compare(jobs, work), COMPARED_FILE, COMPARED, corpus.spill)


def decided_pairs(given: tuple[NDArray[np.int32], ...], compare: Compare) -> Iterator[tuple[Compared, bool]]:
    """In a task: (others, documents), of which the latter are dropped whatever the comparison says."""
    for found in compare(zip(*(side.tolist() for side in given), strict=True)):
        yield found, True


def open_pairs(given: tuple[NDArray[np.int32], ...], compare: Compare) -> Iterator[tuple[Compared, bool]]:
    """In a task: (others, documents), of which nothing is decided yet."""
    for found in compare(zip(*(side.tolist() for side in given), strict=True)):
        yield found, False


def _editions(corpus: Corpus, bands: int, threshold: float, compare: CompareJobs, worth_it: bool) -> pa.Table:
    ranks = corpus.kept_ranks(corpus.column("distinct") == 0)
    connected, buckets = Components(corpus.size), Buckets(corpus.spill, corpus.size)
    for groups in equal_groups(BANDS_FILE, [(band,) for band in range(bands)], corpus.runs, ranks, worth_it):
        connected.join(groups)
        buckets.add(groups)
    jobs = list(_by_component(corpus, connected, buckets, threshold))
    table = tables(compare(jobs, editions), COMPARED_FILE, COMPARED, corpus.spill)
    gone = table.select(["document", "other"]).filter(table["removes"])
    corpus.drop(gone["document"].to_numpy(), EDITION, gone["other"].to_numpy())
    return table


def _by_component(corpus: Corpus, connected: Components, buckets: Buckets, threshold: float) -> Iterator[CompareJob]:
    """Documents connected through buckets go to one task together: what is kept of them hangs on no others."""
    ranks = np.flatnonzero(buckets.documents).astype(np.int32)
    if not len(ranks):
        return
    roots = connected.roots(ranks)
    order = np.argsort(roots, kind="stable")
    begins = np.flatnonzero(np.r_[True, np.diff(roots[order]) != 0])
    sizes = np.add.reduceat(corpus.column("bytes")[corpus.order[ranks[order]]], begins)
    task = np.empty(len(ranks), np.int64)  # of each of ``ranks``
    task[order] = np.repeat(batches(sizes), np.diff(np.append(begins, len(order))))
    by_rank = np.argsort(task, kind="stable")
    edges = np.searchsorted(task[by_rank], np.arange(int(task.max()) + 2))
    found = buckets.by_task(lambda members: task[np.searchsorted(ranks, members)], len(edges) - 1)
    for groups, start, end in zip(found, edges[:-1], edges[1:], strict=True):
        mine = ranks[by_rank[start:end]]
        numbers = corpus.order[mine]
        yield CompareJob(np.sort(numbers), (*groups, mine, numbers, np.array(threshold)))


def editions(given: tuple[NDArray[np.int32], ...], compare: Compare) -> Iterator[tuple[Compared, bool]]:
    """In a task: what is kept of the documents of some buckets. ``given``: members of the buckets by rank, their
    lengths, all ranks and the documents' numbers, the threshold."""
    members, lengths, ranks, numbers, threshold = given
    number = dict(zip(ranks.tolist(), numbers.tolist(), strict=True))
    buckets = {group.tobytes(): group for group in Groups(members, lengths).each()}
    compared: dict[DocumentPair, Compared] = {}
    dropped: dict[int, Compared] = {}
    while True:
        alive = (group[[k not in dropped for k in group.tolist()]] for group in buckets.values())
        new = sorted({pair for group in alive for pair in proposals(group, compared.keys())})
        if not new:
            break
        for pair, found in zip(new, compare((number[a], number[b]) for a, b in new), strict=True):
            compared[pair] = found
        similar = {pair: found for pair, found in compared.items() if found.jaccard >= float(threshold)}
        dropped = _greedy(similar)
    for pair in sorted(compared):
        yield compared[pair], dropped.get(pair[1]) is compared[pair]


def _greedy(similar: dict[DocumentPair, Compared]) -> dict[int, Compared]:
    """By rank: a document is dropped if it is similar to a preferred one that is kept; with its best such pair."""
    preferred: dict[int, list[int]] = defaultdict(list)
    for other, document in similar:
        preferred[document].append(other)
    dropped: dict[int, Compared] = {}
    for document in sorted(preferred):
        kept = [similar[other, document] for other in sorted(preferred[document]) if other not in dropped]
        if kept:
            dropped[document] = max(kept, key=lambda found: found.jaccard)  # the preferred one of equals
    return dropped


def _contained(
    corpus: Corpus, known: pa.Table, threshold: float, min_words: int, compare: CompareJobs, worth_it: bool
) -> tuple[pa.Table, NDArray[np.int64]]:
    """(all comparisons, those of ``known`` first; rows of those by which a document is dropped as part of another)."""
    ranks, order = corpus.kept_ranks(), corpus.order
    small = corpus.column("words")[order] >= min_words
    prints = corpus.column("prints")[order].astype(np.int32)
    longer, document = contained_pairs(corpus.runs, ranks, prints, small, threshold, worth_it)
    pairs = np.stack([order[longer], order[document]], 1)
    before = _keys(known["other"].to_numpy(), known["document"].to_numpy())
    new = pairs[~np.isin(_keys(pairs[:, 0], pairs[:, 1]), before)]
    table = pa.concat_tables([known, _compared(corpus, new, compare, open_pairs)])
    others, documents = table["other"].to_numpy(), table["document"].to_numpy()
    asked = np.isin(_keys(others, documents), _keys(pairs[:, 0], pairs[:, 1]))
    rows = np.flatnonzero(asked & pc.greater_equal(table["containment"], threshold).to_numpy())
    rows = rows[np.lexsort((corpus.rank[others[rows]], corpus.rank[documents[rows]]))]
    chosen = greedy(documents[rows], others[rows], table["containment"].to_numpy()[rows], corpus.size)
    corpus.drop(documents[rows[chosen]], CONTAINED, others[rows[chosen]])
    return table, rows[chosen]


def _keys(others: NDArray[np.int32], documents: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.asarray(others.astype(np.int64) << 32 | documents)


@njit(cache=True, nogil=True)
def greedy(documents, others, scores, size):  # type: ignore[no-untyped-def]
    """Of pairs of similar documents, sorted by the ranks of document and other: the ones by which a document is
    dropped. It is if it is similar to a preferred one that is kept, by its best such pair."""
    dropped = np.zeros(size, np.bool_)
    chosen = np.zeros(len(documents), np.bool_)
    start = 0
    while start < len(documents):
        end, best = start, -1
        while end < len(documents) and documents[end] == documents[start]:
            if not dropped[others[end]] and (best < 0 or scores[end] > scores[best]):
                best = end
            end += 1
        if best >= 0:
            chosen[best] = dropped[documents[start]] = True
        start = end
    return chosen
