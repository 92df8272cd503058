"""The documents table every later stage reads: its schema, deterministic files, and ways to iterate over it.

The table lies in a folder of Parquet files of about ``PART_BYTES`` of text. They are the shards of the corpus: whoever
reads it takes one file at a time, so that memory is bounded by a shard and not by the corpus.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.stage import Artifact

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
SMALL_GROUPS = 2**16  # rows of a long table in row groups of 256
REPEATING = ["source", "author", "year", "split"]  # columns worth a dictionary; a book's text is not
MEASURED = [name for name in SCHEMA.names if name != "text"]  # with least and greatest: of texts, two copies of a book


class DocumentsWriter:
    """Writes rows in the order given to ``<folder>/part-00000.parquet``, ...: same rows, same bytes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[Mapping[str, Any]] = []
        self._bytes = 0
        self.parts = 0
        """Files written so far."""
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, row: Mapping[str, Any]) -> tuple[int, int]:
        """Add one row with the columns of ``SCHEMA``; text may be str or UTF-8 bytes. Returns the numbers of its file
        and of its row in there."""
        size = len(row["text"])
        if size >= PART_BYTES and self._rows:  # on its own, so that a very long text is not copied
            self._flush()
        place = (self.parts, len(self._rows))
        self._rows.append(row)
        self._bytes += size
        if self._bytes >= PART_BYTES:
            self._flush()
        return place

    def close(self) -> None:
        """Write what is left; at least one file exists afterwards, also for no rows."""
        if self._rows or not self.parts:
            self._flush()

    def _flush(self) -> None:
        columns = [_texts(self._rows) if f.name == "text" else _column(self._rows, f) for f in SCHEMA]
        write_documents(pa.Table.from_arrays(columns, schema=SCHEMA), self._folder / part_name(self.parts))
        self._rows, self._bytes, self.parts = [], 0, self.parts + 1


def part_name(number: int) -> str:
    """Name of the ``number``-th file of a documents table."""
    return f"part-{number:05d}.parquet"


def _column(rows: list[Mapping[str, Any]], field: pa.Field) -> pa.Array:
    return pa.array([row[field.name] for row in rows], field.type)


def _texts(rows: list[Mapping[str, Any]]) -> pa.Array:
    texts = [row["text"] if isinstance(row["text"], bytes) else row["text"].encode() for row in rows]
    if len(texts) > 1:
        return pa.array(texts, pa.large_string())
    offsets = pa.array([0, *map(len, texts)], pa.int64()).buffers()[1]
    return pa.LargeStringArray.from_buffers(len(texts), offsets, pa.py_buffer(b"".join(texts)))


def write_documents(table: pa.Table, path: Path) -> None:
    """Write one file of the documents table."""
    pq.write_table(
        table, path, compression="zstd", row_group_size=256, use_dictionary=REPEATING, write_statistics=MEASURED
    )


def write_table(table: pa.Table, path: Path) -> None:
    """Write one Parquet file: zstd, row groups small enough to read a few documents at a time."""
    pq.write_table(table, path, compression="zstd", row_group_size=256)


def group_size(row: int) -> int:
    """Rows of the row groups of a long table from ``row`` on: few at its beginning, which is read first; further on
    many, for what a Parquet file says of each column of each of them is in memory until it is closed."""
    return 256 if row < SMALL_GROUPS else SMALL_GROUPS // 16


def rows_at(column: pa.ChunkedArray, places: NDArray[Any]) -> pa.Array:
    """The values of a column at some places. (The library's own ``take`` copies all of a column in several chunks.)"""
    starts = np.cumsum([0, *(len(chunk) for chunk in column.chunks)])
    of = np.searchsorted(starts, places, side="right") - 1
    order = np.argsort(of, kind="stable")
    edges = np.flatnonzero(np.r_[True, np.diff(of[order]) != 0, True]) if len(order) else np.zeros(1, np.int64)
    parts = [pa.array([], column.type)]
    for start, end in itertools.pairwise(edges.tolist()):
        chunk = int(of[order[start]])
        parts.append(column.chunk(chunk).take(pa.array(places[order[start:end]] - starts[chunk])))
    return pa.concat_arrays(parts).take(pa.array(np.argsort(order)))


class TableWriter:
    """Writes one long Parquet file by rows and tables, ``rows`` of them at a time; ``options``: of
    ``pq.ParquetWriter``."""

    def __init__(self, path: Path, schema: pa.Schema, rows: int, **options: Any):
        self._schema, self._most, self._written = schema, rows, 0
        self._rows: list[dict[str, Any]] = []
        self._waiting = schema.empty_table()
        self._writer = pq.ParquetWriter(path, schema, **options)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.add_table(self._schema.empty_table())
        if len(self._waiting):
            self._write(self._waiting)
        self._writer.close()

    def add(self, row: dict[str, Any]) -> None:
        """The next row."""
        self._rows.append(row)
        if len(self._rows) == self._most:
            self.add_table(self._schema.empty_table())

    def add_table(self, table: pa.Table) -> None:
        """The next rows: which are written together does not hang on how they came."""
        rows = pa.Table.from_pylist(self._rows, schema=self._schema)
        self._rows = []
        self._waiting = pa.concat_tables([self._waiting, rows, table])
        while len(self._waiting) >= self._most:
            self._write(self._waiting.slice(0, self._most))
            self._waiting = self._waiting.slice(self._most)

    def _write(self, table: pa.Table) -> None:
        self._writer.write_table(table.combine_chunks(), row_group_size=group_size(self._written))
        self._written += len(table)


def document_files(folder: Path) -> list[Path]:
    """The files of a documents table, in its order."""
    return sorted(folder.glob("*.parquet"), key=lambda path: (len(path.name), path.name))


def document_names(documents: Artifact) -> dict[str, int]:
    """The files of the documents table of an artifact, in its order, with their sizes; nothing is fetched."""
    sizes = documents.sizes("documents")
    names = [name for name in sizes if name.endswith(".parquet") and name.count("/") == 1]
    return {name: sizes[name] for name in sorted(names, key=lambda name: (len(name), name))}


@dataclass(frozen=True)
class DocumentText:
    """A document's text where Arrow holds it: ``data`` is its UTF-8, not copied and never decoded as a whole."""

    doc_id: str
    source: str
    split: str
    data: memoryview


def read_texts(folder: Path, splits: Iterable[str] | None = None) -> Iterator[DocumentText]:
    """The documents in the table's order without making Python strings of them: what is held is one file's rows."""
    wanted = None if splits is None else set(splits)
    for path in document_files(folder):
        for text in file_texts(path):
            if wanted is None or text.split in wanted:
                yield text


def file_texts(path: Path) -> Iterator[DocumentText]:
    """The documents of one file of the table, as ``read_texts`` gives them."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(64, columns=["doc_id", "source", "split", "text"]):
            texts = batch.column("text").cast(pa.large_binary())
            names = (batch.column(name).to_pylist() for name in ("doc_id", "source", "split"))
            for place, (doc_id, source, split) in enumerate(zip(*names, strict=True)):
                yield DocumentText(doc_id, source, split, memoryview(texts[place].as_buffer()))
