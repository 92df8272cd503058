"""The rule: which documents go, in favour of which. Filters, then equal texts, then editions, then parts.

Every dropped document but a filtered one names a document that was kept when it was dropped and that it was compared
with: there are no chains of "similar to something similar". Who is kept does not depend on the order of the input, on
part files or on workers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stages.data.dedup.candidates import Pair, buckets, contained_pairs, proposals
from stages.data.dedup.compare import Compared
from stages.data.dedup.config import DedupConfig
from stages.data.dedup.signatures import Signatures

Compare = Callable[[Iterable[Pair]], list[Compared]]
NO_YEAR = 2**31 - 1


@dataclass(frozen=True)
class Removal:
    """Why one document is dropped. ``other``: the document that stood for it when it was dropped."""

    rule: str  # length, language, exact copy, same words, edition, contained
    reason: str
    measure: str
    score: float
    threshold: float
    text: str
    other_text: str = ""
    other: int | None = None


@dataclass
class Decided:
    """Document number -> removal, documents that are not named are kept; and every comparison that was made."""

    removals: dict[int, Removal] = field(default_factory=dict)
    compared: list[Compared] = field(default_factory=list)

    def kept_for(self, document: int) -> int | None:
        """The document of the output that stands for ``document``: itself, or where its removals lead; None if a
        filter took it."""
        at: int | None = document
        while at is not None and at in self.removals:
            at = self.removals[at].other
        return at


@dataclass(frozen=True)
class Described:
    """What else of the documents counts, by number."""

    ids: Sequence[str]
    digests: Sequence[str]  # sha256 of the texts
    years: Sequence[int | None]


def preference(distinct: NDArray[np.int64], described: Described) -> NDArray[np.int64]:
    """Document numbers, the one to be kept first: most distinct n-grams, earliest year (none is last), smallest id."""
    year = np.array([NO_YEAR if year is None else year for year in described.years], np.int64)
    return np.lexsort((np.array(described.ids, dtype=object), year, -distinct))


def decide(signed: Signatures, described: Described, config: DedupConfig, compare: Compare) -> Decided:
    """All rules, one after the other. ``compare`` takes pairs (other document, document)."""
    decided = Decided()
    for document, filtered in signed.filtered.items():
        decided.removals[document] = Removal(*filtered)
    order = preference(signed.distinct, described)
    if config.exact:
        _equal_texts(decided, order, signed, described.digests, compare)
    if config.editions is not None:
        _editions(decided, order, signed, config, compare)
    if config.containment is not None:
        _contained(decided, order, signed, config, compare)
    return decided


def _equal_texts(
    decided: Decided, order: NDArray[np.int64], signed: Signatures, digests: Sequence[str], compare: Compare
) -> None:
    by_bytes: dict[str, int] = {}
    by_words: dict[tuple[int, int], int] = {}
    rules: dict[Pair, str] = {}
    for document in order.tolist():
        if document in decided.removals:
            continue
        first = by_bytes.setdefault(digests[document], document)
        if first != document:
            rules[first, document] = "exact copy"
        elif signed.words[document]:
            first = by_words.setdefault((int(signed.same[document, 0]), int(signed.same[document, 1])), document)
            if first != document:
                rules[first, document] = "same words"
    for found in compare(rules):
        rule = rules[found.other, found.document]
        reason = "the same bytes" if rule == "exact copy" else "the same words in other typography"
        decided.removals[found.document] = Removal(
            rule, reason, "Jaccard", 1.0, 1.0, found.text, found.other_text, found.other
        )


def _editions(
    decided: Decided, order: NDArray[np.int64], signed: Signatures, config: DedupConfig, compare: Compare
) -> None:
    assert config.editions is not None
    threshold = config.editions.threshold
    rank = _ranks(order)
    candidates = [k for k, d in enumerate(order.tolist()) if d not in decided.removals and signed.distinct[d]]
    groups = buckets(signed.bands[order], np.array(candidates, np.int64))
    compared: dict[Pair, Compared] = {}
    dropped: dict[int, Compared] = {}
    while True:
        alive = [group[[k not in dropped for k in group.tolist()]] for group in groups]
        new = {pair for group in alive for pair in proposals(group, compared.keys())}
        if not new:
            break
        for found in compare((int(order[other]), int(order[document])) for other, document in new):
            compared[int(rank[found.other]), int(rank[found.document])] = found
        similar = {pair: found for pair, found in compared.items() if found.jaccard >= threshold}
        dropped = _greedy(similar, lambda found: found.jaccard)
    decided.compared += [compared[pair] for pair in sorted(compared)]
    for found in dropped.values():
        reason = f"Jaccard similarity {found.jaccard:.3f}, dropped from {threshold:g}; {_less_text(found, signed)}"
        decided.removals[found.document] = Removal(
            "edition", reason, "Jaccard", found.jaccard, threshold, found.text, found.other_text, found.other
        )


def _contained(
    decided: Decided, order: NDArray[np.int64], signed: Signatures, config: DedupConfig, compare: Compare
) -> None:
    assert config.containment is not None
    threshold = config.containment.threshold
    rank = _ranks(order)
    kept = [(k, d) for k, d in enumerate(order.tolist()) if d not in decided.removals]
    slices = [signed.fingerprints[signed.first[d] : signed.first[d + 1]] for _, d in kept]
    owners = np.repeat(np.array([k for k, _ in kept], np.int32), [len(part) for part in slices])
    small = np.array([k for k, d in kept if signed.words[d] >= config.containment.min_words], np.int32)
    prints = np.concatenate([np.empty(0, np.uint64), *slices])
    pairs = contained_pairs(prints, owners, small, threshold)
    known = {(found.other, found.document): found for found in decided.compared}
    numbered = [(int(order[longer]), int(order[document])) for longer, document in pairs]
    new = compare(pair for pair in numbered if pair not in known)
    decided.compared += new
    known |= {(found.other, found.document): found for found in new}
    inside = {
        (int(rank[other]), int(rank[document])): known[other, document]
        for other, document in numbered
        if known[other, document].containment >= threshold
    }
    for found in _greedy(inside, lambda found: found.containment).values():
        reason = (
            f"{found.containment:.1%} of its n-grams stand in the other text, dropped from {threshold:.0%}; "
            f"{_less_text(found, signed)}"
        )
        decided.removals[found.document] = Removal(
            "contained", reason, "containment", found.containment, threshold, found.text, found.other_text, found.other
        )


def _greedy(similar: dict[Pair, Compared], score: Callable[[Compared], float]) -> dict[int, Compared]:
    """By rank: a document is dropped if it is similar to a preferred one that is kept; with its best such pair."""
    preferred: dict[int, list[int]] = defaultdict(list)
    for other, document in similar:
        preferred[document].append(other)
    dropped: dict[int, Compared] = {}
    for document in sorted(preferred):
        kept = [similar[other, document] for other in sorted(preferred[document]) if other not in dropped]
        if kept:
            dropped[document] = max(kept, key=score)  # the preferred one of equals
    return dropped


def _ranks(order: NDArray[np.int64]) -> NDArray[np.int64]:
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank


def _less_text(found: Compared, signed: Signatures) -> str:
    mine, other = int(signed.distinct[found.document]), int(signed.distinct[found.other])
    if mine == other:
        return "kept is the earlier year, else the smaller id"
    return f"it has {mine:,} distinct n-grams, the other {other:,}"
