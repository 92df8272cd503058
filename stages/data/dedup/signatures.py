"""First pass: every training document becomes a few numbers, part file by part file; texts are not kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.data.dedup.config import DedupConfig, Length
from stages.data.dedup.language import language_of
from stages.data.dedup.shingles import Permutations, bands, beginning, fingerprints, minhash, permutations, shingle
from stages.data.matching.boilerplate import HEAD, TAIL
from stages.data.matching.boilerplate import body as body_range
from stages.stage import Artifact

SAID = 300  # characters of readable evidence, on each side


class Filtered(NamedTuple):
    """Why a filter drops a document: ``measure`` is what was measured, ``text`` the document's beginning."""

    rule: str
    reason: str
    measure: str
    score: float
    threshold: float
    text: str


class Signatures(NamedTuple):
    """N documents in their order, B bands, F fingerprints. Documents shorter than an n-gram have none of either."""

    sizes: NDArray[np.int64]  # [N] bytes
    words: NDArray[np.int64]  # [N]
    distinct: NDArray[np.int64]  # [N] n-grams
    same: NDArray[np.uint64]  # [N, 2] hash of the sequence of words
    bands: NDArray[np.uint64]  # [N, B]
    fingerprints: NDArray[np.uint64]  # [F], those of each document sorted
    first: NDArray[np.int64]  # [N + 1] document i has fingerprints[first[i] : first[i + 1]]
    languages: list[str]  # [N], empty strings without a language filter
    filtered: dict[int, Filtered]


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


def sign(part: str, documents: Artifact, config: DedupConfig) -> Signatures:
    """One task: the signatures of the training documents in the file ``part`` below ``documents``."""
    by = permutations(config.editions.bands * config.editions.rows) if config.editions else None
    rows = [_sign(text, config, by) for text in views(training_texts(documents.path(part)))]
    sizes, words, distinct, same, banded, printed, languages, filtered = zip(*rows, strict=True) if rows else [()] * 8
    count = config.editions.bands if config.editions else 0
    return Signatures(
        np.array(sizes, np.int64),
        np.array(words, np.int64),
        np.array(distinct, np.int64),
        np.array(same, np.uint64).reshape(-1, 2),
        np.array(banded, np.uint64).reshape(len(rows), count),
        np.concatenate([np.empty(0, np.uint64), *printed]),
        np.cumsum([0, *map(len, printed)], dtype=np.int64),
        list(languages),
        {i: found for i, found in enumerate(filtered) if found is not None},
    )


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


def joined(parts: list[Signatures]) -> Signatures:
    """The signatures of all parts as one, documents numbered through."""
    starts = np.cumsum([0, *(len(part.words) for part in parts)])
    prints = np.cumsum([0, *(len(part.fingerprints) for part in parts)])
    return Signatures(
        sizes=np.concatenate([part.sizes for part in parts]),
        words=np.concatenate([part.words for part in parts]),
        distinct=np.concatenate([part.distinct for part in parts]),
        same=np.concatenate([part.same for part in parts]),
        bands=np.concatenate([part.bands for part in parts]),
        fingerprints=np.concatenate([part.fingerprints for part in parts]),
        first=np.concatenate([[0], *(part.first[1:] + at for part, at in zip(parts, prints, strict=False))]),
        languages=[language for part in parts for language in part.languages],
        filtered={int(at) + i: f for part, at in zip(parts, starts, strict=False) for i, f in part.filtered.items()},
    )


class Texts:
    """The texts of training documents by number, from their part files; the parts read last stay in memory."""

    def __init__(self, parts: list[Path], counts: list[int], keep_bytes: int) -> None:
        self._parts, self._keep_bytes = parts, keep_bytes
        self._starts = np.cumsum([0, *counts])
        self._read: dict[int, pa.LargeStringArray] = {}  # in order of use, the latest last

    def __getitem__(self, document: int) -> NDArray[np.uint8]:
        """UTF-8 without boilerplate."""
        part = int(np.searchsorted(self._starts, document, side="right")) - 1
        texts = self._read.pop(part, None)
        if texts is None:
            texts = training_texts(self._parts[part])
        self._read[part] = texts
        while len(self._read) > 1 and sum(kept.nbytes for kept in self._read.values()) > self._keep_bytes:
            del self._read[next(iter(self._read))]
        at = document - int(self._starts[part])
        text = body(next(views(texts[at : at + 1])))
        return text if 2 * len(text) > texts.nbytes else text.copy()  # a view keeps its whole part in memory
