"""Looks for what is asked in the rows of a file, and says afterwards which rows to leave out."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.data import summaries
from stages.data.audit.audit import observe, publish, totals_of
from stages.data.decontaminate.canary import plant
from stages.data.decontaminate.exclude import excluded_hashes
from stages.data.decontaminate.run import evaluation_documents
from stages.data.matching.index import build
from stages.data.matching.shards import HashedText, ShardScan, documents_shards, scan_into, warm_up
from stages.data.pinned import unchanged
from stages.data.taskaudit.file import items
from stages.data.taskaudit.match import texts_of_items
from stages.stage import Artifact, Context, StageError, Summary
from stages.training.tuning.data import rows_of
from stages.training.tuningaudit.config import TuningAuditConfig

NAME = "row {}"
FIELD = {"pairs": "finetune.pairs", "turns": "align.data"}


def audit_rows(config: TuningAuditConfig, documents: Artifact, output: Path, context: Context) -> Summary:
    """Write the tables and pages of an audit of the rows against held-out documents, task texts and references."""
    asked = _asked(config, documents)
    if not asked:
        raise StageError("there is no held-out document and no task", field="corpus", value="no validation or test")
    rule = config.rule
    texts = [(str(row["doc_id"]), text.encode()) for row, text in asked]
    index = build(texts, rule.ngram, rule.max_books_per_ngram, excluded_hashes(rule), rule.item_words)
    warm_up(index, rule)
    with tempfile.TemporaryDirectory(prefix="infini-study-tuning-") as folder:
        found = scan_into(Path(folder), "rows", _hashed(config, context), index, rule)
        audit = observe(index, [row for row, _ in asked], rule, [ShardScan(url=folder, **found)])
        audit.recalls, audit.quotations = plant([], index, rule)
        totals = totals_of(audit, {"rows_left_out": float(sum(audit.counts()[name] for name in ("cut", "drop")))})
        (output / "audit.json").write_text(json.dumps(totals, indent=1, sort_keys=True) + "\n")
        published = publish(audit, output)
    metrics = totals["metrics"]
    headline = (
        f"{metrics['rows_left_out']:,.0f} of {found['documents_in']:,} rows hold text of what is asked and are left out"
    )
    shown = {title: name for title, name in published.tables.items() if name != "canaries.parquet"}
    return Summary(headline, metrics, shown, published.figures)


def left_out(audit: Artifact) -> frozenset[int]:
    """Numbers of the rows, from 1, that the rule would cut or drop."""
    table = pq.read_table(audit.path("decisions.parquet"), columns=["doc_id", "action"])
    table = table.filter(pc.is_in(table["action"], value_set=pc.cast(["cut", "drop"], "string")))
    return frozenset(int(name.rpartition(" ")[2]) for name in table["doc_id"].to_pylist())


def _asked(config: TuningAuditConfig, documents: Artifact) -> list[tuple[dict[str, Any], str]]:
    """(doc_id, title, split; text) of the held-out documents, of the tasks' texts and of their references."""
    found = []
    for shard in documents_shards(documents):
        for row in evaluation_documents(shard)[0]:
            found.append(({name: row.get(name) for name in ("doc_id", "title", "split")}, row["text"]))
    of_tasks = [item for source in config.tasks for item in items(source)]
    for name, title, text in texts_of_items(of_tasks):
        found.append(({"doc_id": name, "title": title, "split": None}, text))
    return found


def _hashed(config: TuningAuditConfig, context: Context) -> Iterator[HashedText]:
    for number, text in _texts(config):
        data = text.encode()
        yield HashedText(NAME.format(number), hashlib.sha256(data).hexdigest(), np.frombuffer(data, np.uint8))
        if number % 1000 == 0:
            context.log(f"{number:,} rows read")


def _texts(config: TuningAuditConfig) -> Iterator[tuple[int, str]]:
    """(number from 1, everything a row says) of the rows that are trained on."""
    field = FIELD[config.layout]
    if config.layout == "turns":
        for number, row in enumerate(rows_of(config.path, config.pin, field), 1):
            yield number, "\n\n".join(_strings(row))
        return
    path = Path(config.path)
    unchanged(summaries.digest(path, config.root, field), config.pin, field=f"{field}.pin")
    for number, _, pair_row in summaries.rows(path, field):
        if (summaries.split_of(pair_row) or "train") in (config.splits or ()):
            pair = summaries.pair_of(number, pair_row, config.root, field)
            yield number, f"{pair.text}\n\n{pair.summary}"


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
