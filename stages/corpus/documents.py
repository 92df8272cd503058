"""The documents table every later stage reads: its schema, deterministic files, and ways to iterate over it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("author", pa.string()),
        pa.field("year", pa.int32()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)
PART_BYTES = 32 * 2**20  # of text in one file: small enough to hold several in memory, large enough to read fast


class DocumentsWriter:
    """Writes rows, given in order of ``doc_id``, to ``<folder>/part-00000.parquet``, ...: same rows, same bytes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._parts = 0
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, row: dict[str, Any]) -> None:
        """Add one row with the columns of ``SCHEMA``."""
        self._rows.append(row)
        self._bytes += len(row["text"])
        if self._bytes >= PART_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left; at least one file exists afterwards, also for no rows."""
        if self._rows or not self._parts:
            self._flush()

    def _flush(self) -> None:
        table = pa.Table.from_pylist(self._rows, schema=SCHEMA)
        write_table(table, self._folder / f"part-{self._parts:05d}.parquet")
        self._rows, self._bytes, self._parts = [], 0, self._parts + 1


def write_table(table: pa.Table, path: Path) -> None:
    """Write one Parquet file: zstd, row groups small enough to read a few documents at a time."""
    pq.write_table(table, path, compression="zstd", row_group_size=256)


def read_documents(
    folder: Path, splits: Iterable[str] | None = None, columns: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows in order of ``doc_id``, of the named splits only (None: all)."""
    wanted = None if splits is None else set(splits)
    if columns is not None and wanted is not None and "split" not in columns:
        columns = [*columns, "split"]
    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(64, columns=columns):
                for row in batch.to_pylist():
                    if wanted is None or row["split"] in wanted:
                        yield row
