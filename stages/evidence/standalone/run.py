"""Carries out the evaluation of one checkpoint: checks, prompts, text, tables, and what there is to say of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.llama import read_config
from stages.data.tasks.haystack import recorded
from stages.data.tasks.needles import BINDINGS, PASSKEY
from stages.data.tasks.prompts import Item
from stages.evidence.evaluate import retrieval, tables
from stages.evidence.evaluate.forward import PASS_TOKENS
from stages.evidence.evaluate.perplexity import ScoredDocument, totals
from stages.evidence.standalone.cache import TEXT, Answers
from stages.evidence.standalone.config import CheckpointSource, Questions
from stages.evidence.standalone.opened import device_of, dtype_of, open_reader, weights_digest
from stages.evidence.standalone.prompts import Prompts
from stages.evidence.standalone.readers import Reader, context
from stages.evidence.standalone.texts import Texts, python_manual
from stages.evidence.standalone.tokenizer import CheckpointTokenizer, read_tokenizer
from stages.stage import StageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

CODE_VERSION = 1
"""Raised whenever the same checkpoint and questions would give other rows."""
RECORD = "evaluation.json"


@dataclass(frozen=True)
class Evaluated:
    """``facts``: what was asked of what, as evaluation.json has it; tables are in ``folder``."""

    folder: Path
    facts: dict[str, Any]
    reader: Reader
    resumed: int


Tell = Callable[[float, float, str], None]
"""Called with tokens done, tokens in all and their unit."""


def evaluate(
    source: CheckpointSource,
    questions: Questions,
    texts: Texts,
    out: Path,
    progress: Tell = lambda *_: None,
    *,
    tokenizer: CheckpointTokenizer | None = None,
    haystack: tuple[str, NDArray[np.int32]] | None = None,
) -> Evaluated:
    """Ask, score and write the tables to ``out``; what an earlier call answered there is not asked again.

    ``texts``: scored, and needles are hidden in them; none: needles lie in Python's manual, and no text is scored.
    ``tokenizer``, ``haystack`` (key, [tokens]): of the study that trained the model. Raises StageError before any work
    for all that the checkpoint, its tokenizer and its length cannot do.
    """
    device = device_of(source)
    if tokenizer is None:
        tokenizer = _tokenizer(source, _fields(source))
    documents = _documents(texts, tokenizer, questions)
    if haystack is None:
        hidden_in = texts or python_manual()
        tokens = np.concatenate([np.array(tokenizer.encode(text), np.int32) for _, text in hidden_in])
        known, origin = _digest(tokens.tobytes()), f"{len(texts)} files" if texts else "Python's manual"
    else:
        (known, tokens), origin = haystack, "the study's test split"
    longest = context(_fields(source), source.arm)
    documents, cut = _within(longest, questions, documents)
    prompts = Prompts(questions, tokenizer, tokens)
    _within_files(longest, prompts)
    reader = open_reader(source)
    if tokenizer.vocab_size > reader.vocabulary:
        raise StageError(
            f"the model has {reader.vocabulary:,} tokens, the tokenizer {tokenizer.vocab_size:,}",
            field="MODEL",
            value=source.named,
            fix="give the tokenizer that it was trained with",
        )
    identity = {
        "code_version": CODE_VERSION,
        "model": source.key or weights_digest(source.model),
        "arm": None if source.arm is None else source.arm.key_fields(),
        "dtype": dtype_of(source),
        "tokenizer": tokenizer.digest,
        "haystack": known,
        "format": recorded(questions.format),
        "seed": questions.seed,
        "chat_template": _digest(tokenizer.template) if questions.chat_template else None,
    }
    answers = Answers(out, identity)
    total = prompts.tokens + sum(len(document.tokens) for document in documents)
    done = resumed = 0

    def read(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(min(done, total), total, "tokens")

    asked: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    segment = reader.mixer.segment_length
    for block in prompts.blocks(PASS_TOKENS[device.type]):
        names = [_name(item, questions) for item in block]
        if all(name in answers.rows for name in names):
            resumed += len(block)
            read(sum(item.length for item in block))
        else:
            found = reader.answers(tokenizer, block, read)
            answers.add(zip(names, found, strict=True))
        for item, name in zip(block, names, strict=True):
            said, nats = answers.rows[name]
            _check_finite(source, item.item, nats)
            if item.record in (PASSKEY, BINDINGS):
                asked.append(retrieval.row(item, item.record.read(said), nats, segment))
            else:
                others.append(retrieval.task_row(item, said, nats, segment, questions.format))
    scored = _scored(source, reader, tokenizer, documents, questions, answers, read)
    for name, rows, schema in (
        ("retrieval", asked, tables.RETRIEVAL),
        ("tasks", others, tables.TASKS),
        ("perplexity", scored, tables.PERPLEXITY),
    ):
        (out / f"{name}.parquet").unlink(missing_ok=True)  # of an earlier call that asked more
        if rows:
            tables.write(out / f"{name}.parquet", rows, schema)
    begins = tokenizer.in_chat().begin if questions.chat_template else tokenizer.begin
    facts = {
        "schema_version": 1,
        "name": source.named,
        "model": {
            "read_as": reader.what,
            "digest": identity["model"],
            "mixer": reader.mixer.key_fields(),
            "context": reader.longest,
            "dtype": identity["dtype"],
        },
        "tokenizer": {
            "digest": tokenizer.digest,
            "vocabulary": tokenizer.vocab_size,
            "begins_with": [_shown(tokenizer, token) for token in begins],
            "ends_with": [_shown(tokenizer, token) for token in tokenizer.stops],
            "chat_template": identity["chat_template"],
            "chat_tokens": prompts.wrapped,
        },
        "questions": questions.model_dump(mode="json"),
        "haystack": {"digest": known, "tokens": len(tokens), "from": origin},
        "text": {"documents": len(documents), "cut": cut, **totals(scored)},
        "identity": identity,
    }
    (out / RECORD).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return Evaluated(out, facts, reader, resumed)


def _fields(source: CheckpointSource) -> dict[str, Any]:
    try:
        return read_config(source.model)
    except ValueError as error:
        raise StageError(str(error), field="MODEL", value=source.named) from error


def _tokenizer(source: CheckpointSource, fields: dict[str, Any]) -> CheckpointTokenizer:
    place = source.tokenizer or source.model
    if source.tokenizer is not None and not place.exists():
        raise StageError(
            "no such file", field="--tokenizer", value=str(place), allowed="a tokenizer.json or a folder with one"
        )
    return read_tokenizer(place, fields, source.model)


def _documents(texts: Texts, tokenizer: CheckpointTokenizer, questions: Questions) -> list[ScoredDocument]:
    """Each as it is read: what begins a text, and its tokens. Raises StageError for one in which nothing is
    predicted."""
    config = questions.perplexity
    documents = []
    for name, text in texts:
        tokens = np.array([*tokenizer.begin, *tokenizer.encode(text)][: config.max_tokens_per_document], np.int32)
        if len(tokens) < config.min_tokens_per_document:
            raise StageError(
                f"it has {len(tokens)} token with this tokenizer",
                field="--text",
                value=name,
                allowed=f">= {config.min_tokens_per_document}",
                fix="leave it out",
            )
        documents.append(ScoredDocument(name, TEXT, tokens))
    return documents


def _within(
    longest: int | None, questions: Questions, documents: list[ScoredDocument]
) -> tuple[list[ScoredDocument], int]:
    """Documents cut to what the checkpoint was made for, and how many were. Raises StageError for longer prompts."""
    if longest is None:
        return documents, 0
    if questions.tasks and max(questions.lengths) > longest:
        raise StageError(
            f"the checkpoint's context is {longest:,} tokens",
            field="--lengths",
            value=max(questions.lengths),
            allowed=f"<= {longest}",
            fix="shorten the prompts, or read it under an arm that reads any length (--arm)",
        )
    cut = sum(len(document.tokens) > longest for document in documents)
    return [ScoredDocument(d.doc_id, d.split, d.tokens[:longest]) for d in documents], cut


def _within_files(longest: int | None, prompts: Prompts) -> None:
    """Raises StageError for a prompt of a file that is longer, with its answer, than the checkpoint's context."""
    if longest is None:
        return
    for item in prompts.of_files:
        if (needed := len(item.prompt) + item.budget) > longest:
            raise StageError(
                f"{item.item} takes {needed:,} tokens with its answer, the checkpoint's context is {longest:,}",
                field="--prompts",
                value=item.task,
                fix="shorten the prompt or --answer-tokens, or read it under an arm that reads any length (--arm)",
            )


def _scored(
    source: CheckpointSource,
    reader: Reader,
    tokenizer: CheckpointTokenizer,
    documents: list[ScoredDocument],
    questions: Questions,
    answers: Answers,
    read: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Rows of perplexity.parquet; a document at a time, so that each is scored once."""
    rows = []
    for document in documents:
        name = f"{TEXT}/{_digest(document.tokens.tobytes())}/{questions.perplexity.buckets}"
        if name in answers.rows:
            read(len(document.tokens))
        else:
            found = reader.perplexity(tokenizer, [document], questions.perplexity, read)
            answers.add([(name, found)])
        _check_finite(source, document.doc_id, sum(row["nll_sum"] for row in answers.rows[name]))
        rows += [{**row, "doc_id": document.doc_id} for row in answers.rows[name]]
    return sorted(rows, key=lambda row: (row["doc_id"], row["bucket_start"]))


def _check_finite(source: CheckpointSource, what: str, nats: float) -> None:
    """Raises StageError where the model gives no probability: it would read as a wrong answer, and is none."""
    if not math.isfinite(nats):
        raise StageError(
            f"the model computes {nats} for {what}: its weights hold such numbers, or --dtype is too narrow",
            field="MODEL",
            value=source.named,
            fix="give --dtype float32 or bfloat16, or check the weights",
        )


def _name(item: Item, questions: Questions) -> str:
    """Of its answer in the cache: a task's next version asks anew, and so do another file and another room."""
    if (file := questions.files.get(item.task)) is not None:
        return f"{item.item}/{file.pin}/{file.budget}"
    version = item.record.version
    return item.item if version == 1 else f"{item.item}/version {version}"


def _digest(content: str | bytes) -> str:
    return f"sha256:{hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()}"


def _shown(tokenizer: CheckpointTokenizer, token: int) -> str:
    return str(tokenizer.backend.id_to_token(token))
