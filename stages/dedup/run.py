"""Carries deduplication out: signatures by part file, candidates, true comparisons, decisions, the documents left."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.corpus.documents import write_table
from stages.corpus.parallel import spread
from stages.dedup import tables
from stages.dedup.candidates import Pair
from stages.dedup.compare import Compared, compare
from stages.dedup.decide import Decided, decide
from stages.dedup.shingles import common, minhash, passage, permutations, shingle
from stages.dedup.signatures import Signatures, Texts, joined, sign
from stages.dedup.stage import DedupConfig
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


def dedup(config: DedupConfig, documents: Artifact, output: Path, context: Context) -> Summary:
    """Write ``documents/``, ``decisions.parquet``, ``fates.parquet``, ``pairs.parquet`` (docs/formats.md).

    Raises StageError where filters leave no training document.
    """
    source = documents.path("documents")
    parts = sorted(source.glob("*.parquet"))
    names = [_names(part) for part in parts]
    ids = [name for part in names for name in part["doc_id"].to_pylist()]
    size = sum(part.stat().st_size for part in parts)
    signed = _signed(parts, config, size > WORTH_TASKS, context)
    texts = Texts(parts, [len(part) for part in names], READ_BYTES)
    sizes = signed.sizes.tolist()
    compared = 0

    def compared_so_far(pairs: Iterable[Pair]) -> list[Compared]:
        nonlocal compared
        wanted, before = list(pairs), compared

        def report(done: int) -> None:
            context.progress(before + done, before + len(wanted), "pairs")

        found = list(compare(wanted, texts, sizes, config.ngram, len(wanted) > WORTH_COMPARING, report))
        compared += len(found)
        return found

    digests = [digest for part in names for digest in part["sha256"].to_pylist()]
    years = [year for part in names for year in part["year"].to_pylist()]
    decided = decide(signed, digests, years, config, compared_so_far)
    rows = tables.decisions(tables.audited(documents), ids, signed, decided)
    _check_something_left(decided, ids)
    _write(parts, [len(part) for part in names], decided, output / "documents")
    tables.write(rows, ids, decided, output)
    metrics = _metrics(signed, decided, compared)
    metrics["corpus_documents"] = float(len(rows))
    metrics["corpus_bytes"] = float(sum(row["bytes_in"] for row in rows))
    return Summary(
        _headline(metrics),
        metrics,
        {"Decisions": "decisions.parquet", "What became of the corpus": "fates.parquet", "Pairs": "pairs.parquet"},
    )


def _names(part: Path) -> pa.Table:
    """All but the texts of the training documents of a part file."""
    table = pq.read_table(part, columns=["doc_id", "year", "split", "sha256"])
    return table.filter(pc.equal(table["split"], "train"))


def _signed(parts: list[Path], config: DedupConfig, worth_it: bool, context: Context) -> Signatures:
    _compile()
    found: list[Signatures] = []
    contents: Iterator[bytes] = (part.read_bytes() for part in parts)  # tasks of other machines cannot see the files
    for signed in spread(sign, contents, config, worth_it=worth_it):
        found.append(signed)
        context.progress(len(found), len(parts), "parts", documents=float(sum(len(each.words) for each in found)))
    return joined(found)


def _compile() -> None:
    """Compiles the kernels once, before workers need them."""
    text = b"two texts of so many words compile everything"
    grams = shingle(text, 2).grams
    minhash(grams, permutations(1))
    common(grams, grams)
    passage(text, text, grams, 2, 10)


def _check_something_left(decided: Decided, ids: list[str]) -> None:
    if len(decided.verdicts) == len(ids):
        rules = Counter(verdict.rule for verdict in decided.verdicts.values())
        worst = max(("length", "language"), key=lambda rule: rules[rule])
        raise StageError(
            f"no training document is left: {', '.join(f'{n} dropped by {rule}' for rule, n in sorted(rules.items()))}",
            field=f"dedup.{worst}",
            fix="loosen it",
        )


def _write(parts: list[Path], counts: list[int], decided: Decided, folder: Path) -> None:
    """The part files without the dropped documents; one that loses none is copied as it is, an empty one left out."""
    folder.mkdir()
    start = 0
    for part, count in zip(parts, counts, strict=True):
        dropped = [i - start for i in range(start, start + count) if i in decided.verdicts]
        start += count
        if not dropped:
            shutil.copyfile(part, folder / part.name)
            continue
        table = pq.read_table(part)
        training = np.flatnonzero(pc.equal(table["split"], "train").to_numpy())
        keep = np.ones(len(table), bool)
        keep[training[dropped]] = False
        if keep.any():
            write_table(table.filter(pa.array(keep)), folder / part.name)


def _metrics(signed: Signatures, decided: Decided, compared: int) -> dict[str, float]:
    rules = Counter(METRICS.get(verdict.rule, verdict.rule) for verdict in decided.verdicts.values())
    dropped = list(decided.verdicts)
    metrics = {
        f"dropped_{rule}": float(rules[rule]) for rule in ("exact", "editions", "contained", "language", "length")
    }
    return metrics | {
        "documents_in": float(len(signed.words)),
        "documents_kept": float(len(signed.words) - len(dropped)),
        "bytes_in": float(signed.sizes.sum()),
        "bytes_kept": float(signed.sizes.sum() - signed.sizes[dropped].sum()),
        "pairs_compared": float(compared),
    }


def _headline(metrics: dict[str, float]) -> str:
    dropped = [f"{metrics[f'dropped_{rule}']:.0f} {how}" for rule, how in RULES.items() if metrics[f"dropped_{rule}"]]
    return (
        f"{metrics['documents_in']:.0f} training documents: {metrics['documents_kept']:.0f} kept, "
        f"{', '.join(dropped) or 'none'} dropped; {metrics['bytes_kept'] / max(1.0, metrics['bytes_in']):.1%} of the "
        f"text is left; {metrics['pairs_compared']:.0f} pairs compared"
    )
