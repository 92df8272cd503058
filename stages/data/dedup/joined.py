"""The audit's decisions beside the documents it left, row for row, without a table of all ids in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.data.corpus.ids import matched, sorted_by, spilled
from stages.data.dedup.numbered import NOBODY
from stages.data.dedup.signatures import SAID
from stages.data.matching.shards import release_memory
from stages.stage import Artifact

COLUMNS = ["doc_id", "book_id", "action", "reason", "matched_words", "bytes_in", "bytes_out"]


@dataclass(frozen=True)
class Audited:
    """The audit's decisions on A training documents of the corpus: ``rows``, mapped; ``by_id`` [A] their places in
    order of the ids; ``number`` [A] of the document that the audit left, else ``NOBODY``. ``spans``: (doc_id, book_id)
    -> texts of the longest span, of the pairs that decided."""

    rows: pa.Table
    by_id: NDArray[Any]
    number: NDArray[np.int32]
    spans: dict[tuple[str, str], tuple[str, str]]


def audited(documents: Artifact, doc_ids: pa.ChunkedArray, by_id: NDArray[Any], spill: Path) -> Audited:
    """``doc_ids`` of the documents that are there, ``by_id`` their places in order of the ids.

    Raises RuntimeError where one of them has no row: the audit is damaged.
    """
    rows = spilled(documents.path("decisions.parquet"), COLUMNS, spill / "audit.arrow")
    rows_by_id = sorted_by(rows["doc_id"])
    number = np.full(rows.num_rows, NOBODY, np.int32)
    missing: list[str] = []
    missed = 0
    for places, found, lost in matched(rows["doc_id"], rows_by_id, doc_ids, by_id):
        number[places] = found
        missed += len(lost)
        missing = missing or lost[:1].to_pylist()
    if missed:
        raise RuntimeError(f"decisions.parquet of the audit has no row for {missing[0]} and {missed - 1} more")
    release_memory()
    return Audited(rows, rows_by_id, number, _longest_spans(documents.path("spans.parquet"), rows))


def _longest_spans(path: Path, rows: pa.Table) -> dict[tuple[str, str], tuple[str, str]]:
    """Two passes: which span is the longest of each pair, then the texts of those that a decision names."""
    decided: set[tuple[str, str]] = set()
    for batch in rows.select(["doc_id", "book_id"]).to_batches():
        named = batch.filter(pc.is_valid(batch["book_id"]))
        decided.update(zip(named["doc_id"].to_pylist(), named["book_id"].to_pylist(), strict=True))
    longest: dict[tuple[str, str], tuple[int, int]] = {}
    for at, span in _spans(path, ["doc_id", "book_id", "words"]):
        pair = span["doc_id"], span["book_id"]
        if pair in decided and (pair not in longest or span["words"] > longest[pair][0]):
            longest[pair] = span["words"], at
    wanted = {at for _, at in longest.values()}
    columns = ["doc_id", "book_id", "doc_text", "book_text"]
    return {
        (span["doc_id"], span["book_id"]): (_short(span["doc_text"]), _short(span["book_text"]))
        for at, span in _spans(path, columns, wanted)
    }


def _spans(path: Path, columns: list[str], wanted: set[int] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place, row) of all spans or of those ``wanted``."""
    at = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1024, columns=columns):
            if wanted is None or any(place in wanted for place in range(at, at + len(batch))):
                for place, row in enumerate(batch.to_pylist(), at):
                    if wanted is None or place in wanted:
                        yield place, row
            at += len(batch)


def _short(text: str) -> str:
    return text if len(text) <= SAID + 2 else text[:SAID] + " …"
