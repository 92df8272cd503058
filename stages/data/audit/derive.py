"""What follows from the spans: per pair its class and margins, per evaluation document its sources and its remainder.

Works on the tables alone (docs/formats.md), so that a study's audit and a scan of any corpus read the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.audit.classify import Measured, SpanRanges, class_of, extent, margins, near_miss, shared_sources
from stages.data.audit.tables import BOOKS, CANARIES, PAIRS, shortened
from stages.data.corpus.documents import write_table
from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.decide import copies_of, covered, merged
from stages.data.matching.index import SAME_WORK_SHARE, Index
from stages.statistics.intervals import wilson

TOP_SOURCES = 100  # training documents listed per evaluation document
TOP_REMAINDERS = 200  # uncovered stretches listed per evaluation document

SOURCES = pa.schema(
    [
        ("book_id", pa.string()),
        ("rank", pa.int64()),
        ("doc_id", pa.string()),
        *((name, pa.string()) for name in ("action", "class")),
        ("words", pa.int64()),
        *((name, pa.float64()) for name in ("share", "new_share", "cumulative_share")),
    ]
)
REMAINDERS = pa.schema(
    [
        ("book_id", pa.string()),
        *((name, pa.int64()) for name in ("book_start", "book_end", "words")),
        ("text", pa.string()),
    ]
)
Pair = tuple[str, str]


def derive(folder: Path, index: Index, rule: DecontaminateConfig) -> dict[str, Any]:
    """Complete ``pairs``, ``books`` and ``canaries``, write ``sources`` and ``uncovered``; counts for the totals.

    Raises AssertionError where the spans do not cover what the table of evaluation documents says: a bug.
    """
    spans = _spans(folder / "spans.parquet")
    books = pq.read_table(folder / "books.parquet").to_pylist()
    sizes = pq.read_table(folder / "decisions.parquet", columns=["doc_id", "words"]).to_pydict()
    words = dict(zip(sizes["doc_id"], sizes["words"], strict=True))
    pairs = _classified(pq.read_table(folder / "pairs.parquet").to_pylist(), spans, words, index, rule)
    write_table(pa.Table.from_pylist(pairs, schema=PAIRS), folder / "pairs.parquet")
    ranges: dict[str, list[tuple[str, list[tuple[int, int]]]]] = defaultdict(list)
    for (document, book), found in spans.items():
        ranges[book].append((document, merged((s.book_first, s.book_last) for s in found)))
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
    write_table(pa.Table.from_pylist(books, schema=BOOKS), folder / "books.parquet")
    write_table(pa.Table.from_pylist(sources, schema=SOURCES), folder / "sources.parquet")
    write_table(pa.Table.from_pylist(remainders, schema=REMAINDERS), folder / "uncovered.parquet")
    canaries = [_recall(row) for row in pq.read_table(folder / "canaries.parquet").to_pylist()]
    write_table(pa.Table.from_pylist(canaries, schema=CANARIES), folder / "canaries.parquet")
    total = {name: sum(row[name] for row in canaries) for name in ("planted", "found", "acted")}
    return {
        "canaries": _recall({"kind": "all", **total}),
        "classes": _counted(row["class"] for row in pairs),
        "near_misses": _counted(row["near_miss"] for row in pairs if row["near_miss"]),
        "spans": sum(map(len, spans.values())),
        "pairs": len(pairs),
    }


def _spans(path: Path) -> dict[Pair, list[SpanRanges]]:
    """The numbers of all spans by (document, evaluation document); the evidence stays on disk."""
    found: dict[Pair, list[SpanRanges]] = defaultdict(list)
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(4096, columns=["doc_id", "book_id", *SpanRanges._fields]):
            columns = [batch[name].to_pylist() for name in ("doc_id", "book_id", *SpanRanges._fields)]
            for document, book, *numbers in zip(*columns, strict=True):
                found[document, book].append(SpanRanges(*numbers))
    return dict(found)


def _classified(
    rows: list[dict[str, Any]],
    spans: Mapping[Pair, Sequence[SpanRanges]],
    words: Mapping[str, int],
    index: Index,
    rule: DecontaminateConfig,
) -> list[dict[str, Any]]:
    book_words = {name: index.words_in(b) for b, name in enumerate(index.book_ids)}
    shared = shared_sources(spans, _works(index))
    for row in rows:
        pair = (row["doc_id"], row["book_id"])
        found = extent(spans[pair], words[pair[0]], book_words[pair[1]])
        dense_share = row["dense_words"] / max(1, book_words[pair[1]])
        numbers = Measured(row["longest_words"], row["dense_words"], row["document_share"], dense_share)
        copied = bool(copies_of(spans[pair], max(1, words[pair[0]]), max(1, book_words[pair[1]]), rule))
        row |= {
            "class": class_of(found, pair in shared, rule, copied),
            "spans": found.spans,
            "identity": found.identity,
            "document_covered": found.of_document,
            "book_covered": found.of_book,
            **margins(numbers, rule),
            "near_miss": near_miss(row["action"], numbers, rule),
        }
    return rows


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
    book: Mapping[str, Any], found: list[tuple[str, list[tuple[int, int]]]], pairs: Mapping[Pair, Mapping[str, Any]]
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
                "text": shortened(index.evidence(book, start, end)),
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
