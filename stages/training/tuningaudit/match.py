"""Looks for what is asked in the rows of a file, and says afterwards which rows to leave out."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
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
from stages.training.tuningaudit.prompts import FOUND, AskedPrompts

NAME = "row {}"
PROMPTS = "prompts.parquet"
FIELD = {"pairs": "finetune.pairs", "turns": "align.data"}


def audit_rows(config: TuningAuditConfig, documents: Artifact, output: Path, context: Context) -> Summary:
    """Write the tables and pages of an audit of the rows against held-out documents, task texts and references, and
    which rows answer prompts of files."""
    asked = _asked(config, documents)
    if not asked:
        raise StageError("there is no held-out document and no task", field="corpus", value="no validation or test")
    rule = config.rule
    texts = [(str(row["doc_id"]), text.encode()) for row, text in asked]
    index = build(texts, rule.ngram, rule.max_books_per_ngram, excluded_hashes(rule), rule.item_words)
    warm_up(index, rule)
    prompts = AskedPrompts.of(config.prompts, rule)
    answered: list[dict[str, Any]] = []
    if prompts.unseen:
        context.warn(
            f"evaluate.retrieval.files: {len(prompts.unseen)} of {len(prompts.unseen) + len(prompts.items)} prompts "
            f"cannot be looked for, they have no {prompts.run} words of their own: {', '.join(prompts.unseen[:3])}"
            + (", ..." if len(prompts.unseen) > 3 else "")
        )
    with tempfile.TemporaryDirectory(prefix="infini-study-tuning-") as folder:
        rows = _answering(_hashed(config, context), prompts, answered)
        found = scan_into(Path(folder), "rows", rows, index, rule)
        audit = observe(index, [row for row, _ in asked], rule, [ShardScan(url=folder, **found)])
        audit.recalls, audit.quotations = plant([], index, rule)
        acted = {_number(each.doc_id) for each in audit.found() if each.action in ("cut", "drop")}
        answering = {row["row"] for row in answered}
        more = {"rows_with_prompts": float(len(answering))} if config.prompts else {}
        totals = totals_of(audit, {"rows_left_out": float(len(acted | answering)), **more})
        (output / "audit.json").write_text(json.dumps(totals, indent=1, sort_keys=True) + "\n")
        published = publish(audit, output)
    metrics = totals["metrics"]
    headline = (
        f"{metrics['rows_left_out']:,.0f} of {found['documents_in']:,} rows hold text of what is asked and are left out"
    )
    shown = {title: name for title, name in published.tables.items() if name != "canaries.parquet"}
    if config.prompts:
        pq.write_table(pa.Table.from_pylist(answered, schema=FOUND), output / PROMPTS)
        shown["Prompts of files"] = PROMPTS
    return Summary(headline, metrics, shown, published.figures)


def left_out(audit: Artifact) -> frozenset[int]:
    """Numbers of the rows, from 1, that the rule would cut or drop, and of those that answer a prompt of a file."""
    table = pq.read_table(audit.path("decisions.parquet"), columns=["doc_id", "action"])
    table = table.filter(pc.is_in(table["action"], value_set=pc.cast(["cut", "drop"], "string")))
    answering = pq.read_table(audit.path(PROMPTS))["row"].to_pylist() if PROMPTS in audit.sizes() else ()
    return frozenset((*map(_number, table["doc_id"].to_pylist()), *answering))


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


def _answering(
    rows: Iterator[HashedText], prompts: AskedPrompts, answered: list[dict[str, Any]]
) -> Iterator[HashedText]:
    """The rows as they come; in ``answered`` afterwards which of them answer which prompt."""
    for row in rows:
        for item, said in prompts.within(row.text.tobytes()):
            answered.append({"row": _number(row.doc_id), "item": item, "words": said})
        yield row


def _number(name: str) -> int:
    """Of a row, by its name."""
    return int(name.rpartition(" ")[2])


def _texts(config: TuningAuditConfig) -> Iterator[tuple[int, str]]:
    """(number from 1, everything a row says) of the rows that are trained on."""
    field = FIELD[config.layout]
    if config.layout == "turns":
        for number, row in enumerate(rows_of(config.path, config.pin, field), 1):
            yield number, "\n\n".join(_strings(row))
        return
    path = summaries.located(config.path, f"{field}.path")
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
