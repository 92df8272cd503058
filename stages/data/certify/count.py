"""How much of every evaluation document stands word for word in the training documents.

A text is its words: lower case, letters and digits, everything else separates; an ideograph or kana is a word. The
words of the evaluation documents are numbered, so that a training text becomes an array of numbers (0: a word that
no evaluation document has), n words in a row a 64-bit number, and containment a look-up in a sorted array. Two
different n-grams agree by chance once in 2^64 comparisons (multilinear hashing, Carter and Wegman, 1979): with 10^8
n-grams of training text against 10^7 of evaluation text, one run in 10^4 counts one n-gram too many.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.data.certify.config import CertifyConfig
from stages.data.corpus.documents import document_names, write_table
from stages.data.parallel import spread
from stages.stage import Artifact, Context, StageError, Summary

TRAINING = "train"
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
# what is not seen (Default_Ignorable_Code_Point of Unicode), with the line break after a soft hyphen
_UNSEEN = re.compile(
    "\u00ad\n[ \t]*|[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
_WORD = re.compile(f"[{_IDEOGRAPHS}]|[^\\W_{_IDEOGRAPHS}]+")
PIECE = 2**20  # bytes of a text turned into words at a time: a text of a gigabyte takes no more memory than a book
WORTH_TASKS = 32 * 2**20  # below this many (compressed) bytes one core is done before workers have started

SCHEMA = pa.schema(
    [
        ("book_id", pa.string()),
        ("title", pa.string()),
        ("split", pa.string()),
        ("ngrams", pa.int64()),
        ("contained", pa.int64()),
        ("share", pa.float64()),
        ("longest", pa.int64()),
        ("top_document", pa.string()),
    ]
)


@dataclass(frozen=True)
class GramIndex:
    """The n-grams of the evaluation documents.

    numbers: word -> its number, from 1. weights: uint64 [n], one per place in an n-gram. grams: uint64 [distinct],
    ascending. owner: int32 [entries], the evaluation documents of gram g at ``first[g] : first[g + 1]``; first: int64
    [distinct + 1].
    """

    numbers: dict[str, int]
    weights: NDArray[np.uint64]
    grams: NDArray[np.uint64]
    first: NDArray[np.int64]
    owner: NDArray[np.int32]
    documents: int


class SharedGrams(NamedTuple):
    """What one training document shares with evaluation documents, all of shape [pairs]: which one, how many of its
    distinct n-grams, and the words of the longest passage."""

    owner: NDArray[np.int64]
    grams: NDArray[np.int64]
    longest: NDArray[np.int64]


class SharedOfFile(NamedTuple):
    """What the training documents of one file share: ``found`` int64 [distinct], numbers of grams; ``pairs``:
    (training document, what it shares); ``documents`` and ``words`` read."""

    found: NDArray[np.int64]
    pairs: list[tuple[str, SharedGrams]]
    documents: int
    words: int


def certify(config: CertifyConfig, documents: Artifact, output: Path, context: Context) -> Summary:
    """Write ``containment.parquet`` (docs/formats.md). Raises StageError where there is no evaluation document."""
    names = document_names(documents)
    worth_it = sum(names.values()) > WORTH_TASKS
    rows: list[dict[str, Any]] = []
    texts: list[list[str]] = []
    for done, found_rows in enumerate(spread(_evaluation, names, documents, worth_it=worth_it), 1):
        for row in found_rows:
            texts.append(list(words(memoryview(row.pop("text").encode()))))
            rows.append(row)
        context.progress(done, 2 * len(names), "shards")
    if not rows:
        raise StageError("the documents have no evaluation split to certify", field="corpus", fix="add one")
    index = build(texts, config.ngram)
    lengths = [len(text) for text in texts]
    del texts
    found = np.zeros(len(index.grams), bool)
    longest = np.zeros(len(rows), np.int64)
    most, top = np.zeros(len(rows), np.int64), [""] * len(rows)
    trained, read = 0, 0
    for done, shard in enumerate(spread(scan, names, documents, index, worth_it=worth_it), 1):
        found[shard.found] = True
        trained, read = trained + shard.documents, read + shard.words
        for doc_id, pair in shard.pairs:
            longest[pair.owner] = np.maximum(longest[pair.owner], pair.longest)
            for owner, grams in zip(pair.owner.tolist(), pair.grams.tolist(), strict=True):
                if grams > most[owner]:
                    most[owner], top[owner] = grams, doc_id
        context.progress(len(names) + done, 2 * len(names), "shards")
    owned = np.bincount(index.owner, minlength=len(rows))
    contained = np.bincount(index.owner[np.repeat(found, np.diff(index.first))], minlength=len(rows))
    for i, row in enumerate(rows):
        row |= {
            "ngrams": int(owned[i]),
            "contained": int(contained[i]),
            "longest": int(longest[i]),
            "share": contained[i] / owned[i] if owned[i] else None,
            "top_document": top[i] or None,
        }
        if not owned[i]:
            context.warn(f"{row['book_id']}: {lengths[i]} words are too few for an n-gram of {config.ngram}")
    rows.sort(key=lambda row: (-(row["share"] or 0.0), row["book_id"]))
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), output / "containment.parquet")
    return _summary(config, rows, trained, read)


def _summary(config: CertifyConfig, rows: list[dict[str, Any]], trained: int, read: int) -> Summary:
    worst = rows[0]
    shared = sum(row["contained"] > 0 for row in rows)
    headline = (
        f"{len(rows)} evaluation documents against {trained:,} training documents ({read:,} words): {shared} share an "
        f"n-gram of {config.ngram} words; at most {worst['share'] or 0.0:.2%} of one is contained, and "
        f"{max(row['longest'] for row in rows):,} words in a row"
    )
    metrics = {
        "evaluation_documents": float(len(rows)),
        "training_documents": float(trained),
        "training_words": float(read),
        "documents_with_shared_ngrams": float(shared),
        "largest_share": float(worst["share"] or 0.0),
        "longest_words": float(max(row["longest"] for row in rows)),
    }
    return Summary(headline, metrics, {"Containment": "containment.parquet"})


def words(text: memoryview) -> Iterator[str]:
    """The words of a UTF-8 text in order, read piece by piece; pieces end at a space or line break."""
    start = 0
    while start < len(text):
        end = start + PIECE
        piece = bytes(text[start:end])
        if end < len(text):
            cut = max(piece.rfind(b" "), piece.rfind(b"\n"))
            while cut < 0 and end < len(text):  # a script without spaces
                end += PIECE
                piece = bytes(text[start:end])
                cut = max(piece.rfind(b" "), piece.rfind(b"\n"))
            piece = piece[: cut + 1] if cut >= 0 else piece
        start += len(piece)
        plain = piece.decode()
        if not plain.isascii():
            plain = unicodedata.normalize("NFKC", _UNSEEN.sub("", plain))
        yield from _WORD.findall(plain.lower())


def build(texts: list[list[str]], n: int) -> GramIndex:
    """The index of evaluation texts, given as words."""
    numbers: dict[str, int] = {}
    for text in texts:
        for word in text:
            numbers.setdefault(word, len(numbers) + 1)
    weights = np.random.default_rng(n).integers(0, 2**64, n, dtype=np.uint64) | np.uint64(1)
    distinct = [np.unique(hashed(_numbered(text, numbers), weights)) for text in texts]
    gram = np.concatenate(distinct)
    owner = np.repeat(np.arange(len(texts), dtype=np.int32), [len(grams) for grams in distinct])
    order = np.argsort(gram, kind="stable")
    gram, owner = gram[order], owner[order]
    grams, first = np.unique(gram, return_index=True)
    return GramIndex(numbers, weights, grams, np.append(first, len(gram)).astype(np.int64), owner, len(texts))


def _numbered(text: list[str], numbers: dict[str, int]) -> NDArray[np.uint64]:
    return np.fromiter(map(numbers.get, text, repeat(0)), np.uint64, len(text))


def hashed(numbers: NDArray[np.uint64], weights: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """uint64 [words - n + 1] of all n-grams: the weighted sum of their words' numbers modulo 2^64."""
    n = len(weights)
    if len(numbers) < n:
        return np.zeros(0, np.uint64)
    size = len(numbers) - n + 1
    total = np.zeros(size, np.uint64)
    for place, weight in enumerate(weights):
        total += numbers[place : place + size] * weight
    return total


def shares(numbers: NDArray[np.uint64], index: GramIndex) -> tuple[NDArray[np.int64], SharedGrams]:
    """(numbers of the grams found, what is shared with whom) of one training text, given as word numbers [words]."""
    n = len(index.weights)
    known = numbers > 0
    unknown = np.concatenate([[0], np.cumsum(~known)])
    hashes = hashed(numbers, index.weights)
    possible = np.flatnonzero(unknown[n:] == unknown[:-n]) if len(hashes) else np.zeros(0, np.int64)
    values = hashes[possible]
    place = np.minimum(np.searchsorted(index.grams, values), max(0, len(index.grams) - 1))
    hit = index.grams[place] == values if len(index.grams) else np.zeros(len(values), bool)
    at, gram = possible[hit], place[hit]
    count = index.first[gram + 1] - index.first[gram]
    inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    owner = index.owner[np.repeat(index.first[gram], count) + inside].astype(np.int64)
    where, which = np.repeat(at, count), np.repeat(gram, count)
    pairs = np.unique(np.stack([owner, which], 1), axis=0)
    owners, grams = np.unique(pairs[:, 0], return_counts=True)
    # a row of the same n-gram over and over ("0 0 0 ...") is no longer than the distinct ones in it
    longest = np.minimum(_longest(owner, where, owners), grams) + n - 1
    return np.unique(gram), SharedGrams(owners, grams, longest)


def _longest(owner: NDArray[np.int64], where: NDArray[np.int64], owners: NDArray[np.int64]) -> NDArray[np.int64]:
    """[owners] of the largest number of shared n-grams that begin at places in a row."""
    order = np.lexsort((where, owner))
    owner, where = owner[order], where[order]
    begins = np.flatnonzero(np.append(True, (np.diff(where) != 1) | (np.diff(owner) != 0))) if len(owner) else owner
    sizes = np.diff(np.append(begins, len(owner)))
    longest = np.zeros(len(owners), np.int64)
    np.maximum.at(longest, np.searchsorted(owners, owner[begins]), sizes)
    return longest


def scan(name: str, documents: Artifact, index: GramIndex) -> SharedOfFile:
    """What the training documents of the part file ``name`` share with the evaluation documents."""
    found, pairs, count, read = [np.zeros(0, np.int64)], [], 0, 0
    with pq.ParquetFile(documents.path(name)) as file:
        for batch in file.iter_batches(16, columns=["doc_id", "split", "text"]):
            ids, splits = batch["doc_id"].to_pylist(), batch["split"].to_pylist()
            texts = batch["text"].cast(pa.large_binary())
            for i, (doc_id, split) in enumerate(zip(ids, splits, strict=True)):
                if split != TRAINING:
                    continue
                text = memoryview(texts[i].as_buffer())
                numbers = np.fromiter(map(index.numbers.get, words(text), repeat(0)), np.uint64)
                grams, shared = shares(numbers, index)
                count, read = count + 1, read + len(numbers)
                if len(grams):
                    found.append(grams)
                    pairs.append((doc_id, shared))
    return SharedOfFile(np.unique(np.concatenate(found)), pairs, count, read)


def _evaluation(name: str, documents: Artifact) -> list[dict[str, Any]]:
    """doc_id (as ``book_id``), title, split and text of the evaluation documents of one part file."""
    file = documents.path(name)
    if pc.all(pc.equal(pq.read_table(file, columns=["split"])["split"], TRAINING)).as_py() in (True, None):
        return []
    rows = []
    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches(16, columns=["doc_id", "title", "split", "text"]):
            for row in batch.filter(pc.not_equal(batch["split"], TRAINING)).to_pylist():
                row["book_id"] = row.pop("doc_id")
                rows.append(row)
    return rows
