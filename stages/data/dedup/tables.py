"""The one table: what became of every training document of the corpus, with the evidence (docs/formats.md)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.corpus.documents import write_table
from stages.data.dedup.decide import Decided
from stages.data.dedup.signatures import SAID, Signatures
from stages.stage import Artifact

STRINGS = ("doc_id", "fate", "stage", "rule", "reason", "other_id", "kept_id", "measure")
DECISIONS = pa.schema(
    [
        *((name, pa.string()) for name in STRINGS),
        *((name, pa.float64()) for name in ("score", "threshold")),
        *((name, pa.string()) for name in ("text", "other_text", "contamination", "language")),
        *((name, pa.int64()) for name in ("words", "bytes_in", "bytes_out")),
    ]
)
FATES = pa.schema(
    [
        *((name, pa.string()) for name in ("fate", "stage", "rule")),
        *((name, pa.int64()) for name in ("documents", "bytes_in", "bytes_out")),
    ]
)
PAIRS = pa.schema(
    [
        *((name, pa.string()) for name in ("doc_id", "other_id", "rule")),
        *((name, pa.float64()) for name in ("jaccard", "containment", "containment_of_other")),
        ("shared_ngrams", pa.int64()),
        *((name, pa.string()) for name in ("text", "other_text")),
    ]
)
GRAVITY = ("dropped", "excised", "kept")
COPY = "exact copy of "  # how the audit's reason begins for a document it left out as a copy


def audited(documents: Artifact) -> dict[str, dict[str, Any]]:
    """The audit's decision on every training document of the corpus, by id, with the longest span as evidence."""
    columns = ["doc_id", "book_id", "action", "reason", "matched_words", "bytes_in", "bytes_out"]
    rows = {
        row["doc_id"]: row for row in pq.read_table(documents.path("decisions.parquet"), columns=columns).to_pylist()
    }
    longest: dict[tuple[str, str], dict[str, Any]] = {}
    columns = ["doc_id", "book_id", "words", "doc_text", "book_text"]
    with pq.ParquetFile(documents.path("spans.parquet")) as file:
        for batch in file.iter_batches(1024, columns=columns):
            for span in batch.to_pylist():
                pair = span["doc_id"], span["book_id"]
                if pair not in longest or span["words"] > longest[pair]["words"]:
                    longest[pair] = span
    for row in rows.values():
        span = longest.get((row["doc_id"], row["book_id"]), {})
        row["text"], row["other_text"] = _short(span.get("doc_text", "")), _short(span.get("book_text", ""))
    return rows


def _short(text: str) -> str:
    return text if len(text) <= SAID + 2 else text[:SAID] + " …"


def decisions(
    before: dict[str, dict[str, Any]], ids: Sequence[str], signed: Signatures, decided: Decided
) -> list[dict[str, Any]]:
    """One row per training document of the corpus, the gravest first.

    Raises RuntimeError where the audit's rows and the documents it left differ: its artifact is damaged.
    """
    number = {doc_id: i for i, doc_id in enumerate(ids)}
    if missing := sorted(set(ids) - set(before)):
        raise RuntimeError(f"decisions.parquet of the audit has no row for {missing[0]} and {len(missing) - 1} more")
    rows = []
    for doc_id, earlier in before.items():
        i = number.get(doc_id)
        row = _of_audit(doc_id, earlier, i is not None)
        if i is not None:
            if earlier["bytes_out"] != signed.sizes[i]:
                raise RuntimeError(
                    f"{doc_id}: the audit left {earlier['bytes_out']} bytes, its documents hold {signed.sizes[i]}"
                )
            row |= {"words": int(signed.words[i]), "language": signed.languages[i] or None}
            if (removal := decided.removals.get(i)) is not None:
                row |= {name: getattr(removal, name) for name in ("rule", "reason", "measure", "score", "threshold")}
                row |= {"fate": "dropped", "stage": "dedup", "bytes_out": 0}
                row |= {"text": removal.text or None, "other_text": removal.other_text or None}
                row["other_id"] = None if removal.other is None else ids[removal.other]
        rows.append(row)
    for row in rows:
        row["kept_id"] = _stands_for(row, number, ids, decided)
    return sorted(
        rows,
        key=lambda r: (GRAVITY.index(r["fate"]), r["stage"] or "~", r["rule"] or "", -(r["score"] or 0), r["doc_id"]),
    )


def _of_audit(doc_id: str, earlier: dict[str, Any], left: bool) -> dict[str, Any]:
    """A row as far as the audit decided it. Where it only reported, its documents are all there, and kept."""
    row: dict[str, Any] = dict.fromkeys(DECISIONS.names)
    cut = earlier["bytes_out"] < earlier["bytes_in"]
    row |= {
        "doc_id": doc_id,
        "fate": "dropped" if not left else "excised" if cut else "kept",
        "contamination": earlier["action"],
        "bytes_in": earlier["bytes_in"],
        "bytes_out": earlier["bytes_out"] if left else 0,
    }
    if earlier["reason"]:
        copy = earlier["reason"].startswith(COPY)
        row |= {
            "stage": "decontaminate",
            "rule": "exact copy" if copy else "contamination",
            "reason": earlier["reason"],
        }
        row["other_id"] = earlier["reason"].removeprefix(COPY).split(";")[0] if copy else earlier["book_id"]
    if row["rule"] == "contamination":
        row |= {"measure": "matched words", "score": float(earlier["matched_words"])}
        row |= {"text": earlier["text"] or None, "other_text": earlier["other_text"] or None}
    return row


def _stands_for(row: dict[str, Any], number: dict[str, int], ids: Sequence[str], decided: Decided) -> str | None:
    if row["fate"] != "dropped":
        return str(row["doc_id"])
    at = number.get(row["doc_id"] if row["stage"] == "dedup" else row["other_id"])
    kept = None if at is None else decided.kept_for(at)
    return None if kept is None else ids[kept]


def fates(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Documents and bytes by what became of them; every document is in one row."""
    counted: dict[tuple[str, str | None, str | None], list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in rows:
        total = counted[row["fate"], row["stage"], row["rule"]]
        for k, value in enumerate((1, row["bytes_in"], row["bytes_out"])):
            total[k] += value
    return [
        {"fate": fate, "stage": stage, "rule": rule, "documents": n, "bytes_in": size, "bytes_out": left}
        for (fate, stage, rule), (n, size, left) in counted.items()
    ]


def pairs(ids: Sequence[str], decided: Decided) -> list[dict[str, Any]]:
    """Every comparison of editions and parts, the most similar first: also those that stayed below the thresholds."""
    rows = []
    for found in decided.compared:
        removal = decided.removals.get(found.document)
        acted = removal is not None and removal.other == found.other
        rows.append(
            {
                "doc_id": ids[found.document],
                "other_id": ids[found.other],
                "rule": removal.rule if acted and removal else None,
                "jaccard": found.jaccard,
                "containment": found.containment,
                "containment_of_other": found.containment_of_other,
                "shared_ngrams": found.shared,
                "text": found.text,
                "other_text": found.other_text,
            }
        )
    return sorted(rows, key=lambda row: (-max(row["jaccard"], row["containment"]), row["doc_id"], row["other_id"]))


def write(rows: list[dict[str, Any]], ids: Sequence[str], decided: Decided, folder: Path) -> None:
    """Write decisions, fates and pairs."""
    for name, schema, found in (
        ("decisions", DECISIONS, rows),
        ("fates", FATES, fates(rows)),
        ("pairs", PAIRS, pairs(ids, decided)),
    ):
        write_table(pa.Table.from_pylist(found, schema=schema), folder / f"{name}.parquet")
