"""Carries out ``judge``: asks, keeps the raw answers, reads them, and says how far the judge can be trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.evidence.judge.cache import Cache
from stages.evidence.judge.client import Reply, ask_all
from stages.evidence.judge.config import JudgeConfig
from stages.evidence.judge.ledger import Ledger, Usage, estimate, money
from stages.evidence.judge.measure import comparisons, quality, sentence_rows
from stages.evidence.judge.prompts import read_labels, read_winner, sentences_of
from stages.evidence.judge.requests import Name, Request, requests
from stages.evidence.summarize.items import SummaryExample
from stages.evidence.summarize.written import Everything, everything
from stages.stage import Artifact, Context, StageError, Summary

_NAMED = [(name, pa.string()) for name in ("doc_id", "book", "task", "level")]
ANSWERS = pa.schema(
    [
        ("kind", pa.string()),
        *_NAMED,
        ("seed", pa.int64()),
        ("a", pa.string()),
        ("b", pa.string()),
        ("swapped", pa.bool_()),
        ("repeat", pa.int64()),
        ("digest", pa.string()),
        ("prompt", pa.large_string()),
        ("answer", pa.large_string()),
        ("read_as", pa.string()),
        ("problem", pa.string()),
        ("model", pa.string()),
        ("tokens_read", pa.int64()),
        ("tokens_written", pa.int64()),
    ]
)
COMPARISONS = pa.schema(
    [
        ("a", pa.string()),
        ("b", pa.string()),
        ("seed", pa.int64()),
        *_NAMED,
        ("score", pa.float64()),
        ("first", pa.float64()),
        ("second", pa.float64()),
        ("answers", pa.int64()),
    ]
)
SENTENCES = pa.schema(
    [
        ("system", pa.string()),
        ("seed", pa.int64()),
        *_NAMED,
        ("sentences", pa.int64()),
        ("confusing", pa.float64()),
        ("score", pa.float64()),
        ("labels", pa.list_(pa.string())),
    ]
)


def judge(config: JudgeConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
    """answers.parquet: every answer as it came. comparisons.parquet, sentences.parquet: what was read in them."""
    found = everything(inputs)
    asked = requests(config, found)
    ledger, cache = Ledger(config.endpoint), Cache(config.cache)
    total = len({one.digest for one in asked})

    def progress(done: int) -> None:
        context.progress(done, total, "answers", money=ledger.money())

    try:
        if config.endpoint is not None:
            replies = ask_all(asked, config.endpoint, cache, ledger, progress)
        else:
            from stages.evidence.judge import local
            from stages.training.device import torch_device

            assert config.local is not None
            replies = local.ask_all(asked, config.local, str(torch_device(context.execution)), cache, ledger, progress)
    finally:
        context.log(f"cost: {json.dumps(ledger.to_dict())}")
    texts = {(w.system, w.seed, w.name): w.text for w in found.written if w.decoding in ("", config.decoding)}
    rows = [_row(found.items[one.name], texts, one, replies[one.digest]) for one in asked]
    _write(rows, ANSWERS, output / "answers.parquet")
    pairs = comparisons(rows)
    _write(pairs, COMPARISONS, output / "comparisons.parquet")
    labelled = sentence_rows(rows)
    _write(labelled, SENTENCES, output / "sentences.parquet")
    measured = quality(rows, pairs)
    (output / "quality.json").write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
    read, written = (sum(getattr(r.usage, n) for r in replies.values()) for n in ("read", "written"))
    whole = {
        "all_answers": {
            "tokens_read": read,
            "tokens_written": written,
            "money": money(Usage(read, written), config.endpoint),
        }
    }
    (output / "cost.json").write_text(json.dumps({**ledger.to_dict(), **whole}, indent=1, sort_keys=True) + "\n")
    if measured["malformed"]:
        context.warn(f"{measured['malformed']} of {len(rows)} answers could not be read and are counted, not guessed")
    if not pairs:
        first = next((row for row in rows if row["problem"]), {"problem": "nothing was asked", "answer": ""})
        said = " ".join((first["answer"] or "").split())[:80]
        raise StageError(
            f"no comparison has a readable answer in both orders; the first: {first['problem']}: {said!r}",
            field="judge",
            value=config.endpoint.model if config.endpoint else str(config.local and config.local.path),
            fix="choose a model that can follow the format, or raise answer_tokens; its answers are kept",
        )
    return Summary(
        headline=f"{len(pairs)} comparisons, {measured['malformed']} of {len(rows)} answers unreadable",
        metrics={name: float(value) for name, value in measured.items() if isinstance(value, int | float)},
        tables={"comparisons": "comparisons.parquet", "sentences": "sentences.parquet", "answers": "answers.parquet"},
    )


def dry(config: JudgeConfig, found: Everything) -> dict[str, Any]:
    """What the run would ask and cost, with nothing sent: requests, those that are answered already, tokens and money
    at most."""
    asked = {one.digest: one for one in requests(config, found)}
    cache = Cache(config.cache)
    open_ = [one for digest, one in asked.items() if cache.get(digest) is None]
    each = [estimate(one.characters, one.body["max_tokens"]) for one in open_]
    used = Usage(sum(u.read for u in each), sum(u.written for u in each), True)
    return {
        "requests": len(asked),
        "cached": len(asked) - len(open_),
        "to_send": len(open_),
        "tokens_read": used.read,
        "tokens_written_at_most": used.written,
        "money_at_most": money(used, config.endpoint),
    }


def _row(
    item: SummaryExample, texts: Mapping[tuple[str, int, Name], str], one: Request, reply: Reply
) -> dict[str, Any]:
    read: str | None = None
    if reply.text is not None:
        if one.kind == "pair":
            read = read_winner(reply.text)
        else:
            count = len(sentences_of(texts[one.a, one.seed, one.name]))
            labels = read_labels(reply.text, count)
            read = None if labels is None else json.dumps({"sentences": count, "labels": labels})
    problem = reply.reason or (None if read is not None else "unreadable")
    return {
        "kind": one.kind,
        "doc_id": item.doc_id,
        "book": item.book,
        "task": item.task,
        "level": item.level,
        "seed": one.seed,
        "a": one.a,
        "b": one.b,
        "swapped": one.swapped,
        "repeat": one.repeat,
        "digest": one.digest,
        "prompt": one.text,
        "answer": reply.text,
        "read_as": read,
        "problem": problem,
        "model": reply.model,
        "tokens_read": reply.usage.read,
        "tokens_written": reply.usage.written,
    }


def _write(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows), schema), path, compression="zstd")
