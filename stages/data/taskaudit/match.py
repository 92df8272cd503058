"""Looks for the sources and references of tasks in the training documents, by id and by text."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.data.audit.audit import observe, publish, totals_of
from stages.data.audit.findings import Audit
from stages.data.corpus.documents import write_table
from stages.data.corpus.files import without_suffix
from stages.data.decontaminate.canary import plant
from stages.data.decontaminate.exclude import excluded_hashes
from stages.data.matching.index import build
from stages.data.matching.shards import ShardScan, documents_shards, scan_shards
from stages.data.taskaudit.config import TaskAuditConfig
from stages.data.taskaudit.file import TaskItem, items
from stages.stage import Artifact, Context, StageError, Summary

HALF = 0.5  # of a text's words in training documents: found, even where no span is long enough to act on

TASKS = pa.schema(
    [
        ("task", pa.string()),
        ("item", pa.int64()),
        ("id", pa.string()),
        ("title", pa.string()),
        ("found", pa.string()),
        ("id_document", pa.string()),
        ("text_document", pa.string()),
        ("text_coverage", pa.float64()),
        ("summary_document", pa.string()),
        ("summary_coverage", pa.float64()),
    ]
)
WAYS = ("id", "text", "summary")


def audit_tasks(config: TaskAuditConfig, documents: Artifact, output: Path, context: Context) -> Summary:
    """Write tasks.parquet and, where a task has texts, the audit of these texts (docs/formats.md)."""
    found = [item for source in config.sources for item in items(source)]
    if not found:
        raise StageError("the tasks have no item", field="task_audit.sources", value=[s.name for s in config.sources])
    audit = _audit(found, config, documents, context)
    by_text = {} if audit is None else _by_text(found, audit)
    by_id = _by_id({item.id for item in found if item.id}, documents)
    rows = [_row(item, by_id, by_text) for item in found]
    rows.sort(key=lambda row: (-len(_ways(row)), row["task"], row["item"]))
    write_table(pa.Table.from_pylist(rows, schema=TASKS), output / "tasks.parquet")
    metrics = {"items": float(len(rows)), "in_training": float(sum(bool(_ways(row)) for row in rows))}
    metrics |= {f"by_{way}": float(sum(way in _ways(row) for row in rows)) for way in WAYS}
    shown = {"Tasks": "tasks.parquet"}
    figures: list[str] = []
    if audit is not None:
        (output / "audit.json").write_text(json.dumps(totals_of(audit, {}), indent=1, sort_keys=True) + "\n")
        published = publish(audit, output)
        shown |= {title: name for title, name in published.tables.items() if name != "canaries.parquet"}
        figures = published.figures
    return Summary(_headline(rows, config), metrics, shown, figures)


def _ways(row: dict[str, Any]) -> list[str]:
    return [way for way in WAYS if row[f"{way}_document"] is not None]


def _headline(rows: Sequence[dict[str, Any]], config: TaskAuditConfig) -> str:
    parts = []
    for source in config.sources:
        own = [_ways(row) for row in rows if row["task"] == source.name]
        looked = [way for way in WAYS if getattr(source, way) is not None]
        found = ", ".join(f"{sum(way in ways for ways in own)} by {way}" for way in looked)
        parts.append(f"{source.name}: {sum(map(bool, own))} of {len(own)} items in the training text ({found})")
    return "; ".join(parts)


def texts_of_items(found: Sequence[TaskItem]) -> list[tuple[str, str, str]]:
    """(name, title, text) of everything to look for; a text that stands in several items stands here once."""
    seen: set[str] = set()
    texts = []
    for item in found:
        for role, text in (("text", item.text), ("summary", item.summary)):
            if text.strip() and text not in seen:
                seen.add(text)
                texts.append((f"{item.task}/{item.number}/{role}", f"{item.title or item.id} ({role})", text))
    return texts


def _audit(found: Sequence[TaskItem], config: TaskAuditConfig, documents: Artifact, context: Context) -> Audit | None:
    """The audit of the texts of all items; None where there is no text."""
    texts = texts_of_items(found)
    if not texts:
        return None
    rule = config.rule
    encoded = [(name, text.encode()) for name, _, text in texts]
    index = build(encoded, rule.ngram, rule.max_books_per_ngram, excluded_hashes(rule), rule.item_words)
    shards = documents_shards(documents)
    done = 0

    def progress(scan: ShardScan) -> None:
        nonlocal done
        done += 1
        context.progress(done, len(shards), "shards")

    scans = scan_shards(shards, index, rule, context.work_url, progress)
    books = [{"doc_id": name, "title": title, "split": None} for name, title, _ in texts]
    audit = observe(index, books, rule, scans)
    if audit.hidden:
        names = ", ".join(f"{row['book_id']} ({row['reason']})" for row in audit.cannot_be_found()[:3])
        more = ", ..." if len(audit.hidden) > 3 else ""
        context.warn(f"{len(audit.hidden)} text(s) cannot be found, whatever the training text holds: {names}{more}")
    audit.recalls, audit.quotations = plant([], index, rule)
    return audit


def _by_text(found: Sequence[TaskItem], audit: Audit) -> dict[str, tuple[float, str | None]]:
    """Text -> (share of its words in training documents, the one that holds most of it or None: not found).

    Found is a text on which the rule would act, or half of which stands in training documents.
    """
    most: dict[int, tuple[int, str]] = defaultdict(lambda: (0, ""))
    for document in audit.found():
        for pair in document.decision.pairs:
            acted = pair.action in ("cut", "drop") or audit.before[pair.book] >= HALF
            if acted and pair.matched > most[pair.book][0]:
                most[pair.book] = (pair.matched, document.doc_id)
    return {
        text: (audit.before.get(book, 0.0), most[book][1] if book in most else None)
        for book, (_, _, text) in enumerate(texts_of_items(found))
    }


def _by_id(wanted: set[str], documents: Artifact) -> dict[str, str]:
    """Id -> the training document of that id, whatever source it came from; one that was told apart from others of its
    id (``11#2``), and a text file (``11.txt``), by what stands before."""
    found: dict[str, str] = {}
    for name in _training_ids(documents):
        whole, last = name.partition("/")[2], name.rpartition("/")[2]
        for candidate in (whole, last, last.partition("#")[0], without_suffix(last)):
            if candidate in wanted:
                found.setdefault(candidate, name)
    return found


def _training_ids(documents: Artifact) -> Iterator[str]:
    for shard in documents_shards(documents):
        table = pq.read_table(shard.local(), columns=["doc_id", "split"])
        yield from table.filter(pc.equal(table["split"], "train"))["doc_id"].to_pylist()


def _row(item: TaskItem, by_id: dict[str, str], by_text: dict[str, tuple[float, str | None]]) -> dict[str, Any]:
    text, summary = by_text.get(item.text), by_text.get(item.summary)
    row = {
        "task": item.task,
        "item": item.number,
        "id": item.id or None,
        "title": item.title or None,
        "id_document": by_id.get(item.id),
        "text_document": text and text[1],
        "text_coverage": text and text[0],
        "summary_document": summary and summary[1],
        "summary_coverage": summary and summary[0],
    }
    return {**row, "found": " and ".join(_ways(row)) or "no"}
