"""Carries deduplication out: signatures by part file, candidates, true comparisons, decisions, the documents left."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.data.corpus.documents import document_files, write_documents
from stages.data.dedup import tables
from stages.data.dedup.candidates import Pair
from stages.data.dedup.compare import Compared, compare
from stages.data.dedup.config import DedupConfig
from stages.data.dedup.decide import Decided, Described, decide
from stages.data.dedup.shingles import common, minhash, passage, permutations, shingle
from stages.data.dedup.signatures import Signatures, Texts, joined, sign
from stages.data.parallel import spread
from stages.stage import Artifact, Context, StageError, Summary

WORTH_TASKS = 64 * 2**20  # below this many (compressed) bytes one core is done before workers have started
WORTH_COMPARING = 256  # below this many pairs too
READ_BYTES = 256 * 2**20  # of part files kept while pairs are compared
METRICS = {"exact copy": "exact", "same words": "exact", "edition": "editions", "contained": "contained"}
RULES = {
    "exact": "as equal texts",
    "editions": "as editions",
    "contained": "as parts of others",
    "language": "by language",
    "length": "by length",
}


class Deduplicated(NamedTuple):
    """What deduplication knows of the training documents, and what it decided. Counts and numbers run over parts."""

    parts: list[Path]
    counts: list[int]  # training documents of each part
    described: Described
    signed: Signatures
    decided: Decided
    pairs: int  # compared


def dedup(config: DedupConfig, documents: Artifact, output: Path, context: Context) -> Summary:
    """Write ``documents/``, ``decisions.parquet``, ``fates.parquet``, ``pairs.parquet`` (docs/formats.md).

    Raises StageError where filters leave no training document.
    """
    found = find(config, documents, context.progress)
    ids, decided = found.described.ids, found.decided
    rows = tables.decisions(tables.audited(documents), ids, found.signed, decided)
    _check_something_left(decided, ids)
    _write(found, output / "documents")
    tables.write(rows, ids, decided, output)
    metrics = _metrics(found)
    metrics["corpus_documents"] = float(len(rows))
    metrics["corpus_bytes"] = float(sum(row["bytes_in"] for row in rows))
    return Summary(
        _headline(metrics),
        metrics,
        {"Decisions": "decisions.parquet", "What became of the corpus": "fates.parquet", "Pairs": "pairs.parquet"},
    )


def find(config: DedupConfig, documents: Artifact, progress: Callable[[float, float, str], None]) -> Deduplicated:
    """Everything but writing: ``documents`` needs a folder ``documents/`` only. ``progress``: done, total, unit."""
    parts = document_files(documents.path("documents"))
    names = [_names(part) for part in parts]
    columns = ([value for part in names for value in part[name].to_pylist()] for name in ("doc_id", "sha256", "year"))
    described, counts = Described(*columns), [len(part) for part in names]
    signed = _signed(documents, parts, config, progress)
    texts, sizes = Texts(parts, counts, READ_BYTES), signed.sizes.tolist()
    compared = 0

    def compare_all(pairs: Iterable[Pair]) -> list[Compared]:
        nonlocal compared
        wanted, before = list(pairs), compared

        def report(done: int) -> None:
            progress(before + done, before + len(wanted), "pairs")

        found = list(compare(wanted, texts, sizes, config.ngram, len(wanted) > WORTH_COMPARING, report))
        compared += len(found)
        return found

    decided = decide(signed, described, config, compare_all)
    return Deduplicated(parts, counts, described, signed, decided, compared)


def _names(part: Path) -> pa.Table:
    """All but the texts of the training documents of a part file."""
    table = pq.read_table(part, columns=["doc_id", "year", "split", "sha256"])
    return table.filter(pc.equal(table["split"], "train"))


def _signed(
    documents: Artifact, parts: list[Path], config: DedupConfig, progress: Callable[[float, float, str], None]
) -> Signatures:
    _compile()
    found: list[Signatures] = []
    worth_it = sum(part.stat().st_size for part in parts) > WORTH_TASKS
    paths = [f"documents/{part.name}" for part in parts]
    for signed in spread(sign, paths, documents, config, worth_it=worth_it):
        found.append(signed)
        progress(len(found), len(parts), "parts")
    return joined(found)


def _compile() -> None:
    """Compiles the kernels once, before workers need them."""
    text = np.frombuffer(b"two texts of so many words compile everything", np.uint8)
    grams = shingle(text, 2).grams
    minhash(grams, permutations(1))
    common(grams, grams)
    passage(text, text, grams, 2, 10)


def _check_something_left(decided: Decided, ids: Sequence[str]) -> None:
    if len(decided.removals) == len(ids):
        rules = Counter(removal.rule for removal in decided.removals.values())
        worst = max(("length", "language"), key=lambda rule: rules[rule])
        raise StageError(
            f"no training document is left: {', '.join(f'{n} dropped by {rule}' for rule, n in sorted(rules.items()))}",
            field=f"dedup.{worst}",
            fix="loosen it",
        )


def _write(found: Deduplicated, folder: Path) -> None:
    """The part files without the dropped documents; one that loses none is copied as it is, an empty one left out."""
    folder.mkdir()
    start = 0
    for part, count in zip(found.parts, found.counts, strict=True):
        dropped = [i - start for i in range(start, start + count) if i in found.decided.removals]
        start += count
        if not dropped:
            shutil.copyfile(part, folder / part.name)
            continue
        table = pq.read_table(part)
        training = np.flatnonzero(pc.equal(table["split"], "train").to_numpy())
        keep = np.ones(len(table), bool)
        keep[training[dropped]] = False
        if keep.any():
            write_documents(table.filter(pa.array(keep)), folder / part.name)


def _metrics(found: Deduplicated) -> dict[str, float]:
    signed, decided = found.signed, found.decided
    rules = Counter(METRICS.get(removal.rule, removal.rule) for removal in decided.removals.values())
    dropped = list(decided.removals)
    metrics = {
        f"dropped_{rule}": float(rules[rule]) for rule in ("exact", "editions", "contained", "language", "length")
    }
    return metrics | {
        "documents_in": float(len(signed.words)),
        "documents_kept": float(len(signed.words) - len(dropped)),
        "bytes_in": float(signed.sizes.sum()),
        "bytes_kept": float(signed.sizes.sum() - signed.sizes[dropped].sum()),
        "pairs_compared": float(found.pairs),
    }


def _headline(metrics: dict[str, float]) -> str:
    dropped = [f"{metrics[f'dropped_{rule}']:.0f} {how}" for rule, how in RULES.items() if metrics[f"dropped_{rule}"]]
    return (
        f"{metrics['documents_in']:.0f} training documents: {metrics['documents_kept']:.0f} kept, "
        f"{', '.join(dropped) or 'none'} dropped; {metrics['bytes_kept'] / max(1.0, metrics['bytes_in']):.1%} of the "
        f"text is left; {metrics['pairs_compared']:.0f} pairs compared"
    )
