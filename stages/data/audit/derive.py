"""What follows from the spans: per pair its class and margins, per evaluation document its sources and its remainder.

From the numbers of the spans alone, read once (``ShardState.found``): a study's audit and a scan of any corpus are made
the same way.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stages.data.audit.classify import Measured, Range, class_of, extent, margins, near_miss, shared_sources
from stages.data.audit.findings import Audit, JudgedDocument
from stages.data.decontaminate.decide import covered, merged
from stages.data.matching.index import SAME_WORK_SHARE, Index
from stages.data.matching.shards import EVIDENCE_CHARACTERS
from stages.statistics.intervals import wilson

TOP_SOURCES = 100  # training documents listed per evaluation document
TOP_REMAINDERS = 200  # uncovered stretches listed per evaluation document

IdPair = tuple[str, str]


class Derived(NamedTuple):
    """Rows of the tables of these names (docs/formats.md); ``totals``: what audit.json says of them."""

    pairs: list[dict[str, Any]]
    books: list[dict[str, Any]]
    sources: list[dict[str, Any]]
    remainders: list[dict[str, Any]]
    canaries: list[dict[str, Any]]
    totals: dict[str, Any]


def derive(audit: Audit, found: Sequence[JudgedDocument]) -> Derived:
    """The rows that follow from the documents with spans.

    Raises AssertionError where the spans do not cover what the audit says of an evaluation document: a bug.
    """
    index = audit.index
    pairs, ranges, spans = _pairs(audit, found)
    books = _books(audit, found)
    by_pair = {(row["doc_id"], row["book_id"]): row for row in pairs}
    sources = [row for book in books for row in _sources(book, ranges.get(book["book_id"], []), by_pair)]
    number = {name: i for i, name in enumerate(index.book_ids)}
    remainders = []
    for book in books:
        found_in = ranges.get(book["book_id"], [])
        together = merged(r for _, rs in found_in for r in rs)
        book["uncovered_words"] = book["words"] - covered(together)
        if not abs((book["words"] - book["uncovered_words"]) / max(1, book["words"]) - book["coverage"]) < 1e-9:
            raise AssertionError(f"{book['book_id']}: spans cover {covered(together)} words, not {book['coverage']}")
        if found_in:
            remainders += _remainders(index, number[book["book_id"]], together)
    canaries = [_recall(vars(recall)) for recall in audit.recalls]
    planted = {name: sum(row[name] for row in canaries) for name in ("planted", "found", "acted")}
    totals = {
        "canaries": _recall({"kind": "all", **planted}),
        "classes": _counted(row["class"] for row in pairs),
        "near_misses": _counted(row["near_miss"] for row in pairs if row["near_miss"]),
        "spans": spans,
        "pairs": len(pairs),
    }
    return Derived(pairs, books, sources, remainders, canaries, totals)


def _pairs(
    audit: Audit, found: Sequence[JudgedDocument]
) -> tuple[list[dict[str, Any]], dict[str, list[tuple[str, list[Range]]]], int]:
    """(rows, most matched words first; book_id -> word ranges of it in each document; number of spans)."""
    ids, rule = audit.index.book_ids, audit.rule
    spans = {(document.doc_id, ids[pair.book]): pair.spans for document in found for pair in document.decision.pairs}
    shared = shared_sources(spans, _works(audit.index))
    ranges: dict[str, list[tuple[str, list[Range]]]] = defaultdict(list)
    rows: list[dict[str, Any]] = []
    for document in found:
        for pair in document.decision.pairs:
            book = ids[pair.book]
            ranges[book].append((document.doc_id, merged((s.book_first, s.book_last) for s in pair.spans)))
            words = audit.index.words_in(pair.book)
            whole = extent(pair.spans, document.words, words)
            numbers = Measured(pair.longest, pair.dense, pair.document_share, pair.dense / max(1, words))
            rows.append(
                {
                    "doc_id": document.doc_id,
                    "book_id": book,
                    "action": pair.action,
                    "reason": pair.reason,
                    "matched_words": pair.matched,
                    "longest_words": pair.longest,
                    "document_share": pair.document_share,
                    "book_share": pair.book_share,
                    "dense_words": pair.dense,
                    "class": class_of(whole, (document.doc_id, book) in shared, rule, bool(pair.copies)),
                    "spans": whole.spans,
                    "identity": whole.identity,
                    "document_covered": whole.of_document,
                    "book_covered": whole.of_book,
                    **margins(numbers, rule),
                    "near_miss": near_miss(pair.action, numbers, rule),
                }
            )
    rows.sort(key=lambda row: (-row["matched_words"], row["doc_id"], row["book_id"]))
    return rows, ranges, sum(map(len, spans.values()))


def _books(audit: Audit, found: Sequence[JudgedDocument]) -> list[dict[str, Any]]:
    documents: Counter[int] = Counter()
    top: dict[int, tuple[int, str]] = defaultdict(lambda: (0, ""))
    for document in found:
        for pair in document.decision.pairs:
            documents[pair.book] += 1
            if pair.matched > top[pair.book][0]:
                top[pair.book] = (pair.matched, document.doc_id)
    rows = [
        {
            "book_id": row["doc_id"],
            "title": row["title"],
            "split": row["split"],
            "words": audit.index.words_in(book),
            "bytes": int(audit.index.first_byte[book + 1] - audit.index.first_byte[book]),
            "coverage": audit.before.get(book, 0.0),
            "coverage_after": None if audit.after is None else audit.after.get(book, 0.0),
            "documents": documents[book],
            "top_document": top[book][1] or None,
            "removed": book in audit.removed_books,
            "cannot_be_found": audit.hidden.get(book),
        }
        for book, row in enumerate(audit.books)
    ]
    return sorted(rows, key=lambda row: (-row["coverage"], row["book_id"]))


def _works(index: Index) -> dict[str, str]:
    """book_id -> the first of the evaluation documents it is a copy or an edition of."""
    parent = {name: name for name in index.book_ids}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for a, b, share in index.shared:
        if share >= SAME_WORK_SHARE:
            one, other = sorted((root(index.book_ids[a]), root(index.book_ids[b])))
            parent[other] = one
    return {name: root(name) for name in parent}


def _sources(
    book: Mapping[str, Any], found: list[tuple[str, list[tuple[int, int]]]], pairs: Mapping[IdPair, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The training documents that hold most of an evaluation document, and what each adds to those above it."""
    order = sorted(found, key=lambda item: (-covered(item[1]), item[0]))[:TOP_SOURCES]
    rows: list[dict[str, Any]] = []
    together: list[tuple[int, int]] = []
    before = 0
    for rank, (document, ranges) in enumerate(order, 1):
        together = merged([*together, *ranges])
        now, own = covered(together), covered(ranges)
        pair = pairs[document, book["book_id"]]
        rows.append(
            {
                "book_id": book["book_id"],
                "rank": rank,
                "doc_id": document,
                "action": pair["action"],
                "class": pair["class"],
                "words": own,
                "share": own / max(1, book["words"]),
                "new_share": (now - before) / max(1, book["words"]),
                "cumulative_share": now / max(1, book["words"]),
            }
        )
        before = now
    return rows


def _remainders(index: Index, book: int, together: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Stretches of an evaluation document that no training document holds, the longest first."""
    base, words = int(index.first_word[book]), index.words_in(book)
    edges = [0, *(edge for found in together for edge in found), words]
    gaps = [(edges[i], edges[i + 1]) for i in range(0, len(edges), 2) if edges[i] < edges[i + 1]]
    rows = []
    for first, last in sorted(gaps, key=lambda gap: (gap[0] - gap[1], gap))[:TOP_REMAINDERS]:
        start, end = int(index.starts[base + first]), int(index.ends[base + last - 1])
        rows.append(
            {
                "book_id": index.book_ids[book],
                "book_start": start,
                "book_end": end,
                "words": last - first,
                "text": _shortened(index.evidence(book, start, end)),
            }
        )
    return rows


def _recall(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of canaries with the share acted on and its Wilson 95% interval, null where none was planted."""
    found = wilson(row["acted"], row["planted"]) if row["planted"] else None
    counts = {name: row[name] for name in ("kind", "planted", "found", "acted")}
    return {**counts, "recall": found and found.estimate, "low": found and found.low, "high": found and found.high}


def _counted(names: Any) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[name] += 1
    return dict(sorted(counts.items()))


def _shortened(text: str) -> str:
    """The beginning of a long text, with a sign that it goes on."""
    return text if len(text) <= EVIDENCE_CHARACTERS else text[:EVIDENCE_CHARACTERS] + " …"
