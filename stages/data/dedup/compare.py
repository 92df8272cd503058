"""Second pass: the true similarity of candidate pairs, from their texts, with a passage both share.

The texts that are needed are read once, part file by part file, and laid out by the task that will compare them
(``gather``), so that no task looks for single documents all over the corpus. A task writes what it found into a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster import storage
from stages.data.dedup.candidates import DocumentPair
from stages.data.dedup.shingles import common, passage, shingle
from stages.data.dedup.signatures import SAID, SignedParts, body, training_texts, views
from stages.data.saved import spread_saved
from stages.stage import Artifact

LEAST_BYTES, MOST_BYTES = 4 * 2**20, 256 * 2**20  # of text for one task, about
TASKS = 1024  # for which the texts are laid out, about: more are more small files to read
HELD_BYTES = 256 * 2**20  # of n-grams kept in memory by a task
TEXTS_FILE, COMPARED_FILE = "texts.arrow", "compared.arrow"
TEXTS = pa.schema([("number", pa.int64()), ("text", pa.large_binary())])
COMPARED = pa.schema(
    [
        *((name, pa.int32()) for name in ("document", "other")),
        *((name, pa.float64()) for name in ("jaccard", "containment", "containment_of_other")),
        ("shared", pa.int64()),
        *((name, pa.string()) for name in ("text", "other_text")),
        ("removes", pa.bool_()),
    ]
)


class Compared(NamedTuple):
    """Two documents by their sets of n-grams A (the document) and B (the other one, preferred).

    ``text`` and ``other_text``: the beginning of the longest passage they share.
    """

    document: int
    other: int
    jaccard: float
    containment: float  # |A and B| / |A|
    containment_of_other: float  # |A and B| / |B|
    shared: int
    text: str
    other_text: str


Compare = Callable[[Iterable[DocumentPair]], Iterator[Compared]]
"""(other, document) pairs, compared."""


@dataclass(frozen=True)
class CompareJob:
    """What one task compares. ``documents``: the numbers of all texts it needs, ascending; ``given``: what ``work``
    gets to know beside the comparison."""

    documents: NDArray[np.int32]
    given: Any


def batches(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of some lots of text in a row, of ``sizes`` bytes, the number of its task."""
    if not len(sizes):
        return np.empty(0, np.int64)
    ends = np.cumsum(sizes)
    most = min(MOST_BYTES, max(LEAST_BYTES, int(ends[-1]) // TASKS))
    return np.asarray(np.unique((ends - sizes) // most, return_inverse=True)[1])


def compare_all(
    jobs: Sequence[CompareJob],
    work: Callable[[Any, Compare], Iterable[tuple[Compared, bool]]],
    runs: Sequence[SignedParts],
    documents: Artifact,
    ngram: int,
    work_url: str,
    worth_it: bool,
    progress: Callable[[int, int], None],
) -> list[str]:
    """Folders of the files ``COMPARED_FILE`` of what ``work(given, compare)`` yields for each job: (comparison, does it
    remove its document)."""
    items = list(_needed(jobs, runs))
    laid = spread_saved(
        gather, items, storage.join(work_url, "texts"), documents, identity=_identity_of_texts, worth_it=worth_it
    )
    sources: list[list[tuple[str, int]]] = [[] for _ in jobs]
    for part in laid:
        for place, job in enumerate(part.value["jobs"]):
            sources[job].append((storage.join(part.url, TEXTS_FILE), place))
    basis = hashlib.sha256(json.dumps([[run.digest for run in runs], ngram, work.__qualname__]).encode()).hexdigest()
    made = spread_saved(
        _compare,
        list(zip(jobs, sources, strict=True)),
        storage.join(work_url, "compared"),
        work,
        ngram,
        basis,
        identity=_identity,
        worth_it=worth_it,
    )
    urls = []
    for done, part in enumerate(made, 1):
        urls.append(part.url)
        progress(done, len(jobs))
    return urls


@dataclass(frozen=True)
class _Needed:
    """Documents of a run whose texts are needed: ``numbers``, and the jobs they are for; sorted by job."""

    run: SignedParts
    numbers: NDArray[np.int32]
    jobs: NDArray[np.int32]


def _needed(jobs: Sequence[CompareJob], runs: Sequence[SignedParts]) -> Iterator[_Needed]:
    if not jobs:
        return
    numbers = np.concatenate([job.documents for job in jobs])
    job_of = np.repeat(np.arange(len(jobs), dtype=np.int32), [len(job.documents) for job in jobs])
    run_of = np.searchsorted([run.first for run in runs], numbers, side="right") - 1
    order = np.argsort(run_of, kind="stable")  # in a run by job, in a job by number
    edges = np.searchsorted(run_of[order], np.arange(len(runs) + 1))
    for run, start, end in zip(runs, edges[:-1], edges[1:], strict=True):
        if end > start:
            chosen = order[start:end]
            yield _Needed(run, numbers[chosen], job_of[chosen])


def _identity_of_texts(needed: _Needed, *_: Any) -> str:
    digest = hashlib.sha256(needed.run.digest.encode())
    digest.update(needed.numbers.tobytes() + needed.jobs.tobytes())
    return digest.hexdigest()


def gather(needed: _Needed, folder: Path, documents: Artifact) -> dict[str, Any]:
    """One task: the texts that are needed of the part files of one run, without boilerplate, a record batch a job."""
    texts: dict[int, bytes] = {}
    start = needed.run.first
    wanted = np.unique(needed.numbers)
    for part, count in zip(needed.run.parts, needed.run.counts, strict=True):
        here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + count)]
        if len(here):
            read = training_texts(documents.path(part))
            for number in here.tolist():
                texts[number] = body(next(views(read[number - start : number - start + 1]))).tobytes()
        start += count
    jobs, edges = np.unique(needed.jobs, return_index=True)
    with pa.OSFile(str(folder / TEXTS_FILE), "wb") as file, pa.ipc.new_file(file, TEXTS) as writer:
        for numbers in map(np.ndarray.tolist, np.split(needed.numbers, edges[1:])):
            batch = [pa.array(numbers, pa.int64()), pa.array([texts[n] for n in numbers], pa.large_binary())]
            writer.write_batch(pa.record_batch(batch, schema=TEXTS))
    return {"jobs": jobs.tolist()}


def _identity(item: tuple[CompareJob, Any], work: Any, ngram: int, basis: str) -> str:
    job, _ = item
    digest = hashlib.sha256(basis.encode() + job.documents.tobytes())
    for array in job.given:
        digest.update(np.ascontiguousarray(array).tobytes() + b"|")
    return digest.hexdigest()


def _compare(item: tuple[CompareJob, list[tuple[str, int]]], folder: Path, work: Any, ngram: int, basis: str) -> int:
    """One task: what ``work`` finds, as ``COMPARED_FILE``."""
    job, sources = item
    count = 0
    with contextlib.ExitStack() as stack:
        texts = {n: text for url, place in sources for n, text in _texts(url, place, stack)}
        file = stack.enter_context(pa.OSFile(str(folder / COMPARED_FILE), "wb"))
        writer = stack.enter_context(pa.ipc.new_file(file, COMPARED))
        rows: list[dict[str, Any]] = []
        for found, removes in work(job.given, Comparer(texts, ngram)):
            rows.append({**found._asdict(), "removes": removes})
            count += 1
            if len(rows) == 4096:
                writer.write_table(pa.Table.from_pylist(rows, schema=COMPARED))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema=COMPARED))
    return count


def _texts(url: str, place: int, stack: contextlib.ExitStack) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(number, text) of one record batch of a file: mapped where storage is local, else that batch alone is fetched."""
    local = storage.local_path(url)
    if local is not None:
        source: Any = pa.memory_map(str(local))
    else:
        filesystem, path = storage.filesystem(url)
        source = pa.PythonFile(stack.enter_context(filesystem.open(path, "rb")), "r")
    batch = pa.ipc.open_file(source).get_batch(place)
    column = batch["text"]
    for number, text in zip(batch["number"].to_pylist(), column, strict=True):
        buffer = text.as_buffer()
        yield number, np.frombuffer(buffer, np.uint8) if buffer.size else np.empty(0, np.uint8)


class Comparer:
    """Compares pairs of the documents at hand; the n-grams of the documents used last stay in memory."""

    def __init__(self, texts: dict[int, NDArray[np.uint8]], ngram: int) -> None:
        self._texts, self._ngram = texts, ngram
        self._sets: dict[int, NDArray[np.uint64]] = {}
        self._held = 0

    def __call__(self, pairs: Iterable[DocumentPair]) -> Iterator[Compared]:
        """(other, document) pairs compared, in their order."""
        for other, document in pairs:
            a, b = self._grams(document), self._grams(other)
            shared = common(a, b)
            union = len(a) + len(b) - shared
            yield Compared(
                document,
                other,
                shared / union if union else 0.0,
                shared / len(a) if len(a) else 0.0,
                shared / len(b) if len(b) else 0.0,
                shared,
                *passage(self._texts[document], self._texts[other], b, self._ngram, SAID),
            )

    def _grams(self, document: int) -> NDArray[np.uint64]:
        found = self._sets.pop(document, None)
        if found is None:
            found = shingle(self._texts[document], self._ngram).grams
            self._held += found.nbytes
        self._sets[document] = found
        while len(self._sets) > 2 and self._held > HELD_BYTES:
            self._held -= self._sets.pop(next(iter(self._sets))).nbytes
        return found
