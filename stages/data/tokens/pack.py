"""Packs the tokens of documents into rows of one length and writes them as Arrow shards.

A row is ``sequence_length`` tokens of one document. Rows lie in record batches of about ``BATCH_BYTES``, what a
training worker reads at a time, and these in shards: what it fetches at a time from object storage.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Shape:
    """Rows of ``length`` tokens, padded with ``pad_id``, in shards of about ``shard_bytes``."""

    length: int
    pad_id: int
    shard_bytes: int

    @property
    def rows_of_batch(self) -> int:
        return max(1, min(BATCH_BYTES, self.shard_bytes) // (self.length * (4 + 1)))

    @property
    def rows_of_shard(self) -> int:
        """Whole batches."""
        batch = self.rows_of_batch
        return max(1, self.shard_bytes // (self.length * (4 + 1)) // batch) * batch


class ShardWriter:
    """Writes one shard. Feed one document after the other: ``add`` the tokens of some whole rows of it."""

    def __init__(self, path: Path, shape: Shape) -> None:
        self._shape = shape
        size = shape.rows_of_batch * shape.length
        self._tokens: NDArray[np.int32] = np.empty(size, np.int32)
        self._mask: NDArray[np.uint8] = np.ones(size, np.uint8)
        self._about: list[tuple[str, int, str]] = []  # doc_id, offset, source of each row of the batch
        self._file = pa.OSFile(str(path), "wb")
        self._writer: Any = None
        self.rows = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._about:
            self._write()
        if self._writer is not None:
            self._writer.close()
        self._file.close()

    def add(self, doc_id: str, source: str, tokens: NDArray[np.int32], offset: int) -> None:
        """The next ``tokens`` of the document, from its token ``offset`` on; the last row is padded."""
        length = self._shape.length
        while len(tokens):
            fill = len(self._about) * length
            some = tokens[: len(self._tokens) - fill]
            rows = -(-len(some) // length)
            end, padded = fill + len(some), fill + rows * length
            self._tokens[fill:end] = some
            self._tokens[end:padded] = self._shape.pad_id
            self._mask[end:padded] = 0
            self._about += [(doc_id, offset + row * length, source) for row in range(rows)]
            offset += len(some)
            tokens = tokens[len(some) :]
            if padded == len(self._tokens):
                self._write()

    def _write(self) -> None:
        length, fill = self._shape.length, len(self._about) * self._shape.length
        doc_ids, offsets, sources = zip(*self._about, strict=True)
        batch = pa.record_batch(
            [
                pa.FixedSizeListArray.from_arrays(pa.array(self._tokens[:fill], pa.int32()), length),
                pa.FixedSizeListArray.from_arrays(pa.array(self._mask[:fill], pa.uint8()), length),
                pa.array(doc_ids, pa.string()),
                pa.array(offsets, pa.int64()),
                pa.array(sources, pa.string()),
            ],
            names=["tokens", "loss_mask", "doc_id", "offset", "source"],
        )
        if self._writer is None:
            info = json.dumps({"info": {"features": _features(length)}})
            self._writer = pa.ipc.new_stream(self._file, batch.schema.with_metadata({"huggingface": info}))
        self._writer.write_batch(batch)
        self.rows += len(self._about)
        self._about = []
        self._mask.fill(1)


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


def describe(folder: Path, length: int, shards: list[str], sequences: int) -> None:
    """Write the two JSON files by which ``datasets.load_from_disk`` knows the folder of a split."""
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
