"""First pass of tokenize: some documents of one file of the table, encoded by a task, and what it leaves.

A lot is some row groups of a file, or some rows of a large one: about ``LOT`` bytes of text. The task reads the texts
itself; what it made lies in the step's work folder, one run of tokens and one table of its documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.data.corpus.documents import DocumentText
from stages.data.saved import mapped, numbers
from stages.data.tokens.encode import encode
from stages.data.tokens.seams import Seams
from stages.data.tokens.units import CountedDocument, units
from stages.stage import Artifact

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

LOT = 8 * 2**20  # bytes of text for one task, about: some tenths of a second
TOKENS_FILE, DOCUMENTS_FILE = "tokens.bin", "documents.arrow"
NAMED = 3  # documents in a warning
_INT32 = "<i4"


@dataclass(frozen=True)
class Lot:
    """Row groups ``first`` to ``end`` of the file ``name`` of the artifact; of several parts of one large row group
    that with number ``part``. ``size``: bytes of its text, about."""

    name: str
    first: int
    end: int
    size: int
    part: int = 0
    parts: int = 1

    def texts(self, documents: Artifact) -> Iterator[DocumentText]:
        """Its documents in order."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = ["doc_id", "source", "split", "text"]
        with pq.ParquetFile(documents.path(self.name)) as file:
            groups = range(self.first, self.end)
            rows = sum(file.metadata.row_group(group).num_rows for group in groups)
            start, end = rows * self.part // self.parts, rows * (self.part + 1) // self.parts
            at = 0
            for batch in file.iter_batches(64, row_groups=list(groups), columns=columns):
                here = batch.slice(max(0, start - at), max(0, min(end - at, len(batch)) - max(0, start - at)))
                at += len(batch)
                texts = here.column("text").cast(pa.large_binary())
                names = (here.column(name).to_pylist() for name in columns[:3])
                for place, (doc_id, source, split) in enumerate(zip(*names, strict=True)):
                    yield DocumentText(doc_id, source, split, memoryview(texts[place].as_buffer()))
                if at >= end:
                    return


@dataclass(frozen=True)
class EncodedLot:
    """What a task left: the folder ``url`` of its files, its ``documents``, their ``tokens`` together, strings that
    look like control tokens and the first documents that have some."""

    url: str
    documents: int
    tokens: int
    controls: int
    with_control: tuple[str, ...]

    def table(self) -> pa.Table:
        """Its documents, as in documents.parquet."""
        return mapped(f"{self.url}/{DOCUMENTS_FILE}")

    def numbers(self, start: int, end: int) -> NDArray[np.int32]:
        """Tokens ``start`` to ``end``."""
        found: NDArray[np.int32] = numbers(f"{self.url}/{TOKENS_FILE}", _INT32, start, end)
        return found


def lots_of(name: str, documents: Artifact) -> list[Lot]:
    """One task: the lots of a file of the documents table, by its footer."""
    import pyarrow.parquet as pq

    meta = pq.read_metadata(documents.path(name))
    place = meta.schema.names.index("text")
    groups = [meta.row_group(at) for at in range(meta.num_row_groups)]
    sizes = [group.column(place).total_uncompressed_size for group in groups]
    found: list[Lot] = []
    first, size = 0, 0
    for at, group in enumerate(groups):
        size += sizes[at]
        if first == at and size > LOT and group.num_rows > 1:
            parts = min(group.num_rows, -(-size // LOT))
            found += [Lot(name, at, at + 1, size // parts, part, parts) for part in range(parts)]
        elif size >= LOT or at == len(groups) - 1:
            found.append(Lot(name, first, at + 1, size))
        else:
            continue
        first, size = at + 1, 0
    return found


@dataclass(frozen=True)
class Marks:
    """Tokens before and after each document."""

    begin: tuple[int, ...]
    end: tuple[int, ...]


def identity(lot: Lot, documents: Artifact, tokenizer_json: str, marks: Marks, *_: Any) -> str:
    """Digest of what the tokens of a lot follow from."""
    digest = hashlib.sha256(f"{_digest(tokenizer_json)} {marks}".encode())
    for text in lot.texts(documents):
        digest.update(f"{text.doc_id}\0{text.source}\0{text.split}\0{len(text.data)} ".encode())
        digest.update(text.data)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _digest(tokenizer_json: str) -> str:
    return hashlib.sha256(tokenizer_json.encode()).hexdigest()


def encode_lot(
    lot: Lot,
    folder: Path,
    documents: Artifact,
    tokenizer_json: str,
    marks: Marks,
    seams: Seams | None,
    between_words: bool,
    one_core: bool,
) -> dict[str, Any]:
    """One task."""
    import numpy as np
    import pyarrow as pa

    begin, end = np.array(marks.begin, _INT32).tobytes(), np.array(marks.end, _INT32).tobytes()
    done: list[CountedDocument] = []
    begun: CountedDocument | None = None
    with (folder / TOKENS_FILE).open("wb") as file:
        for unit in units(lot.texts(documents), between_words):
            tokens, lengths, words, controls = encode(unit.texts, tokenizer_json, seams, one_core)
            bytes_of = np.ascontiguousarray(tokens, _INT32).data.cast("B")
            start = 0
            pieces_of = zip(unit.layout, lengths, words, controls, strict=True)
            for (document, inside, last), length, count, strings in pieces_of:
                if document is not begun:
                    begun = document
                    file.write(begin)
                    document.tokens += len(marks.begin)
                document.words += count - inside
                document.tokens += length
                document.controls += strings
                file.write(bytes_of[4 * start : 4 * (start + length)])
                start += length
                if last:
                    file.write(end)
                    document.tokens += len(marks.end)
                    done.append(document)
    table = pa.Table.from_pylist([vars(document) for document in done], schema=document_schema())
    with pa.OSFile(str(folder / DOCUMENTS_FILE), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    with_control = [document.doc_id for document in done if document.controls]
    return {
        "documents": len(done),
        "tokens": sum(document.tokens for document in done),
        "controls": sum(document.controls for document in done),
        "with_control": with_control[:NAMED],
    }


def document_schema() -> pa.Schema:
    """Of documents.parquet."""
    import pyarrow as pa

    return pa.schema(
        [("doc_id", pa.string()), ("split", pa.string()), ("source", pa.string())]
        + [(name, pa.int64()) for name in ("tokens", "words", "bytes")]
    )


def total_bytes(lots: Sequence[Lot]) -> int:
    """Bytes of all texts, about."""
    return sum(lot.size for lot in lots)
