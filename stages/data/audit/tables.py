"""The audit as Parquet tables (docs/formats.md), the gravest rows first: the first page shows the worst."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.audit.findings import Audit, Document
from stages.data.matching.index import Index
from stages.data.matching.shards import EVIDENCE_CHARACTERS, Evidence, evidence_of

ROWS = 4096  # in memory at a time where a table may be long

_SHARED = [
    *((name, pa.string()) for name in ("doc_id", "book_id", "action", "reason")),
    *((name, pa.int64()) for name in ("matched_words", "longest_words")),
    *((name, pa.float64()) for name in ("document_share", "book_share")),
]
PAIRS = pa.schema(
    [
        *_SHARED,
        ("dense_words", pa.int64()),
        ("class", pa.string()),
        ("spans", pa.int64()),
        *((name, pa.float64()) for name in ("identity", "document_covered", "book_covered")),
        *((name, pa.float64()) for name in ("margin_act_words", "margin_drop_words")),
        *((name, pa.float64()) for name in ("margin_drop_document_share", "margin_drop_book_share")),
        ("near_miss", pa.string()),
    ]
)
DECISIONS = pa.schema([*_SHARED, *((name, pa.int64()) for name in ("words", "bytes_in", "bytes_out"))])
SPANS = pa.schema(
    [
        *((name, pa.string()) for name in ("doc_id", "book_id")),
        *((name, pa.int64()) for name in ("doc_start", "doc_end", "book_start", "book_end")),
        *((name, pa.int64()) for name in ("doc_first", "doc_last", "book_first", "book_last", "words", "near")),
        ("identity", pa.float64()),
        *((name, pa.string()) for name in ("doc_text", "book_text")),
    ]
)
BOOKS = pa.schema(
    [
        *((name, pa.string()) for name in ("book_id", "title", "split")),
        *((name, pa.int64()) for name in ("words", "bytes")),
        *((name, pa.float64()) for name in ("coverage", "coverage_after")),
        ("uncovered_words", pa.int64()),
        ("documents", pa.int64()),
        ("top_document", pa.string()),
        ("removed", pa.bool_()),
        ("cannot_be_found", pa.string()),
    ]
)
_GRAVITY = ("drop", "excise", "note", "keep")

CANARIES = pa.schema(
    [
        ("kind", pa.string()),
        *((name, pa.int64()) for name in ("planted", "found", "acted")),
        *((name, pa.float64()) for name in ("recall", "low", "high")),
    ]
)
TABLES = {
    "Evaluation documents": "books.parquet",
    "Top sources": "sources.parquet",
    "Pairs": "pairs.parquet",
    "Spans": "spans.parquet",
    "Uncovered remainders": "uncovered.parquet",
    "Decisions": "decisions.parquet",
    "Canaries": "canaries.parquet",
}
"""Title -> file of every table of an audit; ``derive`` writes the sources and the remainders."""


def write(audit: Audit, folder: Path) -> None:
    """Write decisions, pairs, spans, books and canaries. In memory are rows of documents with spans, without texts."""
    _write(folder / "decisions.parquet", DECISIONS, _decisions(audit))
    _write(folder / "pairs.parquet", PAIRS, _pairs(audit))
    _write(folder / "spans.parquet", SPANS, _spans(audit))
    _write(folder / "books.parquet", BOOKS, _books(audit))
    _write(folder / "canaries.parquet", CANARIES, [vars(recall) for recall in audit.recalls])


def _write(path: Path, schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> None:
    """As ``write_table``, some thousand rows at a time."""
    remaining = iter(rows)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while some := list(itertools.islice(remaining, ROWS)):
            writer.write_table(pa.Table.from_pylist(some, schema=schema), row_group_size=256)


def _decisions(audit: Audit) -> Iterator[dict[str, Any]]:
    """By action, the most matched words first, then in order of the corpus."""
    grave: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for document in audit.found():
        grave[document.action].append(_decision(audit, document))
    for action in _GRAVITY:
        yield from sorted(grave[action], key=lambda row: -row["matched_words"])
        if action in ("drop", "keep"):  # the only fates of a document that shares nothing
            yield from (
                _decision(audit, document)
                for document in audit.documents()
                if not document.evidence and document.action == action
            )


def _decision(audit: Audit, document: Document) -> dict[str, Any]:
    worst = document.decision.pairs[0] if document.decision.pairs else None
    return {
        "doc_id": document.doc_id,
        "book_id": audit.index.book_ids[worst.book] if worst else None,
        "action": document.action,
        "reason": document.reason,
        "matched_words": worst.matched if worst else 0,
        "longest_words": worst.longest if worst else 0,
        "document_share": worst.document_share if worst else 0.0,
        "book_share": worst.book_share if worst else 0.0,
        "words": document.words,
        "bytes_in": document.bytes,
        "bytes_out": document.bytes_out,
    }


def _pairs(audit: Audit) -> list[dict[str, Any]]:
    rows = [
        {
            "doc_id": document.doc_id,
            "book_id": audit.index.book_ids[pair.book],
            "action": pair.action,
            "reason": pair.reason,
            "matched_words": pair.matched,
            "longest_words": pair.longest,
            "document_share": pair.document_share,
            "book_share": pair.book_share,
            "dense_words": pair.dense,
        }
        for document in audit.found()
        for pair in document.decision.pairs
    ]
    return sorted(rows, key=lambda row: (-row["matched_words"], row["doc_id"], row["book_id"]))


def _spans(audit: Audit) -> Iterator[dict[str, Any]]:
    """The longest first. Sorted by their numbers; the texts stay in the shards' files until their row is written."""
    tables = [state.scan.spans_table() for state in audit.shards]
    shard = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    row = np.concatenate([np.arange(len(table)) for table in tables])
    named = sorted(range(len(audit.index.book_ids)), key=lambda book: audit.index.book_ids[book])
    rank = np.empty(len(named), np.int64)
    rank[named] = np.arange(len(named))
    book, document, start, matched = (
        np.concatenate([table[name].to_numpy() for table in tables]) for name in ("book", "row", "doc_start", "matched")
    )
    order = np.lexsort((rank[book], start, document, shard, -matched))
    for at in range(0, len(order), ROWS):
        some = order[at : at + ROWS]
        rows: dict[int, dict[str, Any]] = {}
        for s in np.unique(shard[some]):
            mine = some[shard[some] == s]
            found = tables[s].take(row[mine]).to_pylist()
            names = audit.shards[s].scan.table()["doc_id"]
            rows |= {
                int(k): span_row(names[values["row"]].as_py(), evidence_of(values), audit.index)
                for k, values in zip(mine, found, strict=True)
            }
        yield from (rows[int(k)] for k in some)


def span_row(doc_id: str, evidence: Evidence, index: Index) -> dict[str, Any]:
    """One row of ``spans``."""
    span = evidence.span
    return {
        "doc_id": doc_id,
        "book_id": index.book_ids[span.book],
        "doc_start": span.doc_start,
        "doc_end": span.doc_end,
        "book_start": span.book_start,
        "book_end": span.book_end,
        "doc_first": span.doc_first,
        "doc_last": span.doc_last,
        "book_first": span.book_first,
        "book_last": span.book_last,
        "words": span.matched,
        "near": span.near,
        "identity": span.identity,
        "doc_text": evidence.doc_text,
        "book_text": evidence.book_text,
    }


def shortened(text: str) -> str:
    """The beginning of a long text, with a sign that it goes on."""
    return text if len(text) <= EVIDENCE_CHARACTERS else text[:EVIDENCE_CHARACTERS] + " …"


def _books(audit: Audit) -> list[dict[str, Any]]:
    documents: Counter[int] = Counter()
    top: dict[int, tuple[int, str]] = defaultdict(lambda: (0, ""))
    for document in audit.found():
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
