"""Carries the audit out: index, scan, decide, clean, scan again until nothing is found, and write it all down."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stages.corpus.documents import DocumentsWriter, read_documents
from stages.corpus.parallel import spread
from stages.decontaminate import tables
from stages.decontaminate.audit import publish
from stages.decontaminate.canary import Recall, plant
from stages.decontaminate.chain import Scanned, scan
from stages.decontaminate.decide import SEVERITY, Action, Decision, coverage, cut, decide
from stages.decontaminate.index import Index, build
from stages.decontaminate.stage import DecontaminateConfig
from stages.stage import Artifact, Context, StageError, Summary

EVALUATION = ("validation", "test")
GROUP_BYTES = 8 * 2**20  # of text for one task
WORTH_TASKS = 64 * 2**20  # below this many (compressed) bytes one core is done before workers have started
HOSTS = 64  # clean documents that canaries are planted in
ROUNDS = 4  # of cutting; what still holds a span after the third cut is dropped


Actions = dict[str, tuple[tuple[int, int], ...] | None]
"""doc_id -> byte ranges to cut out, None: leave the document out. Documents that are not named stay as they are."""


@dataclass(frozen=True)
class Document:
    """A training document before cleaning, without its text."""

    doc_id: str
    copy_of: str | None  # an earlier document with the very same text
    bytes: int = 0


@dataclass
class Audit:
    """Everything found and done, as the tables and the page need it. Lists run parallel to ``documents``."""

    index: Index
    books: list[dict[str, Any]]
    documents: list[Document]
    scanned: list[Scanned] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    bytes_out: list[int] = field(default_factory=list)
    before: dict[int, float] = field(default_factory=dict)
    after: dict[int, float] = field(default_factory=dict)
    removed_books: set[int] = field(default_factory=set)
    evidence: dict[int, bytes] = field(default_factory=dict)  # texts of documents with spans
    recalls: list[Recall] = field(default_factory=list)
    quotations: Recall = field(default_factory=lambda: Recall("quotation", 0, 0, 0))
    rounds: int = 0


def decontaminate(config: DecontaminateConfig, documents: Artifact, output: Path, context: Context) -> Summary:
    """Write the cleaned documents and the audit (docs/formats.md).

    Raises StageError where cleaning leaves no training or no evaluation document.
    """
    source = documents.path("documents")
    books = list(read_documents(source, EVALUATION))
    index = build([(row["doc_id"], row["text"].encode()) for row in books], config.ngram, config.max_books_per_ngram)
    words = [index.words_in(book) for book in range(len(books))]
    for row in books:
        row["text"] = ""
    audit = Audit(index, books, _training_documents(source))
    audit.scanned = _scan(source, audit, config, context)
    audit.documents = [replace(d, bytes=s.bytes) for d, s in zip(audit.documents, audit.scanned, strict=True)]
    audit.decisions = decide(audit.scanned, [max(1, n) for n in words], config)
    audit.before = audit.after = coverage(audit.decisions, words, acted=True)
    audit.bytes_out = [document.bytes for document in audit.documents]
    audit.evidence, hosts = _texts(source, audit)
    audit.recalls, audit.quotations = plant(hosts, index, config)
    _clean(config, source, output / "documents", audit, context)

    _check_something_left(audit)
    tables.write(audit, output)
    metrics = _metrics(audit)
    totals = {"metrics": metrics, "parameters": config.model_dump(mode="json"), "rounds": audit.rounds}
    totals["quotations"] = vars(audit.quotations)
    totals["evaluation_documents_shared"] = [
        {"a": index.book_ids[a], "b": index.book_ids[b], "split_a": books[a]["split"], "split_b": books[b]["split"],
         "share_of_smaller": round(share, 6)}
        for a, b, share in index.shared
    ]  # fmt: skip
    (output / "audit.json").write_text(json.dumps(totals, indent=1, sort_keys=True) + "\n")
    _warn(audit, config, context)
    published = publish(output, index, config)
    return Summary(_headline(audit, metrics), metrics, published.tables, published.figures)


def _training_documents(source: Path) -> list[Document]:
    """In order of id; of several with the same text the first is the original."""
    first: dict[str, str] = {}
    found = []
    for row in read_documents(source, ("train",), ["doc_id", "sha256"]):
        original = first.setdefault(row["sha256"], row["doc_id"])
        found.append(Document(row["doc_id"], None if original == row["doc_id"] else original))
    return found


def _groups(source: Path) -> Iterator[list[bytes]]:
    """Texts of the training documents in order, some megabytes at a time."""
    group: list[bytes] = []
    size = 0
    for row in read_documents(source, ("train",), ["text"]):
        group.append(row["text"].encode())
        size += len(group[-1])
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _scan_group(texts: list[bytes], index: Index, config: DecontaminateConfig) -> list[Scanned]:
    return [scan(text, index, config.max_gap, config.max_drift, config.min_span_words) for text in texts]


def _scan(source: Path, audit: Audit, config: DecontaminateConfig, context: Context) -> list[Scanned]:
    """All training documents in ``source``, in order."""
    _scan_group([b"one text compiles the kernels once, before workers need them"], audit.index, config)
    size = sum(path.stat().st_size for path in source.glob("*.parquet"))
    found: list[Scanned] = []
    for part in spread(_scan_group, _groups(source), audit.index, config, worth_it=size > WORTH_TASKS):
        found += part
        context.progress(len(found), len(audit.documents), "documents", spans=float(sum(len(s.spans) for s in found)))
    return found


def _texts(source: Path, audit: Audit) -> tuple[dict[int, bytes], list[bytes]]:
    """Texts by number of the documents in which something was found, as evidence, and of some others, as hosts."""
    clean = [i for i, scanned in enumerate(audit.scanned) if not scanned.spans]
    wanted = set(clean[:: max(1, len(clean) // HOSTS)][:HOSTS])
    evidence, hosts = {}, []
    for i, row in enumerate(read_documents(source, ("train",), ["text"])):
        if audit.scanned[i].spans:
            evidence[i] = row["text"].encode()
        elif i in wanted:
            hosts.append(row["text"].encode())
    return evidence, hosts


def _clean(config: DecontaminateConfig, source: Path, target: Path, audit: Audit, context: Context) -> None:
    """Write the documents, scan what was written, and cut again until the scan finds nothing to act on."""
    words = [max(1, audit.index.words_in(book)) for book in range(len(audit.books))]
    if config.action == "report_only":
        _write(source, target, {}, set())
        return
    copies: Actions = {document.doc_id: None for document in audit.documents if document.copy_of is not None}
    if config.remove_from == "evaluation":
        acted = {pair.book for d in audit.decisions for pair in d.pairs if pair.action in ("excise", "drop")}
        audit.removed_books = acted
        audit.after = {book: share for book, share in audit.before.items() if book not in acted}
        sizes = _write(source, target, copies, {audit.books[book]["doc_id"] for book in acted})
        audit.bytes_out = [sizes.get(document.doc_id, 0) for document in audit.documents]
        return
    number = {document.doc_id: i for i, document in enumerate(audit.documents)}
    documents, decisions = audit.documents, audit.decisions
    for audit.rounds in range(1, ROUNDS + 1):
        actions: Actions = dict(copies) if audit.rounds == 1 else {}
        for document, decision in zip(documents, decisions, strict=True):
            if decision.action == "drop" or (decision.action == "excise" and audit.rounds == ROUNDS):
                actions[document.doc_id] = None
            elif decision.action == "excise":
                actions.setdefault(document.doc_id, decision.cuts)
        draft = target.with_name("documents.draft")
        sizes = _write(source, draft, actions, set())
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
        source = target
        audit.bytes_out = [sizes.get(document.doc_id, 0) for document in audit.documents]
        documents = [document for document in documents if document.doc_id in sizes]
        decisions = decide(_scan(source, audit, config, context), words, config)
        audit.after = coverage(decisions, words, acted=True)
        again = [i for i, decision in enumerate(decisions) if decision.action in ("excise", "drop")]
        if not again:
            return
        for i in again:
            context.log(f"{documents[i].doc_id}: {decisions[i].reason} (found again after cut {audit.rounds})")
            last = decisions[i].action == "drop" or audit.rounds + 1 == ROUNDS
            _acted_again(audit, number[documents[i].doc_id], "drop" if last else "excise", decisions[i].reason)


def _acted_again(audit: Audit, at: int, action: Action, reason: str) -> None:
    """A later scan was worse than the first: say so in the first decision."""
    first = audit.decisions[at]
    if SEVERITY[action] > SEVERITY[first.action]:
        because = f"{first.reason}; after cutting: {reason}" if first.reason else reason
        audit.decisions[at] = replace(first, action=action, reason=because)


def _write(source: Path, target: Path, actions: Actions, without: set[str]) -> dict[str, int]:
    """Copy the documents with cuts applied (None: left out); bytes of every training document written."""
    writer = DocumentsWriter(target)
    sizes = {}
    for row in read_documents(source):
        if row["doc_id"] in without:
            continue
        cuts = actions.get(row["doc_id"], ())
        text = row["text"].encode()
        if cuts is None:
            continue
        if cuts:
            text = cut(text, cuts)
            if not text.strip():
                continue
            row = {**row, "text": text.decode(), "sha256": hashlib.sha256(text).hexdigest()}  # noqa: PLW2901
        if row["split"] == "train":
            sizes[row["doc_id"]] = len(text)
        writer.write(row)
    writer.close()
    return sizes


def _check_something_left(audit: Audit) -> None:
    if not sum(audit.bytes_out):
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
    counts = Counter(tables.action(audit, i) for i in range(len(audit.documents)))
    planted = sum(recall.planted for recall in audit.recalls)
    metrics = {f"documents_{name}": float(counts[name]) for name in ("keep", "note", "excise", "drop")}
    metrics |= {
        "documents_in": float(len(audit.documents)),
        "exact_copies": float(sum(document.copy_of is not None for document in audit.documents)),
        "bytes_in": float(sum(document.bytes for document in audit.documents)),
        "bytes_out": float(sum(audit.bytes_out)),
        "evaluation_documents": float(len(audit.books)),
        "evaluation_documents_removed": float(len(audit.removed_books)),
        "coverage_max": max(audit.before.values(), default=0.0),
        "coverage_after_max": max(audit.after.values(), default=0.0),
        "quotations_acted": float(audit.quotations.acted),
    }
    if planted:
        metrics["canary_recall"] = sum(recall.acted for recall in audit.recalls) / planted
    return metrics


def _headline(audit: Audit, metrics: dict[str, float]) -> str:
    left = metrics["bytes_out"] / max(1.0, metrics["bytes_in"])
    text = (
        f"{len(audit.documents)} training documents against {len(audit.books)} evaluation documents: "
        f"{metrics['documents_drop']:.0f} dropped, {metrics['documents_excise']:.0f} cut, "
        f"{metrics['documents_note']:.0f} noted; {left:.1%} of the text is left; "
        f"coverage at most {metrics['coverage_max']:.1%}, after cleaning {metrics['coverage_after_max']:.1%}"
    )
    if "canary_recall" in metrics:
        text += f"; canaries found {metrics['canary_recall']:.0%}"
    return text


def _warn(audit: Audit, config: DecontaminateConfig, context: Context) -> None:
    acted = [i for i, decision in enumerate(audit.decisions) if decision.action in ("excise", "drop")]
    if acted and config.action == "report_only":
        context.warn(f"decontaminate: {len(acted)} training documents hold evaluation text and were left as they are")
    copies = [(a, b) for a, b, share in audit.index.shared if share >= 0.5]
    if copies:
        names = ", ".join(f"{audit.index.book_ids[a]} and {audit.index.book_ids[b]}" for a, b in copies[:3])
        context.warn(f"decontaminate: {len(copies)} pairs of evaluation documents are copies of one another: {names}")
