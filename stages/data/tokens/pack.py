"""Packs the tokens of documents into rows of one length and writes them as Arrow shards.

A row is ``sequence_length`` tokens of one document. Rows lie in record batches of about ``BATCH_BYTES``, what a
training worker reads at a time, and these in shards: what it fetches at a time from object storage.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

BATCH_BYTES = 4 * 2**20


@dataclass
class Counts:
    """What became of the documents of one split (or of one source in it). tokens: with the end-of-document token;
    dropped_tail_tokens: of them, those of tails too short to be padded; dropped_documents: documents without a row."""

    documents: int = 0
    sequences: int = 0
    tokens: int = 0
    bytes: int = 0
    words: int = 0
    dropped_tail_tokens: int = 0
    dropped_documents: int = 0

    def add(self, other: Counts) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class RowWriter:
    """Writes the rows of one split below ``folder``. Feed one document after the other: ``add`` its tokens piece by
    piece, then ``end`` it."""

    folder: Path
    length: int
    pad_id: int
    least_tail: float
    """A document's last piece of fewer tokens is dropped, else padded and masked."""
    shard_bytes: int
    shards: list[str] = field(default_factory=list)
    sequences: int = 0

    def __post_init__(self) -> None:
        row_bytes = self.length * (4 + 1)
        self._rows = max(1, min(BATCH_BYTES, self.shard_bytes) // row_bytes)
        self._rows_of_shard = max(1, self.shard_bytes // row_bytes // self._rows) * self._rows  # whole batches
        self._tokens: NDArray[np.int32] = np.empty(self._rows * self.length, np.int32)
        self._mask: NDArray[np.uint8] = np.ones(self._rows * self.length, np.uint8)
        self._fill = 0  # tokens in the batch; a document begins at a whole row
        self._about: list[tuple[str, int, str]] = []  # doc_id, offset, source of each row begun
        self._position = 0  # tokens of the document so far
        self._file: Any = None
        self._writer: Any = None
        self._in_shard = 0

    def add(self, doc_id: str, source: str, tokens: NDArray[np.int32]) -> None:
        """The next ``tokens`` of the document."""
        while len(tokens):
            row, used = divmod(self._fill, self.length)
            if not used:
                self._about.append((doc_id, self._position, source))
            count = min(len(tokens), (row + 1) * self.length - self._fill)
            self._tokens[self._fill : self._fill + count] = tokens[:count]
            self._fill += count
            self._position += count
            tokens = tokens[count:]
            if self._fill == len(self._tokens):
                self._write()

    def end(self) -> tuple[int, int]:
        """The document is over: its last piece is padded or dropped. Returns (rows, dropped tokens) of the document."""
        total, self._position = self._position, 0
        rows, tail = divmod(total, self.length)
        if not tail:
            return rows, 0
        if tail < self.least_tail:
            self._fill -= tail
            self._about.pop()
            return rows, tail
        end = self._fill - tail + self.length
        self._tokens[self._fill : end] = self.pad_id
        self._mask[self._fill : end] = 0
        self._fill = end
        if self._fill == len(self._tokens):
            self._write()
        return rows + 1, 0

    def close(self) -> None:
        """Write what is left, and the two JSON files by which ``datasets.load_from_disk`` knows the folder."""
        if self._fill:
            self._write()
        self._end_shard()
        if self.shards:
            _describe(self.folder, self.length, self.shards, self.sequences)

    def _write(self) -> None:
        rows = self._fill // self.length
        doc_ids, offsets, sources = zip(*self._about, strict=True)
        batch = pa.record_batch(
            [
                pa.FixedSizeListArray.from_arrays(pa.array(self._tokens[: self._fill], pa.int32()), self.length),
                pa.FixedSizeListArray.from_arrays(pa.array(self._mask[: self._fill], pa.uint8()), self.length),
                pa.array(doc_ids, pa.string()),
                pa.array(offsets, pa.int64()),
                pa.array(sources, pa.string()),
            ],
            names=["tokens", "loss_mask", "doc_id", "offset", "source"],
        )
        if self._writer is None:
            self.folder.mkdir(exist_ok=True)
            self.shards.append(f"data-{len(self.shards):05d}.arrow")
            info = json.dumps({"info": {"features": _features(self.length)}})
            schema = batch.schema.with_metadata({"huggingface": info})
            self._file = pa.OSFile(str(self.folder / self.shards[-1]), "wb")
            self._writer = pa.ipc.new_stream(self._file, schema)
        self._writer.write_batch(batch)
        self.sequences += rows
        self._in_shard += rows
        self._fill, self._about = 0, []
        self._mask.fill(1)
        if self._in_shard >= self._rows_of_shard:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._file.close()
            self._writer, self._file, self._in_shard = None, None, 0


def _features(length: int) -> dict[str, Any]:
    """The columns as ``datasets`` writes them down. Its import takes longer than encoding megabytes."""

    def value(kind: str) -> dict[str, Any]:
        return {"dtype": kind, "_type": "Value"}

    return {
        "tokens": {"feature": value("int32"), "length": length, "_type": "List"},
        "loss_mask": {"feature": value("uint8"), "length": length, "_type": "List"},
        "doc_id": value("string"),
        "offset": value("int64"),
        "source": value("string"),
    }


def _describe(folder: Path, length: int, shards: list[str], sequences: int) -> None:
    about = {"description": "", "citation": "", "homepage": "", "license": "", "features": _features(length)}
    (folder / "dataset_info.json").write_text(json.dumps(about))
    known = f"{folder.name} {length} {sequences} {shards}"
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard} for shard in shards],
        "_fingerprint": hashlib.sha256(known.encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": folder.name,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=1))
