"""Scanning a corpus by shards: one task a shard, its result in files of its own, nothing of the corpus in memory.

    index = build(books, config.ngram, config.max_books_per_ngram)
    scans = scan_shards(shards, index, config, work_url, progress)     # one ShardScan each, in order
    for scan in scans:
        for document in scan.documents(): ...                          # doc_id, size, spans with both texts

A shard is anything with the four members of ``Shard``: ``DocumentsShard`` is one Parquet file of a documents artifact.
Results lie below ``work_url`` under a name that holds the digest of everything they follow from, so a scan that was
interrupted goes on with the shards that are not done, and a file made from other texts or rules is never taken for it.
Ray tasks where Ray runs (the index goes to the object store once and is mapped, not copied), a loop where it does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster import storage
from stages.data.corpus.documents import document_files
from stages.data.corpus.parallel import spread
from stages.data.matching.chain import Scanned, Span, scan
from stages.data.matching.config import MatchingConfig
from stages.data.matching.index import Index
from stages.stage import Artifact

EVIDENCE_CHARACTERS = 600  # of each side of a span
FORMAT = 2  # of the result files
WORTH_TASKS = 64 * 2**20  # below this many (compressed) bytes one core is done before workers have started

_INTEGERS = (
    "book", "doc_first", "doc_last", "book_first", "book_last", "matched", "doc_start", "doc_end", "book_start",
    "book_end", "near",
)  # fmt: skip
DOCUMENTS = pa.schema([("doc_id", pa.string()), ("sha256", pa.string()), ("bytes", pa.int64()), ("words", pa.int64())])
SPANS = pa.schema(
    [*((name, pa.int64()) for name in ("row", *_INTEGERS)), ("doc_text", pa.string()), ("book_text", pa.string())]
)


class Text(NamedTuple):
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

    def texts(self) -> Iterator[Text]:
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

    def texts(self) -> Iterator[Text]:
        yield from texts_of(self.local(), ("train",))


def documents_shards(artifact: Artifact) -> list[DocumentsShard]:
    """The shards of a documents artifact, in its order."""
    folder = artifact.path("documents")
    return [DocumentsShard(artifact, f"documents/{path.name}", path.stat().st_size) for path in document_files(folder)]


def texts_of(path: Path, splits: Sequence[str]) -> Iterator[Text]:
    """The documents of the named splits in one Parquet file, a few in memory at a time, their texts not copied."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(16, columns=["doc_id", "split", "text", "sha256"]):
            rows = np.flatnonzero(pc.is_in(batch["split"], pa.array(splits)).to_numpy(zero_copy_only=False))
            for row in rows.tolist():
                buffer = batch["text"][row].as_buffer()
                text = np.frombuffer(buffer, np.uint8) if buffer.size else np.empty(0, np.uint8)
                yield Text(batch["doc_id"][row].as_py(), batch["sha256"][row].as_py(), text)


class Evidence(NamedTuple):
    """A span and the beginning of what stands there, in the training document and in the evaluation document."""

    span: Span
    doc_text: str
    book_text: str


@dataclass(frozen=True)
class ScannedDocument:
    """One training document as scanned. ``row`` is its number among the training documents of its shard."""

    row: int
    doc_id: str
    sha256: str
    bytes: int
    words: int
    evidence: tuple[Evidence, ...] = ()

    @property
    def scanned(self) -> Scanned:
        """Size and spans, as ``decide`` takes them."""
        return Scanned(self.bytes, self.words, [evidence.span for evidence in self.evidence])


@dataclass(frozen=True)
class ShardScan:
    """The result of one shard. ``url`` plus ``.documents.parquet`` and ``.spans.arrow`` are its files."""

    shard: str
    url: str
    documents_in: int
    bytes: int
    words: int
    spans: int
    documents_with_spans: int

    def table(self) -> pa.Table:
        """The training documents, schema ``DOCUMENTS``."""
        return pq.read_table(pa.BufferReader(_file(f"{self.url}.documents.parquet")))

    def spans_table(self) -> pa.Table:
        """The spans, schema ``SPANS``, in order of document and position; mapped, not read, where storage is local."""
        if not self.spans:
            return SPANS.empty_table()
        place = storage.local_path(f"{self.url}.spans.arrow")
        source = pa.memory_map(str(place)) if place else pa.BufferReader(_file(f"{self.url}.spans.arrow"))
        return pa.ipc.open_file(source).read_all()

    def found(self) -> Iterator[ScannedDocument]:
        """The documents with spans, in order."""
        if self.spans:
            table = self.table()
            for row, evidence in _by_document(self.spans_table()):
                doc_id, sha256, size, words = (column[row].as_py() for column in table.columns)
                yield ScannedDocument(row, doc_id, sha256, size, words, evidence)

    def documents(self) -> Iterator[ScannedDocument]:
        """All documents, in order."""
        spans = _by_document(self.spans_table())
        row, evidence = next(spans, (-1, ()))
        for at, (doc_id, sha256, size, words) in enumerate(_rows(self.table())):
            if at != row:
                yield ScannedDocument(at, doc_id, sha256, size, words)
                continue
            yield ScannedDocument(at, doc_id, sha256, size, words, evidence)
            row, evidence = next(spans, (-1, ()))


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
    basis = basis_of(index, rule)
    worth_it = len(shards) > 1 and sum(shard.size for shard in shards) > WORTH_TASKS
    scans = []
    for found in spread(scan_shard, shards, index, rule, work_url, basis, worth_it=worth_it):
        scans.append(found)
        progress(found)
    return scans


def warm_up(index: Index, rule: MatchingConfig) -> None:
    """Compile the kernels, or read them from the disk, before workers need them all at once."""
    scan(b"a text", index, rule.max_gap, rule.max_drift, rule.min_span_words)


def basis_of(index: Index, rule: MatchingConfig) -> str:
    """What a scan's result follows from beside the texts."""
    return json.dumps([FORMAT, index.digest, rule.max_gap, rule.max_drift, rule.min_span_words])


def scan_shard(shard: Shard, index: Index, rule: MatchingConfig, work_url: str, basis: str) -> ShardScan:
    """One task: scan the shard's documents and leave the result below ``work_url``, its summary last."""
    identity = hashlib.sha256(f"{basis} {shard.digest()}".encode()).hexdigest()[:24]
    url = storage.join(work_url, "scan", f"{shard.name}-{identity}")
    fs, path = storage.filesystem(url)
    if (known := storage.read_json(fs, f"{path}.json")) is not None:
        return ShardScan(**{**known, "url": url})
    fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    columns: list[list[Any]] = [[], [], [], []]
    total = with_spans = 0
    with tempfile.TemporaryFile() as file:
        with pa.ipc.new_file(pa.PythonFile(file, "wb"), SPANS) as writer:
            for row, (doc_id, sha256, text) in enumerate(shard.texts()):
                scanned = scan(text, index, rule.max_gap, rule.max_drift, rule.min_span_words)
                for column, value in zip(columns, (doc_id, sha256, scanned.bytes, scanned.words), strict=True):
                    column.append(value)
                for part in _parts(scanned.spans):
                    writer.write(_spans_batch(row, part, text, index))
                total, with_spans = total + len(scanned.spans), with_spans + bool(scanned.spans)
        if total:
            file.seek(0)
            _put(fs, f"{path}.spans.arrow", file)
    release_memory()
    table = pa.table(columns, schema=DOCUMENTS)
    with tempfile.TemporaryFile() as file:
        pq.write_table(table, file, compression="zstd")
        file.seek(0)
        _put(fs, f"{path}.documents.parquet", file)
    found = ShardScan(shard.name, url, len(table), sum(columns[2]), sum(columns[3]), total, with_spans)
    storage.write_atomic(fs, f"{path}.json", storage.to_json(asdict(found)))
    return found


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


def evidence_of(row: dict[str, Any]) -> Evidence:
    """One row of ``ShardScan.spans_table``."""
    return Evidence(Span(*(row[name] for name in _INTEGERS)), row["doc_text"], row["book_text"])


def _by_document(table: pa.Table) -> Iterator[tuple[int, tuple[Evidence, ...]]]:
    """(row of the document, its spans), a batch in memory at a time."""
    row = -1
    found: list[Evidence] = []
    for at, *values, doc_text, book_text in _rows(table):
        if at != row and found:
            yield row, tuple(found)
            found = []
        row = at
        found.append(Evidence(Span(*values), doc_text, book_text))
    if found:
        yield row, tuple(found)


def _rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """All rows in order, a batch of them in memory at a time."""
    for batch in table.to_batches(1024):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _file(url: str) -> bytes:
    fs, path = storage.filesystem(url)
    content = storage.read_bytes(fs, path)
    if content is None:
        raise FileNotFoundError(url)
    return content


def release_memory() -> None:
    """Give back to the system what Arrow freed but keeps: after a document of a gigabyte that is several of them."""
    pa.default_memory_pool().release_unused()


def _put(fs: Any, path: str, file: Any) -> None:
    """A whole file or none: the local one is renamed into place, an object store's put is atomic by itself."""
    target = path if not storage.is_local(fs) else f"{path}.{uuid.uuid4().hex[:12]}.part"
    with fs.open(target, "wb") as out:
        while chunk := file.read(1 << 20):
            out.write(chunk)
    if target != path:
        Path(target).replace(path)
