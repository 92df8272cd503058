"""The audit as Parquet tables (docs/formats.md), the gravest rows first: the first page shows the worst."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.data.audit.derive import derive
from stages.data.audit.findings import COPY_OF, Audit, JudgedDocument, ShardState
from stages.data.corpus.documents import TableWriter, rows_at, write_table
from stages.data.matching.index import Index
from stages.data.matching.shards import span_of

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
_GRAVITY = ("drop", "cut", "note", "keep")

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
"""Title -> file of every table of an audit."""


def write(audit: Audit, folder: Path) -> dict[str, Any]:
    """Write all tables; what the totals say of them. In memory are rows of documents with spans, without texts."""
    found = list(audit.found())
    derived = derive(audit, found)
    with _writer(folder / "decisions.parquet", DECISIONS) as writer:
        _decisions(audit, found, writer)
    with _writer(folder / "spans.parquet", SPANS) as writer:
        for row in _spans(audit):
            writer.add(row)
    for name, schema, rows in (
        ("pairs", PAIRS, derived.pairs),
        ("books", BOOKS, derived.books),
        ("sources", SOURCES, derived.sources),
        ("uncovered", REMAINDERS, derived.remainders),
        ("canaries", CANARIES, derived.canaries),
    ):
        write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"{name}.parquet")
    return derived.totals


def _writer(path: Path, schema: pa.Schema) -> TableWriter:
    """As ``write_table``, of any number of rows."""
    return TableWriter(path, schema, rows=ROWS, compression="zstd")


def _decisions(audit: Audit, found: Sequence[JudgedDocument], writer: TableWriter) -> None:
    """By action, the most matched words first, then in order of the corpus."""
    grave: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for document in found:
        grave[document.action].append(_decision(audit, document))
    for action in _GRAVITY:
        for row in sorted(grave[action], key=lambda row: -row["matched_words"]):
            writer.add(row)
        if action in ("drop", "keep"):  # the only fates of a document that shares nothing
            for state in audit.shards:
                writer.add_table(_sharing_nothing(audit, state, action))


def _sharing_nothing(audit: Audit, state: ShardState, action: str) -> pa.Table:
    """The decisions on documents without a span: exact copies go, the others stay."""
    rows = state.scan.without_spans()
    copy = np.isin(rows, state.copies)
    rows = rows[copy if action == "drop" else ~copy]
    reason: Any = pa.repeat("", len(rows))
    if action == "drop":
        originals = audit.originals.take(pa.array(state.originals[np.searchsorted(state.copies, rows)]))
        reason = pc.binary_join_element_wise(COPY_OF, originals, "")
    table = state.scan.table()
    said = {
        "doc_id": rows_at(table["doc_id"], rows),
        "action": pa.repeat(action, len(rows)),
        "reason": reason,
        "words": rows_at(table["words"], rows),
        "bytes_in": rows_at(table["bytes"], rows),
        "bytes_out": np.maximum(state.sizes[rows], 0),
    }
    nothing = {name: np.zeros(len(rows)) for name in DECISIONS.names} | {"book_id": pa.nulls(len(rows))}
    columns = [pa.array(value) if isinstance(value, np.ndarray) else value for value in (nothing | said).values()]
    return pa.table(columns, DECISIONS.names).cast(DECISIONS)


def _decision(audit: Audit, document: JudgedDocument) -> dict[str, Any]:
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
                int(k): _span_row(names[values["row"]].as_py(), values, audit.index)
                for k, values in zip(mine, found, strict=True)
            }
        yield from (rows[int(k)] for k in some)


def _span_row(doc_id: str, values: dict[str, Any], index: Index) -> dict[str, Any]:
    """One row of ``spans`` from one of a shard's."""
    span = span_of(values)
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
        "doc_text": values["doc_text"],
        "book_text": values["book_text"],
    }
