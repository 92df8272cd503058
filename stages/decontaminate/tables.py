"""The audit as Parquet tables (docs/formats.md), the gravest rows first: the first page shows the worst."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from stages.corpus.documents import write_table
from stages.decontaminate.chain import Span
from stages.decontaminate.index import Index

if TYPE_CHECKING:
    from stages.decontaminate.run import Audit

EVIDENCE_CHARACTERS = 600  # of each side of a span

_SHARED = [
    *((name, pa.string()) for name in ("doc_id", "book_id", "action", "reason")),
    *((name, pa.int64()) for name in ("matched_words", "longest_words")),
    *((name, pa.float64()) for name in ("document_share", "book_share")),
]
PAIRS = pa.schema(
    [
        *_SHARED,
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
        *((name, pa.int64()) for name in ("doc_first", "doc_last", "book_first", "book_last", "words")),
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
    """Write decisions, pairs, spans, books and canaries."""
    for name, schema, rows in (
        ("decisions", DECISIONS, _decisions(audit)),
        ("pairs", PAIRS, _pairs(audit)),
        ("spans", SPANS, _spans(audit)),
        ("books", BOOKS, _books(audit)),
        ("canaries", CANARIES, [vars(recall) for recall in audit.recalls]),
    ):
        write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"{name}.parquet")


def action(audit: Audit, i: int) -> str:
    """What happened to training document ``i``; an exact copy of another training document is dropped."""
    return "drop" if audit.documents[i].copy_of is not None else audit.decisions[i].action


def _decisions(audit: Audit) -> list[dict[str, Any]]:
    rows = []
    for i, (document, decision) in enumerate(zip(audit.documents, audit.decisions, strict=True)):
        worst = decision.pairs[0] if decision.pairs else None
        reason = decision.reason
        if document.copy_of is not None:
            reason = f"exact copy of {document.copy_of}" + (f"; {reason}" if reason else "")
        rows.append({
            "doc_id": document.doc_id,
            "book_id": audit.index.book_ids[worst.book] if worst else None,
            "action": action(audit, i),
            "reason": reason,
            "matched_words": worst.matched if worst else 0,
            "longest_words": worst.longest if worst else 0,
            "document_share": worst.document_share if worst else 0.0,
            "book_share": worst.book_share if worst else 0.0,
            "words": audit.scanned[i].words,
            "bytes_in": document.bytes,
            "bytes_out": audit.bytes_out[i],
        })  # fmt: skip
    return sorted(rows, key=lambda row: (_GRAVITY.index(row["action"]), -row["matched_words"], row["doc_id"]))


def _pairs(audit: Audit) -> list[dict[str, Any]]:
    rows = [
        {
            "doc_id": document.doc_id, "book_id": audit.index.book_ids[pair.book],
            "action": pair.action, "reason": pair.reason,
            "matched_words": pair.matched, "longest_words": pair.longest,
            "document_share": pair.document_share, "book_share": pair.book_share,
        }
        for document, decision in zip(audit.documents, audit.decisions, strict=True)
        for pair in decision.pairs
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (-row["matched_words"], row["doc_id"], row["book_id"]))


def _spans(audit: Audit) -> list[dict[str, Any]]:
    rows = [
        span_row(document.doc_id, span, audit.index, audit.evidence[i])
        for i, (document, scanned) in enumerate(zip(audit.documents, audit.scanned, strict=True))
        for span in scanned.spans
    ]
    return sorted(rows, key=lambda row: (-row["words"], row["doc_id"], row["doc_start"], row["book_id"]))


def span_row(doc_id: str, span: Span, index: Index, text: bytes) -> dict[str, Any]:
    """One row of ``spans``; ``text`` is the whole document the span was found in."""
    return {
        "doc_id": doc_id, "book_id": index.book_ids[span.book],
        "doc_start": span.doc_start, "doc_end": span.doc_end,
        "book_start": span.book_start, "book_end": span.book_end,
        "doc_first": span.doc_first, "doc_last": span.doc_last,
        "book_first": span.book_first, "book_last": span.book_last,
        "words": span.matched, "identity": span.identity,
        "doc_text": shortened(text[span.doc_start : span.doc_end].decode(errors="replace")),
        "book_text": shortened(index.evidence(span.book, span.book_start, span.book_end)),
    }  # fmt: skip


def shortened(text: str) -> str:
    """The beginning of a long text, with a sign that it goes on."""
    return text if len(text) <= EVIDENCE_CHARACTERS else text[:EVIDENCE_CHARACTERS] + " …"


def _books(audit: Audit) -> list[dict[str, Any]]:
    documents: Counter[int] = Counter()
    top: dict[int, tuple[int, str]] = defaultdict(lambda: (0, ""))
    for document, decision in zip(audit.documents, audit.decisions, strict=True):
        for pair in decision.pairs:
            documents[pair.book] += 1
            if pair.matched > top[pair.book][0]:
                top[pair.book] = (pair.matched, document.doc_id)
    rows = [
        {
            "book_id": row["doc_id"], "title": row["title"], "split": row["split"],
            "words": audit.index.words_in(book),
            "bytes": int(audit.index.first_byte[book + 1] - audit.index.first_byte[book]),
            "coverage": audit.before.get(book, 0.0), "coverage_after": audit.after.get(book, 0.0),
            "documents": documents[book],
            "top_document": top[book][1] or None, "removed": book in audit.removed_books,
        }
        for book, row in enumerate(audit.books)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (-row["coverage"], row["book_id"]))
