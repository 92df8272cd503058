"""First pass: every training document becomes a few numbers, some part files at a time; texts are not kept.

A task leaves its documents' numbers in files (``SignedParts``), which later tasks read in columns and ranges: nothing
of them travels through the driver but what it asks for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster import storage
from stages.data.dedup.config import DedupConfig, Length
from stages.data.dedup.language import language_of
from stages.data.dedup.shingles import Permutations, bands, beginning, fingerprints, minhash, permutations, shingle
from stages.data.matching.boilerplate import HEAD, TAIL
from stages.data.matching.boilerplate import body as body_range
from stages.data.saved import Saved, numbers
from stages.stage import Artifact

SAID = 300  # characters of readable evidence, on each side
FORMAT = 1  # of what a task leaves
BINS = 256  # of the fingerprints of a run, by value: what a task can ask for
DOCUMENTS_FILE, FILTERED_FILE = "documents.arrow", "filtered.arrow"
EQUAL_FILE, BANDS_FILE, PRINTS_FILE, OWNERS_FILE = "equal.bin", "bands.bin", "prints.bin", "owners.bin"
DOCUMENTS = pa.schema(
    [
        pa.field("doc_id", pa.large_string(), nullable=False),
        ("year", pa.int32()),
        *((name, pa.int64()) for name in ("bytes", "words", "distinct", "prints")),
        ("language", pa.string()),
    ]
)
FILTERED = pa.schema(
    [
        ("row", pa.int64()),
        *((name, pa.string()) for name in ("rule", "reason", "measure")),
        *((name, pa.float64()) for name in ("score", "threshold")),
        ("text", pa.string()),
    ]
)


class Filtered(NamedTuple):
    """Why a filter drops a document: ``measure`` is what was measured, ``text`` the document's beginning."""

    rule: str
    reason: str
    measure: str
    score: float
    threshold: float
    text: str


@dataclass(frozen=True)
class SignedParts:
    """Some part files in a row, signed. ``first``: number of its first training document in the corpus; ``counts``:
    training documents of each part; ``url``: the folder of its files. ``bins``: fingerprints below each border of
    ``BINS`` equal ranges, [BINS + 1]."""

    url: str
    parts: tuple[str, ...]
    first: int
    counts: tuple[int, ...]
    filtered: int
    bins: NDArray[np.int64]

    @property
    def documents(self) -> int:
        return sum(self.counts)

    @property
    def digest(self) -> str:
        """Of what was signed and how."""
        return self.url.rsplit("/", 1)[-1].split("-", maxsplit=1)[0]

    def column(self, file: str, at: int) -> NDArray[np.uint64]:
        """Column ``at`` of ``EQUAL_FILE`` or ``BANDS_FILE``: a number per document."""
        place = storage.join(self.url, file)
        return np.asarray(numbers(place, np.uint64, at * self.documents, (at + 1) * self.documents))

    def printed(self, start: int, end: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """(fingerprints of the ranges ``start`` to ``end``, ascending; numbers of the documents that have them)."""
        low, high = int(self.bins[start]), int(self.bins[end])
        found = numbers(storage.join(self.url, PRINTS_FILE), np.uint64, low, high)
        owners = numbers(storage.join(self.url, OWNERS_FILE), np.int32, low, high)
        return found, owners.astype(np.int64) + self.first


def run_of(part: Saved, parts: Sequence[str], first: int) -> SignedParts:
    """What ``sign`` left, as it is read."""
    said = part.value
    return SignedParts(
        part.url, tuple(parts), first, tuple(said["counts"]), said["filtered"], np.array(said["bins"], np.int64)
    )


def training_texts(part: Path) -> pa.LargeStringArray:
    """The texts of the training documents of a Parquet file, in order."""
    table = pq.read_table(part, columns=["text", "split"])
    training = pc.equal(table["split"], "train")
    if not pc.all(training).as_py():  # filtering copies
        table = table.filter(training)
    return table["text"].combine_chunks()


def views(texts: pa.LargeStringArray) -> Iterator[NDArray[np.uint8]]:
    """The UTF-8 bytes of each text, not copied."""
    if not len(texts):
        return
    _, offsets, data = texts.buffers()
    at = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    whole = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    whole.flags.writeable = False
    for start, end in zip(at[:-1].tolist(), at[1:].tolist(), strict=True):
        yield whole[start:end]


def body(text: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A text without transcribers' header and licence: short books would be near-duplicates by them alone."""
    for edge in (text[:HEAD].tobytes(), text[-TAIL:].tobytes()):
        if b"utenberg" in edge or b"UTENBERG" in edge:  # the patterns cost half as much as all the rest
            start, end = body_range(text)
            return text[start:end]
    return text


def identity(parts: Sequence[str], documents: Artifact, config: DedupConfig) -> str:
    """Digest of what the signatures of ``parts`` follow from."""
    digest = hashlib.sha256(json.dumps([FORMAT, config.model_dump(mode="json")]).encode())
    for part in parts:
        table = pq.read_table(documents.path(part), columns=["doc_id", "year", "split", "sha256"])
        digest.update(json.dumps([part, *(column.to_pylist() for column in table.columns)]).encode())
    return digest.hexdigest()


def sign(parts: Sequence[str], folder: Path, documents: Artifact, config: DedupConfig) -> dict[str, Any]:
    """One task: the signatures of the training documents in the files ``parts`` below ``documents``."""
    by = permutations(config.editions.bands * config.editions.rows) if config.editions else None
    signed = [_signed(documents.path(part), config, by) for part in parts]
    before = np.cumsum([0, *(len(part.table) for part in signed)])
    _write_ipc(pa.concat_tables(part.table for part in signed), folder / DOCUMENTS_FILE)
    dropped = [
        {"row": int(at) + row, **found._asdict()}
        for at, part in zip(before, signed, strict=False)
        for row, found in part.filtered.items()
    ]
    _write_ipc(pa.Table.from_pylist(dropped, schema=FILTERED), folder / FILTERED_FILE)
    np.concatenate([part.equal for part in signed]).T.tofile(folder / EQUAL_FILE)
    np.concatenate([part.bands for part in signed]).T.tofile(folder / BANDS_FILE)
    prints = np.concatenate([part.prints for part in signed])
    owners = np.repeat(
        np.arange(before[-1], dtype=np.int32), np.concatenate([part.table["prints"].to_numpy() for part in signed])
    )
    order = np.argsort(prints, kind="stable")
    prints[order].tofile(folder / PRINTS_FILE)
    owners[order].tofile(folder / OWNERS_FILE)
    bins = np.searchsorted(prints[order], borders(config)[:-1])
    return {
        "counts": [len(part.table) for part in signed],
        "filtered": len(dropped),
        "bins": [*bins.tolist(), len(prints)],
    }


class _Signed(NamedTuple):
    """Of one part file: N documents, B bands."""

    table: pa.Table  # DOCUMENTS
    equal: NDArray[np.uint64]  # [N, 4] half of the sha256 of the text, hash of the sequence of words
    bands: NDArray[np.uint64]  # [N, B]
    prints: NDArray[np.uint64]  # those of each document sorted
    filtered: dict[int, Filtered]


def _signed(path: Path, config: DedupConfig, by: Permutations | None) -> _Signed:
    names = pq.read_table(path, columns=["doc_id", "year", "split", "sha256"])
    names = names.filter(pc.equal(names["split"], "train"))
    rows = [_sign(text, config, by) for text in views(training_texts(path))]
    sizes, words, distinct, same, banded, printed, languages, filtered = zip(*rows, strict=True) if rows else [()] * 8
    counts = [*map(len, printed)]
    doc_ids = names["doc_id"].cast(pa.large_string())
    table = pa.table([doc_ids, names["year"], sizes, words, distinct, counts, languages], schema=DOCUMENTS)
    digests = np.frombuffer(bytes.fromhex("".join(names["sha256"].to_pylist())), ">u8").reshape(-1, 4)[:, :2]
    return _Signed(
        table,
        np.hstack([digests.astype(np.uint64), np.array(same, np.uint64).reshape(-1, 2)]),
        np.array(banded, np.uint64).reshape(len(rows), config.editions.bands if config.editions else 0),
        np.concatenate([np.empty(0, np.uint64), *printed]),
        {row: found for row, found in enumerate(filtered) if found is not None},
    )


def borders(config: DedupConfig) -> NDArray[np.uint64]:
    """Of ``BINS`` equal ranges of fingerprints, [BINS + 1]."""
    top = (2**64 - 1) // (config.containment.sample if config.containment else 1)
    return np.array([top // BINS * k for k in range(BINS + 1)], np.uint64)


def _write_ipc(table: pa.Table, path: Path) -> None:
    """Uncompressed, so that it can be mapped; in one piece, of which to look rows up takes least."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def _sign(text: NDArray[np.uint8], config: DedupConfig, by: Permutations | None) -> tuple[Any, ...]:
    shingled = shingle(body(text), config.ngram)
    banded = np.zeros(0, np.uint64)
    if by is not None and config.editions is not None:
        banded = bands(minhash(shingled.grams, by), config.editions.rows)
    printed = fingerprints(shingled.grams, config.containment.sample) if config.containment else np.empty(0, np.uint64)
    language, filtered = "", None
    if config.length is not None:
        filtered = _by_length(len(text), shingled.words, config.length)
    if config.language is not None:
        language, confidence = language_of(text, config.language.min_confidence)
        if filtered is None and language not in (*config.language.keep, "und"):
            reason = f"written in {language} (confidence {confidence:.2f}), not in {', '.join(config.language.keep)}"
            filtered = Filtered("language", reason, "confidence", confidence, config.language.min_confidence, "")
    if filtered is not None:
        filtered = filtered._replace(text=beginning(text, SAID))
    return len(text), shingled.words, len(shingled.grams), shingled.same, banded, printed, language, filtered


def _by_length(size: int, words: int, length: Length) -> Filtered | None:
    for measure, value, least, most in (
        ("bytes", size, length.min_bytes, length.max_bytes),
        ("words", words, length.min_words, length.max_words),
    ):
        if least is not None and value < least:
            return Filtered("length", f"{value:,} {measure}, at least {least:,} are asked", measure, value, least, "")
        if most is not None and value > most:
            return Filtered("length", f"{value:,} {measure}, at most {most:,} are allowed", measure, value, most, "")
    return None
