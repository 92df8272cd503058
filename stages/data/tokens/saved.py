"""Encoded files of the documents table, kept in the step's work folder: what an interrupted run need not do again.

A file's result lies under a name that holds the digest of the file and of the tokenizer, and appears there when it is
whole; so a result of other texts is never taken for it. The last file's is not kept: nothing long comes after it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import storage
from stages.data.tokens.encode import Encoded
from stages.data.tokens.units import Document, Unit

FORMAT = 2  # of these files
_TEXTS, _NUMBERS, _FLAGS = ("doc_id", "source", "split"), ("bytes", "words", "controls"), ("inside", "last")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in _TEXTS]
    + [(name, pa.int64()) for name in _NUMBERS]
    + [(name, pa.bool_()) for name in _FLAGS]
    + [("tokens", pa.large_list(pa.int32()))]
)


class Saved:
    """The result of one file: a record batch a unit, a row a piece."""

    def __init__(self, work_url: str, file: Path, tokenizer_json: str) -> None:
        digest = hashlib.sha256(f"{FORMAT} {tokenizer_json}".encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
        url = storage.join(work_url, "tokens", f"{file.stem}-{digest.hexdigest()[:24]}.arrow")
        self._fs, self._path = storage.filesystem(url)
        self._file: Any = None
        self._writer: Any = None

    def exists(self) -> bool:
        """Is it there, whole?"""
        return bool(self._fs.exists(self._path))

    def read(self) -> Iterator[tuple[Unit, Encoded]]:
        """The units without their texts, and what was made of them."""
        with contextlib.ExitStack() as stack:
            place = Path(self._path)
            if not storage.is_local(self._fs):
                place = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "saved"
                storage.get_file(self._fs, self._path, place)
            document: Document | None = None
            for batch in pa.ipc.open_stream(stack.enter_context(pa.memory_map(str(place)))):
                unit = Unit()
                words, controls = (batch[name].to_pylist() for name in ("words", "controls"))
                columns = (batch[name].to_pylist() for name in (*_TEXTS, "bytes", *_FLAGS))
                for doc_id, source, split, size, inside, last in zip(*columns, strict=True):
                    document = document or Document(doc_id, source, split, size)
                    unit.layout.append((document, inside, last))
                    if last:
                        unit.size += document.bytes
                        document = None
                tokens = batch["tokens"]
                lengths = np.diff(tokens.offsets.to_numpy()).tolist()
                yield unit, (tokens.flatten().to_numpy(), lengths, words, controls)

    def add(self, unit: Unit, encoded: Encoded) -> None:
        """Write one more unit; nothing is there under the name before ``close``."""
        tokens, lengths, words, controls = encoded
        if self._writer is None:
            if storage.is_local(self._fs):
                self._part = Path(f"{self._path}.{uuid.uuid4().hex[:12]}.part")
                self._part.parent.mkdir(parents=True, exist_ok=True)
            else:
                self._part = Path(tempfile.mkstemp()[1])
            self._file = pa.OSFile(str(self._part), "wb")
            self._writer = pa.ipc.new_stream(self._file, SCHEMA)
        documents = [document for document, _, _ in unit.layout]
        offsets = pa.array(np.cumsum([0, *lengths]), pa.int64())
        columns = [
            *([getattr(document, name) for document in documents] for name in (*_TEXTS, "bytes")),
            words,
            controls,
            *([piece[i] for piece in unit.layout] for i in (1, 2)),
        ]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=False)]
        arrays.append(pa.LargeListArray.from_arrays(offsets, pa.array(tokens)))
        self._writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))

    def close(self) -> None:
        """The file is whole: it gets its name."""
        if self._writer is None:
            return
        self._writer.close()
        self._file.close()
        self._writer = None
        if storage.is_local(self._fs):
            os.replace(self._part, self._path)
            return
        for attempt in storage.retrying():
            with attempt:
                self._fs.makedirs(self._path.rsplit("/", 1)[0], exist_ok=True)
                self._fs.put_file(str(self._part), self._path)
        self._part.unlink()
