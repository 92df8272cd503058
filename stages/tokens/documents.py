"""Reads document tables a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from stages.stage import Artifact


class DocumentText(NamedTuple):
    """A document as tokenizing needs it."""

    doc_id: str
    source: str
    split: str
    text: str


def texts(documents: Artifact, split: str | None = None) -> Iterator[DocumentText]:
    """Documents in order of ``doc_id`` (the order of the table), of one split or of all."""
    import pyarrow.parquet as pq

    for path in sorted(documents.path("documents").glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=32, columns=["doc_id", "source", "split", "text"]):
                for row in batch.to_pylist():
                    if split is None or row["split"] == split:
                        yield DocumentText(row["doc_id"], row["source"], row["split"], row["text"])
