"""Scanning a corpus by shards: one task a shard, its result in files of its own, nothing of the corpus in memory.

    index = build(books, config.ngram, config.max_books_per_ngram)
    scans = scan_shards(shards, index, config, work_url, progress)     # one ShardScan each, in order
    for scan in scans:
        for document in scan.found(): ...                              # doc_id, size, spans

A shard is anything with the four members of ``Shard``: ``DocumentsShard`` is one Parquet file of a documents artifact.
A scan that was interrupted goes on with the shards that are not done (``saved``).
Ray tasks where Ray runs (the index goes to the object store once and is mapped, not copied), a loop where it does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster import storage
from stages.data.corpus.documents import document_names
from stages.data.matching.chain import Scanned, Span, scan
from stages.data.matching.config import MatchingConfig
from stages.data.matching.index import Index
from stages.data.saved import mapped, on_disk, saved, spread_saved
from stages.stage import Artifact

EVIDENCE_CHARACTERS = 600  # of each side of a span
FORMAT = 4  # of the result files, and of the words they follow from
DOCUMENTS_FILE, SPANS_FILE = "documents.arrow", "spans.arrow"  # of a scan
WORTH_TASKS = 64 * 2**20  # below this many (compressed) bytes one core is done before workers have started

_INTEGERS = (
    "book",
    "doc_first",
    "doc_last",
    "book_first",
    "book_last",
    "matched",
    "doc_start",
    "doc_end",
    "book_start",
    "book_end",
    "near",
)
DOCUMENTS = pa.schema([("doc_id", pa.string()), ("sha256", pa.string()), ("bytes", pa.int64()), ("words", pa.int64())])
SPANS = pa.schema(
    [*((name, pa.int64()) for name in ("row", *_INTEGERS)), ("doc_text", pa.string()), ("book_text", pa.string())]
)


class HashedText(NamedTuple):
    """One document to scan: ``text`` is valid UTF-8, ``sha256`` its hex digest."""

    doc_id: str
    sha256: str
    text: np.ndarray[Any, np.dtype[np.uint8]]


class Shard(Protocol):
    """A part of a corpus that one task reads. Picklable and small: it travels, its texts do not."""

    @property
    def name(self) -> str:
        """Unique in the corpus; letters, digits, dots, hyphens and underscores."""

    @property
    def size(self) -> int:
        """Bytes to read, roughly: whether starting workers is worth it."""

    def digest(self) -> str:
        """Hex digest of ids and texts; cheap where the texts' digests are stored."""

    def texts(self) -> Iterator[HashedText]:
        """The documents to scan, in order, one in memory at a time or a few."""


@dataclass(frozen=True)
class DocumentsShard:
    """One Parquet file of ``documents/`` of an artifact (docs/formats.md); of it the training documents."""

    artifact: Artifact
    path: str  # below the artifact
    bytes: int

    @property
    def name(self) -> str:
        return Path(self.path).stem

    @property
    def size(self) -> int:
        return self.bytes

    def local(self) -> Path:
        """The file on this machine's disk."""
        return self.artifact.path(self.path)

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[Path]:
        """The same, as files that must be fetched for a while offer it."""
        yield self.local()

    def digest(self) -> str:
        table = pq.read_table(self.local(), columns=["doc_id", "split", "sha256"])
        return hashlib.sha256(json.dumps([column.to_pylist() for column in table.columns]).encode()).hexdigest()

    def texts(self) -> Iterator[HashedText]:
        yield from texts_of(self.local(), ("train",))


def documents_shards(artifact: Artifact) -> list[DocumentsShard]:
    """The shards of a documents artifact, in its order."""
    return [DocumentsShard(artifact, name, size) for name, size in document_names(artifact).items()]


def texts_of(path: Path, splits: Sequence[str]) -> Iterator[HashedText]:
    """The documents of the named splits in one Parquet file, a few in memory at a time, their texts not copied."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(16, columns=["doc_id", "split", "text", "sha256"]):
            rows = np.flatnonzero(pc.is_in(batch["split"], pa.array(splits)).to_numpy(zero_copy_only=False))
            for row in rows.tolist():
                buffer = batch["text"][row].as_buffer()
                text = np.frombuffer(buffer, np.uint8) if buffer.size else np.empty(0, np.uint8)
                yield HashedText(batch["doc_id"][row].as_py(), batch["sha256"][row].as_py(), text)


@dataclass(frozen=True)
class ScannedDocument:
    """One training document as scanned. ``row`` is its number among the training documents of its shard."""

    row: int
    doc_id: str
    sha256: str
    bytes: int
    words: int
    spans: tuple[Span, ...] = ()

    @property
    def scanned(self) -> Scanned:
        """Size and spans, as ``decide`` takes them."""
        return Scanned(self.bytes, self.words, list(self.spans))


@dataclass(frozen=True)
class ShardScan:
    """The result of one shard; ``url``: the folder of its files."""

    shard: str
    url: str
    documents_in: int
    bytes: int
    words: int
    spans: int
    documents_with_spans: int

    def table(self) -> pa.Table:
        """The training documents, schema ``DOCUMENTS``; mapped, not read, where storage is local."""
        return mapped(storage.join(self.url, DOCUMENTS_FILE))

    def spans_table(self) -> pa.Table:
        """The spans, schema ``SPANS``, in order of document and position; mapped, not read, where storage is local."""
        if not self.spans:
            return SPANS.empty_table()
        with on_disk(storage.join(self.url, SPANS_FILE)) as path:  # what is mapped stays readable when it is removed
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def found(self) -> Iterator[ScannedDocument]:
        """The documents with spans, in order."""
        if self.spans:
            table = self.table()
            for row, spans in _by_document(self.spans_table()):
                doc_id, sha256, size, words = (column[row].as_py() for column in table.columns)
                yield ScannedDocument(row, doc_id, sha256, size, words, spans)

    def without_spans(self) -> NDArray[np.int64]:
        """The rows of the others, ascending."""
        there = np.ones(self.documents_in, bool)
        there[self.spans_table()["row"].to_numpy()] = False
        return np.flatnonzero(there)


def scan_shards(
    shards: Sequence[Shard],
    index: Index,
    rule: MatchingConfig,
    work_url: str,
    progress: Callable[[ShardScan], None] = lambda scan: None,
) -> list[ShardScan]:
    """Scan every shard, or take the result an interrupted run left below ``work_url``; ``progress`` hears of each.

    Only ngram, max_gap, max_drift and min_span_words of ``rule`` count. The same results at any number of workers.
    """
    warm_up(index, rule)
    worth_it = len(shards) > 1 and sum(shard.size for shard in shards) > WORTH_TASKS
    scans = []
    place, basis = storage.join(work_url, "scan"), basis_of(index, rule)
    parts = spread_saved(_scan_shard, shards, place, index, rule, basis, identity=_identity, worth_it=worth_it)
    for part in parts:
        scans.append(ShardScan(url=part.url, **part.value))
        progress(scans[-1])
    return scans


def warm_up(index: Index, rule: MatchingConfig) -> None:
    """Compile the kernels, or read them from the disk, before workers need them all at once."""
    scan(b"a text", index, rule.max_gap, rule.max_drift, rule.min_span_words)


def basis_of(index: Index, rule: MatchingConfig) -> str:
    """What a scan's result follows from beside the texts."""
    return json.dumps([FORMAT, index.digest, rule.max_gap, rule.max_drift, rule.min_span_words])


def scan_shard(shard: Shard, index: Index, rule: MatchingConfig, work_url: str, basis: str) -> ShardScan:
    """Scan one shard where no task is wanted, or take the result left below ``work_url``."""
    part = saved(shard, _scan_shard, _identity, storage.join(work_url, "scan"), index, rule, basis)
    return ShardScan(url=part.url, **part.value)


def _identity(shard: Shard, index: Index, rule: MatchingConfig, basis: str) -> str:
    return hashlib.sha256(f"{basis} {shard.name} {shard.digest()}".encode()).hexdigest()


def _scan_shard(shard: Shard, folder: Path, index: Index, rule: MatchingConfig, basis: str) -> dict[str, Any]:
    return scan_into(folder, shard.name, shard.texts(), index, rule)


def scan_into(
    folder: Path, name: str, texts: Iterable[HashedText], index: Index, rule: MatchingConfig
) -> dict[str, Any]:
    """Scan the texts of the shard ``name`` and write what is found into ``folder``; the fields of ``ShardScan`` but
    its URL."""
    columns: list[list[Any]] = [[], [], [], []]
    total = with_spans = 0
    with pa.OSFile(str(folder / SPANS_FILE), "wb") as file, pa.ipc.new_file(file, SPANS) as writer:
        for row, (doc_id, sha256, text) in enumerate(texts):
            scanned = scan(text, index, rule.max_gap, rule.max_drift, rule.min_span_words)
            for column, value in zip(columns, (doc_id, sha256, scanned.bytes, scanned.words), strict=True):
                column.append(value)
            for part in _parts(scanned.spans):
                writer.write(_spans_batch(row, part, text, index))
            total, with_spans = total + len(scanned.spans), with_spans + bool(scanned.spans)
    release_memory()
    with pa.OSFile(str(folder / DOCUMENTS_FILE), "wb") as out, pa.ipc.new_file(out, DOCUMENTS) as writer:
        writer.write_table(pa.table(columns, schema=DOCUMENTS))
    return {
        "shard": name,
        "documents_in": len(columns[0]),
        "bytes": sum(columns[2]),
        "words": sum(columns[3]),
        "spans": total,
        "documents_with_spans": with_spans,
    }


def _parts(spans: list[Span], size: int = 1024) -> Iterator[list[Span]]:
    for at in range(0, len(spans), size):
        yield spans[at : at + size]


def _spans_batch(row: int, spans: list[Span], text: Any, index: Index) -> pa.RecordBatch:
    columns: list[Any] = [[row] * len(spans), *zip(*spans, strict=True)]
    columns.append([beginning(text, span.doc_start, span.doc_end) for span in spans])
    for_books = [(index.text, int(index.first_byte[span.book])) for span in spans]
    columns.append(
        [
            beginning(all_, base + s.book_start, base + s.book_end)
            for (all_, base), s in zip(for_books, spans, strict=True)
        ]
    )
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, SPANS, strict=True)], schema=SPANS)


def beginning(text: Any, start: int, end: int, characters: int = EVIDENCE_CHARACTERS) -> str:
    """Bytes [start, end) of a uint8 array as text, at most ``characters`` of it, then a sign that it goes on."""
    some = bytes(text[start : min(end, start + 4 * characters + 4)]).decode(errors="ignore")
    return some if end - start <= 4 * characters + 4 and len(some) <= characters else some[:characters] + " …"


def span_of(row: dict[str, Any]) -> Span:
    """The numbers of one row of ``ShardScan.spans_table``."""
    return Span(*(row[name] for name in _INTEGERS))


def _by_document(table: pa.Table) -> Iterator[tuple[int, tuple[Span, ...]]]:
    """(row of the document, its spans), a batch in memory at a time."""
    row = -1
    found: list[Span] = []
    for at, *values in _rows(table.select(["row", *_INTEGERS])):
        if at != row and found:
            yield row, tuple(found)
            found = []
        row = at
        found.append(Span(*values))
    if found:
        yield row, tuple(found)


def _rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """All rows in order, a batch of them in memory at a time."""
    for batch in table.to_batches(1024):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def release_memory() -> None:
    """Give back to the system what Arrow freed but keeps: after a document of a gigabyte that is several of them."""
    pa.default_memory_pool().release_unused()
