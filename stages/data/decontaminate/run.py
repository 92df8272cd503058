"""Carries the audit out: index, scan, decide, clean, scan again until nothing is found, and write it all down.

Work is by shard, one Parquet file of the documents: each is scanned and cleaned by a task of its own whose result
outlives a crash, and memory holds the index, one shard per core, and a few numbers per document.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.data.audit.audit import publish
from stages.data.audit.findings import Audit, shard_states
from stages.data.decontaminate.balance import Balanced, balance, compare
from stages.data.decontaminate.canary import HOST_BYTES, plant
from stages.data.decontaminate.clean import CleanedShard, ShardToClean, Terms, clean_shards, copy_shards
from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.decide import Coverage, Decision, Left, decide_document, without_notes
from stages.data.decontaminate.exclude import excluded_hashes
from stages.data.matching import shards as scanning
from stages.data.matching.index import Index, build
from stages.data.matching.shards import DocumentsShard, ShardScan, documents_shards, scan_shards
from stages.data.parallel import spread
from stages.data.saved import spill
from stages.stage import Artifact, Context, StageError, Summary

EVALUATION = ("validation", "test")
HOSTS = 64  # clean documents that canaries are planted in
ROUNDS = 4  # of cutting; what still holds a span after the third cut is dropped


def decontaminate(config: DecontaminateConfig, documents: Artifact, output: Path, context: Context) -> Summary:
    """Write the cleaned documents and the audit (docs/formats.md).

    Raises StageError where there is no evaluation document, and where cleaning leaves no training or no evaluation
    document.
    """
    source = documents_shards(documents)
    index, books, training = _evaluation(config, source)
    progress = _Progress(context, training)
    scans = scan_shards(source, index, config, context.work_url, progress.scanned)
    audit = Audit(index, books, config, *shard_states(scans))
    audit.judge()
    audit.after = audit.before
    audit.recalls, audit.quotations = plant(_hosts(source, audit), index, config)
    cleaned = _clean(source, audit, context)
    for shard in cleaned:
        shard.place(output / "documents" / f"{shard.name}.parquet")

    _check_something_left(audit)
    metrics = _metrics(audit)
    _write_totals(audit, metrics, output / "audit.json")

    def check(decisions: Path) -> Balanced:
        with spill(context.work_url) as folder:
            sides = list(zip(source, cleaned, strict=True))
            return balance(compare(sides, context.work_url, folder, _worth_tasks(source)), decisions, folder)

    published = publish(audit, output, check)
    _warn(audit, context)
    return Summary(_headline(audit, metrics), metrics, published.tables, published.figures)


def _evaluation(config: DecontaminateConfig, source: list[DocumentsShard]) -> tuple[Index, list[dict[str, Any]], int]:
    """(index of the evaluation documents, their rows without the texts, how many training documents there are)."""
    books, texts, training = [], [], 0
    for rows, others in spread(evaluation_documents, source, worth_it=_worth_tasks(source)):
        training += others
        for row in rows:
            texts.append((row["doc_id"], row.pop("text").encode()))
            books.append(row)
    if not books:
        raise StageError(
            "there is no evaluation document to compare the training documents with",
            field="corpus",
            value="no document in validation or test",
            fix="give a source documents in one of these splits",
        )
    excluded = excluded_hashes(config)
    return build(texts, config.ngram, config.max_books_per_ngram, excluded, config.item_words), books, training


def _worth_tasks(source: list[DocumentsShard]) -> bool:
    return len(source) > 1 and sum(shard.size for shard in source) > scanning.WORTH_TASKS


def evaluation_documents(shard: DocumentsShard) -> tuple[list[dict[str, Any]], int]:
    """(Rows of the evaluation documents of a shard, number of the others)."""
    rows: list[dict[str, Any]] = []
    with pq.ParquetFile(shard.local()) as file:
        splits = file.read(columns=["split"])["split"]
        # training text, perhaps one document of a gigabyte, is not read here
        if pc.any(pc.is_in(splits, pa.array(EVALUATION))).as_py():
            for batch in file.iter_batches(16):
                rows += batch.filter(pc.is_in(batch["split"], pa.array(EVALUATION))).to_pylist()
    return rows, len(splits) - len(rows)


class _Progress:
    """Documents scanned, over all passes."""

    def __init__(self, context: Context, total: int) -> None:
        self._context, self._total, self._done, self._spans = context, total, 0, 0

    def scanned(self, scan: ShardScan) -> None:
        self._done += scan.documents_in
        self._spans += scan.spans
        self._context.progress(self._done, self._total, "documents", spans=float(self._spans))

    def another_pass(self, documents: int) -> None:
        self._total += documents


def _hosts(source: list[DocumentsShard], audit: Audit) -> list[bytes]:
    """Stretches of clean documents, evenly from the whole corpus."""
    clean = [state.scan.documents_in - state.scan.documents_with_spans for state in audit.shards]
    ends = np.cumsum(clean)
    total = int(ends[-1]) if len(ends) else 0
    wanted = np.arange(0, total, max(1, total // HOSTS))[:HOSTS]
    hosts = []
    for at, (shard, state) in enumerate(zip(source, audit.shards, strict=True)):
        numbers = wanted[(wanted >= ends[at] - clean[at]) & (wanted < ends[at])] - (ends[at] - clean[at])
        if not len(numbers):
            continue
        free = np.setdiff1d(np.arange(state.scan.documents_in), [document.row for document in state.found])
        rows = set(free[numbers].tolist())
        texts = (text.text for row, text in enumerate(shard.texts()) if row in rows)
        hosts += [bytes(text[: 50 * HOST_BYTES]).decode(errors="ignore").encode() for text in texts]
    return hosts


def _clean(source: list[DocumentsShard], audit: Audit, context: Context) -> list[CleanedShard]:
    """Write the documents, scan what was written, and cut again until the scan finds nothing to act on."""
    if audit.rule.action == "report_only":
        return copy_shards(source, context.work_url, _worth_tasks(source))
    terms = Terms(over=audit.over)
    if audit.rule.remove_from == "evaluation":
        acted = (pair for d in audit.found() for pair in d.decision.pairs if pair.action in ("cut", "drop"))
        audit.removed_books = {pair.book for pair in acted}
        terms = Terms(only_copies=True, removed=frozenset(audit.index.book_ids[b] for b in audit.removed_books))
    progress = _Progress(context, sum(state.scan.documents_in for state in audit.shards))
    files: list[Any] = list(source)
    scans = [state.scan for state in audit.shards]
    dirty = list(range(len(source)))
    for audit.rounds in range(1, ROUNDS + 1):
        first = audit.rounds == 1
        copies = [tuple(state.copies.tolist()) if first else () for state in audit.shards]
        jobs = [ShardToClean(files[i], scans[i], copies[i]) for i in dirty]
        done = clean_shards(
            jobs, audit.index, audit.rule, terms, context.work_url, _worth_tasks(source), progress.scanned
        )
        for i, (cleaned, scan) in zip(dirty, done, strict=True):
            _resized(audit.shards[i].sizes, cleaned)
            files[i], scans[i] = cleaned, scan
        if terms.only_copies:
            audit.after = {book: share for book, share in audit.before.items() if book not in audit.removed_books}
            break
        dirty, terms = _found_again(audit, scans, context)
        if not dirty:
            break
        progress.another_pass(sum(scans[i].documents_in for i in dirty))
    return files


def _resized(sizes: np.ndarray[Any, Any], cleaned: CleanedShard) -> None:
    """Enter what one cleaning changed; its rows count the documents that were still there."""
    there = np.flatnonzero(sizes >= 0)
    new = np.array(cleaned.sizes, np.int64)
    sizes[there[np.array(cleaned.rows, np.int64)]] = np.where(new > 0, new, -1)


def _found_again(audit: Audit, scans: list[ShardScan], context: Context) -> tuple[list[int], Terms]:
    """(shards in which a scan of the output found what must be acted on, how); sets what the audit knows of it."""
    words = audit.index.book_words
    everything, left = Coverage(), Left()
    decisions: list[tuple[int, str, Decision]] = []
    for i, scan in enumerate(scans):
        for document in scan.found():
            decision = decide_document(document.scanned, words, audit.rule)
            everything.add_all(decision)
            left.add(decision)
            decisions.append((i, document.doc_id, decision))
    audit.after = everything.shares(words)
    terms = Terms(over=left.above(audit.rule.coverage_limit, words), drop_all=audit.rounds + 1 >= ROUNDS)
    dirty, to_act_on = set(), 0
    for i, doc_id, decision in decisions:
        now = without_notes(decision, terms.over)
        if now.action in ("cut", "drop"):
            context.log(f"{doc_id}: {now.reason} (found again after cut {audit.rounds})")
            audit.again[doc_id] = ("drop" if terms.drop_all else now.action, now.reason)
            dirty.add(i)
            to_act_on += 1
    audit.rescan = {
        "documents": sum(scan.documents_in for scan in scans),
        "bytes": sum(scan.bytes for scan in scans),
        "spans": sum(scan.spans for scan in scans),
        "documents_to_act_on": to_act_on,
        "coverage_max": max(audit.after.values(), default=0.0),
    }
    return sorted(dirty), terms


def _check_something_left(audit: Audit) -> None:
    if not any((state.sizes > 0).any() for state in audit.shards):
        raise StageError(
            "every training document shares text with an evaluation document: nothing is left to train on",
            field="decontaminate.action",
            value="clean",
            allowed="clean, report_only",
            fix="see that the splits do not hold the same documents",
        )
    if len(audit.removed_books) == len(audit.books):
        raise StageError(
            "every evaluation document shares text with a training document: nothing is left to evaluate on",
            field="decontaminate.remove_from",
            value="evaluation",
            allowed="train, evaluation",
            fix="remove_from: train",
        )


def _metrics(audit: Audit) -> dict[str, float]:
    assert audit.after is not None
    counts = audit.counts()
    planted = sum(recall.planted for recall in audit.recalls)
    metrics = {f"documents_{name}": float(counts[name]) for name in ("keep", "note", "cut", "drop")}
    metrics |= {name: float(counts[name]) for name in ("documents_in", "exact_copies", "bytes_in", "bytes_out")}
    metrics |= {
        "evaluation_documents": float(len(audit.books)),
        "evaluation_documents_hidden": float(len(audit.hidden)),
        "evaluation_documents_removed": float(len(audit.removed_books)),
        "coverage_max": max(audit.before.values(), default=0.0),
        "coverage_after_max": max(audit.after.values(), default=0.0),
        "quotations_acted": float(audit.quotations.acted),
        "index_bytes": float(audit.index.nbytes),
        "excluded_ngrams": float(audit.index.excluded.sum()),
    }
    if planted:
        metrics["canary_recall"] = sum(recall.acted for recall in audit.recalls) / planted
    return metrics


def _write_totals(audit: Audit, metrics: dict[str, float], path: Path) -> None:
    index = audit.index
    totals = {"metrics": metrics, "parameters": audit.rule.model_dump(mode="json"), "rounds": audit.rounds}
    if audit.rescan is not None:
        totals["rescan"] = audit.rescan
    totals["quotations"] = vars(audit.quotations)
    totals["cannot_be_found"] = audit.cannot_be_found()
    totals["excluded_ngrams"] = {
        name: int(count) for name, count in zip(index.book_ids, index.excluded, strict=True) if count
    }
    totals["evaluation_documents_shared"] = [
        {
            "a": index.book_ids[a],
            "b": index.book_ids[b],
            "split_a": audit.books[a]["split"],
            "split_b": audit.books[b]["split"],
            "share_of_smaller": round(share, 6),
        }
        for a, b, share in index.shared
    ]
    path.write_text(json.dumps(totals, indent=1, sort_keys=True) + "\n")


def _headline(audit: Audit, metrics: dict[str, float]) -> str:
    left = metrics["bytes_out"] / max(1.0, metrics["bytes_in"])
    text = (
        f"{metrics['documents_in']:.0f} training documents against {len(audit.books)} evaluation documents: "
        f"{metrics['documents_drop']:.0f} dropped, {metrics['documents_cut']:.0f} cut, "
        f"{metrics['documents_note']:.0f} noted; {left:.1%} of the text is left; "
        f"coverage at most {metrics['coverage_max']:.1%}, after cleaning {metrics['coverage_after_max']:.1%}"
    )
    if audit.hidden:
        text += f"; {len(audit.hidden)} evaluation documents cannot be found"
    if "canary_recall" in metrics:
        text += f"; canaries found {metrics['canary_recall']:.0%}"
    return text


def _warn(audit: Audit, context: Context) -> None:
    if audit.rule.action == "report_only":
        acted = sum(document.decision.action in ("cut", "drop") for document in audit.found())
        if acted:
            context.warn(f"decontaminate: {acted} training documents hold evaluation text and were left as they are")
    if audit.hidden:
        names = ", ".join(f"{row['book_id']} ({row['reason']})" for row in audit.cannot_be_found()[:3])
        context.warn(
            f"decontaminate: {len(audit.hidden)} evaluation document(s) cannot be found, whatever the training text "
            f"holds: {names}{', ...' if len(audit.hidden) > 3 else ''}"
        )
    copies = [(a, b) for a, b, share in audit.index.shared if share >= 0.5]
    if copies:
        names = ", ".join(f"{audit.index.book_ids[a]} and {audit.index.book_ids[b]}" for a, b in copies[:3])
        context.warn(f"decontaminate: {len(copies)} pairs of evaluation documents are copies of one another: {names}")
