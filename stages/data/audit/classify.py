"""What kind of sharing a pair is, and how far it lies from each threshold. Every rule here is stated in CLASSES.

Classes go by what is *covered* (from the first to the last word of each span, disagreeing words included), so that an
edition with many misreadings is still an edition; decisions (``decide``) go by the words that agree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.decide import covered, merged
from stages.data.matching.chain import Span

MOST = 2 / 3  # of a text, to be "most of it": halves of a book, bound as two volumes, are not the book
SAME_TEXT = 0.98  # agreeing words of two copies of one edition; other editions lie at 0.80 to 0.97
ELSEWHERE = 2  # other training documents that hold a passage, from which on it is taken for widely quoted
NEAR = 0.8  # of a threshold not reached, from which on a pair is a near miss

CLASSES = {
    "whole": "spans cover at least two thirds of both texts, and 98% of the covered words agree: the same text",
    "edition": "spans cover at least two thirds of both texts, fewer words agree: another edition, scan or translation "
    "of spelling",
    "anthology": "at least two thirds of the evaluation document stand inside a longer training document",
    "translation": "in no span `copy_share` (85%) of the words agree or nearly agree: paraphrase or other translation",
    "shared source": "at least half of the text shared also stands in another evaluation work, or in two or more other "
    "training documents: both sides may quote a third",
    "excerpt": "a passage long enough to act on; also a volume or a part of the evaluation document",
    "quotation": "only passages too short to act on",
}
"""Class -> its rule. The first one that fits counts, in this order."""

Range = tuple[int, int]


@dataclass(frozen=True)
class Extent:
    """How much of both texts the spans of one pair cover. Shares 0 to 1; ``identity``: agreeing over covered words."""

    spans: int
    longest: int
    of_document: float
    of_book: float
    identity: float


def extent(spans: Sequence[Span], document_words: int, book_words: int) -> Extent:
    """The extent of at least one span."""
    in_document = covered((s.doc_first, s.doc_last) for s in spans)
    in_book = covered((s.book_first, s.book_last) for s in spans)
    agreeing = sum(s.matched for s in spans)
    return Extent(
        len(spans),
        max(s.alike for s in spans),
        in_document / max(1, document_words),
        in_book / max(1, book_words),
        min(1.0, agreeing / max(1, sum(s.longer for s in spans))),
    )


def class_of(found: Extent, shared: bool, rule: DecontaminateConfig, copied: bool = True) -> str:
    """One of CLASSES. ``copied``: at least one span is a copy (``decide.copies_of``)."""
    if found.of_book >= MOST and found.of_document >= MOST:
        return "whole" if found.identity >= SAME_TEXT else "edition"
    if found.of_book >= MOST:
        return "anthology"
    if not copied:
        return "translation"
    if shared:
        return "shared source"
    return "excerpt" if found.longest >= rule.act_words else "quotation"


def shared_sources(pairs: Mapping[tuple[str, str], Sequence[Span]], work: Mapping[str, str]) -> set[tuple[str, str]]:
    """The (document, book) pairs of which half the text shared also stands elsewhere.

    ``pairs``: (doc_id, book_id) -> spans. ``work``: book_id -> the work it is an edition of; editions of one work are
    not "elsewhere". Text in copies of one another in the training corpus counts as often as it stands there.
    """
    by_book: dict[str, list[tuple[str, list[Range]]]] = defaultdict(list)
    by_document: dict[str, dict[str, list[Range]]] = defaultdict(lambda: defaultdict(list))
    for (document, book), spans in pairs.items():
        by_book[book].append((document, merged((s.book_first, s.book_last) for s in spans)))
        by_document[document][work.get(book, book)] += [(s.doc_first, s.doc_last) for s in spans]
    widely = {book: deep((ranges for _, ranges in found), 1 + ELSEWHERE) for book, found in by_book.items()}
    doubly = {
        document: deep((merged(ranges) for ranges in works.values()), 2)
        for document, works in by_document.items()
        if len(works) > 1
    }
    found = set()
    for (document, book), spans in pairs.items():
        in_book = merged((s.book_first, s.book_last) for s in spans)
        in_document = merged((s.doc_first, s.doc_last) for s in spans)
        if 2 * overlap(in_book, widely[book]) >= covered(in_book) or 2 * overlap(
            in_document, doubly.get(document, [])
        ) >= covered(in_document):
            found.add((document, book))
    return found


def deep(layers: Iterable[Sequence[Range]], depth: int) -> list[Range]:
    """Ranges where at least ``depth`` layers overlap; the ranges of one layer must not overlap each other."""
    events = sorted(event for layer in layers for start, end in layer for event in ((start, 1), (end, -1)))
    out: list[Range] = []
    level, since = 0, 0
    for at, change in events:
        if level < depth <= level + change:
            since = at
        elif level + change < depth <= level and at > since:
            out.append((since, at))
        level += change
    return merged(out)


def overlap(a: Sequence[Range], b: Sequence[Range]) -> int:
    """Length of the intersection of two lists of ranges, each in order and without overlaps."""
    total, i, j = 0, 0, 0
    while i < len(a) and j < len(b):
        total += max(0, min(a[i][1], b[j][1]) - max(a[i][0], b[j][0]))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return total


class Measured(NamedTuple):
    """The numbers of a pair that decide: words of the longest span and of the densest stretch, the share of all in the
    document, and of the densest stretch in the evaluation document."""

    longest: int
    dense: int
    document_share: float
    book_share: float


def margins(found: Measured, rule: DecontaminateConfig) -> dict[str, float]:
    """Value less threshold, one per threshold: at or above 0 it is reached. Words, words, share, share."""
    return {
        "margin_act_words": float(found.longest - rule.act_words),
        "margin_drop_words": float(found.dense - rule.drop_words),
        "margin_drop_document_share": found.document_share - rule.drop_document_share,
        "margin_drop_book_share": found.book_share - rule.drop_book_share,
    }


def near_miss(action: str, found: Measured, rule: DecontaminateConfig) -> str:
    """The threshold that would have changed the action and was reached to NEAR or more but not wholly; "" for none."""
    drop = {
        "drop_words": found.dense / rule.drop_words,
        "drop_document_share": found.document_share / rule.drop_document_share,
        "drop_book_share": found.book_share / rule.drop_book_share,
    }
    reached = {"note": {"act_words": found.longest / rule.act_words}, "cut": drop}.get(action)
    if reached is None:
        return ""
    name = max(reached, key=lambda key: reached[key])
    return name if NEAR <= reached[name] < 1 else ""
