"""Carries deduplication out: signatures, candidates, true comparisons, decisions, the documents left.

Each pass is a task for some part files, a column of hashes, a range of fingerprints or a lot of texts; what it found
lies in the step's work folder, and an interrupted run goes on with what is not done. The driver holds some tens of
bytes a document (``numbered.Corpus``) and no text.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster import storage
from stages.data.corpus.documents import document_names, write_documents
from stages.data.dedup import compare as comparing
from stages.data.dedup.config import DedupConfig
from stages.data.dedup.decide import Decided, decide
from stages.data.dedup.numbered import CONTAINED, COPY, EDITION, KEPT, LANGUAGE, LENGTH, RULES, WORDS, Corpus
from stages.data.dedup.shingles import common, minhash, passage, permutations, shingle
from stages.data.dedup.signatures import SignedParts, identity, run_of, sign
from stages.data.dedup.tables import AT_ONCE, Table
from stages.data.saved import spill, spread_saved
from stages.stage import Artifact, Context, StageError, Summary

WORTH_TASKS = 64 * 2**20  # below this many (compressed) bytes one core is done before workers have started
KEPT_FILE = "documents.parquet"
RUNS = 1024  # tasks of the first pass, at most: so many files is what later passes read of

METRICS = {"exact": (COPY, WORDS), "editions": (EDITION,), "contained": (CONTAINED,), "language": (LANGUAGE,)}
METRICS |= {"length": (LENGTH,)}
TOLD = {
    "exact": "as equal texts",
    "editions": "as editions",
    "contained": "as parts of others",
    "language": "by language",
    "length": "by length",
}


class Deduplicated(NamedTuple):
    """What deduplication knows of the training documents, and what it decided."""

    corpus: Corpus
    decided: Decided
    worth_it: bool  # to spread work over tasks

    def dropped(self) -> dict[str, tuple[str, str]]:
        """Id of a dropped document -> id of the one that stood for it ("" after a filter), rule."""
        ids, rule, other = self.corpus.table["doc_id"], self.corpus.rule, self.corpus.other
        return {
            ids[at].as_py(): (ids[int(other[at])].as_py() if other[at] >= 0 else "", RULES[rule[at]])
            for at in np.flatnonzero(rule).tolist()
        }


def dedup(config: DedupConfig, documents: Artifact, output: Path, context: Context) -> Summary:
    """Write ``documents/``, ``decisions.parquet``, ``fates.parquet``, ``pairs.parquet`` (docs/formats.md).

    Raises StageError where filters leave no training document.
    """
    with finding(config, documents, context.work_url, context.progress) as found:
        table = Table(found.corpus, found.decided, documents, config)
        _check_something_left(found.corpus)
        telling = table.write(output)
        for rows in _write(found.corpus, documents, output / "documents", context.work_url, found.worth_it):
            for _ in itertools.islice(telling, rows // AT_ONCE + 1):  # as many rows, while tasks go on
                pass
        for _ in telling:
            pass
        metrics = _metrics(found)
        metrics["corpus_documents"] = float(table.rows)
        metrics["corpus_bytes"] = float(table.bytes_in)
    return Summary(
        _headline(metrics),
        metrics,
        {"Decisions": "decisions.parquet", "What became of the corpus": "fates.parquet", "Pairs": "pairs.parquet"},
    )


@contextlib.contextmanager
def finding(
    config: DedupConfig, documents: Artifact, work_url: str, progress: Callable[[float, float, str], None]
) -> Iterator[Deduplicated]:
    """Everything but writing: ``documents`` needs a folder ``documents/`` only. ``progress``: done, total, unit."""
    _compile()
    parts = document_names(documents)
    names, worth_it = list(parts), sum(parts.values()) > WORTH_TASKS
    with spill(work_url) as folder:
        corpus = Corpus(_runs(names, documents, config, work_url, worth_it, progress), folder)

        def compare(jobs: Sequence[comparing.CompareJob], work: Any) -> list[str]:
            place = storage.join(work_url, work.__name__)
            return comparing.compare_all(
                jobs,
                work,
                corpus.runs,
                documents,
                config.ngram,
                place,
                worth_it,
                lambda done, total: progress(done, total, f"lots of {work.__name__.replace('_', ' ')}"),
            )

        yield Deduplicated(corpus, decide(corpus, config, compare, worth_it), worth_it)


def _runs(
    names: Sequence[str],
    documents: Artifact,
    config: DedupConfig,
    work_url: str,
    worth_it: bool,
    progress: Callable[[float, float, str], None],
) -> list[SignedParts]:
    each = -(-len(names) // RUNS)
    lots = [tuple(names[at : at + each]) for at in range(0, len(names), each)]
    place = storage.join(work_url, "signed")
    signed = spread_saved(sign, lots, place, documents, config, identity=identity, worth_it=worth_it)
    runs: list[SignedParts] = []
    first = 0
    for lot, part in zip(lots, signed, strict=True):
        runs.append(run_of(part, lot, first))
        first += runs[-1].documents
        progress(len(runs), len(lots), "parts")
    return runs


def _compile() -> None:
    """Compiles the kernels once, before workers need them."""
    text = np.frombuffer(b"two texts of so many words compile everything", np.uint8)
    grams = shingle(text, 2).grams
    minhash(grams, permutations(1))
    common(grams, grams)
    passage(text, text, grams, 2, 10)


def _check_something_left(corpus: Corpus) -> None:
    if (corpus.rule != KEPT).all():
        rules = Counter(RULES[rule] for rule in corpus.rule.tolist())
        worst = max(("length", "language"), key=lambda rule: rules[rule])
        raise StageError(
            f"no training document is left: {', '.join(f'{n} dropped by {rule}' for rule, n in sorted(rules.items()))}",
            field=f"dedup.{worst}",
            fix="loosen it",
        )


@dataclass(frozen=True)
class _Part:
    """A part file of a run, how many training documents it has, and which of them are dropped."""

    name: str
    run: str
    documents: int
    dropped: NDArray[np.int64]


def _write(corpus: Corpus, documents: Artifact, folder: Path, work_url: str, worth_it: bool) -> Iterator[int]:
    """The part files without the dropped documents; one that loses none is copied as it is, an empty one left out.
    Yields the number of training documents of each when it is there."""
    folder.mkdir()
    parts = [
        _Part(part, run.digest, count, np.flatnonzero(corpus.rule[start : start + count]))
        for run in corpus.runs
        for part, count, start in zip(run.parts, run.counts, run.first + np.cumsum([0, *run.counts]), strict=False)
    ]
    place = storage.join(work_url, "kept")
    made = spread_saved(_keep, parts, place, documents, identity=_identity_of_part, worth_it=worth_it)
    for part, kept in zip(parts, made, strict=True):
        if kept.value:
            kept.place(KEPT_FILE, folder / Path(part.name).name)
        yield part.documents


def _identity_of_part(part: _Part, *_: Any) -> str:
    return hashlib.sha256(f"{part.run} {part.name} ".encode() + part.dropped.tobytes()).hexdigest()


def _keep(part: _Part, folder: Path, documents: Artifact) -> bool:
    """One task: the part file as it stays; False where nothing of it does."""
    path, target = documents.path(part.name), folder / KEPT_FILE
    if not len(part.dropped):
        shutil.copyfile(path, target)
        return True
    table = pq.read_table(path)
    training = np.flatnonzero(pc.equal(table["split"], "train").to_numpy())
    keep = np.ones(len(table), bool)
    keep[training[part.dropped]] = False
    if keep.any():
        write_documents(table.filter(pa.array(keep)), target)
    return bool(keep.any())


def _metrics(found: Deduplicated) -> dict[str, float]:
    corpus = found.corpus
    rules = np.bincount(corpus.rule, minlength=len(RULES))
    sizes = corpus.column("bytes")
    metrics = {f"dropped_{name}": float(sum(rules[rule] for rule in those)) for name, those in METRICS.items()}
    return metrics | {
        "documents_in": float(corpus.size),
        "documents_kept": float(rules[KEPT]),
        "bytes_in": float(sizes.sum()),
        "bytes_kept": float(sizes[corpus.rule == KEPT].sum()),
        "pairs_compared": float(found.decided.compared.num_rows),
    }


def _headline(metrics: dict[str, float]) -> str:
    dropped = [f"{metrics[f'dropped_{rule}']:.0f} {how}" for rule, how in TOLD.items() if metrics[f"dropped_{rule}"]]
    return (
        f"{metrics['documents_in']:.0f} training documents: {metrics['documents_kept']:.0f} kept, "
        f"{', '.join(dropped) or 'none'} dropped; {metrics['bytes_kept'] / max(1.0, metrics['bytes_in']):.1%} of the "
        f"text is left; {metrics['pairs_compared']:.0f} pairs compared"
    )
