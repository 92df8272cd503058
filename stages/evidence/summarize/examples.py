"""Prompts and references made from held-out documents.

``continue``: the first ``prompt_tokens`` tokens; the reference is the true continuation.
``condense``: the reference is the document's own opening, its first paragraph of ``min_opening_words`` words or more;
the prompt is what follows it, then the cue. The opening itself is withheld, with all that stands before it. Authors
open manuals, articles and chapters by saying what they are about, so this is a summary that exists for any document;
it is not a human abstract, and the report says which one was used. With ``pairs`` the references are real summaries.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.data.pinned import read_unchanged
from stages.evidence.summarize.config import Pairs, SummarizeConfig
from stages.stage import Artifact, StageError

if TYPE_CHECKING:
    from stages.data.tokens.load import StudyTokenizer


@dataclass(frozen=True)
class Example:
    doc_id: str
    task: str
    prompt: tuple[int, ...]
    reference: str


def held_out(artifact: Artifact, splits: Sequence[str]) -> list[tuple[str, str]]:
    """(doc_id, text) of the splits, in the order of the hashed id: its first n are a stable sample."""
    import pyarrow.parquet as pq

    table = pq.read_table(
        artifact.path("documents"), columns=["doc_id", "split", "text"], filters=[("split", "in", list(splits))]
    )
    rows = list(zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True))
    return sorted(rows, key=lambda row: hashlib.sha256(row[0].encode()).digest())


def continuations(
    documents: Sequence[tuple[str, str]], tokenizer: StudyTokenizer, config: SummarizeConfig
) -> list[Example]:
    """One example per document that is long enough, up to ``config.documents``, sorted by doc_id."""
    examples: list[Example] = []
    for doc_id, text in documents:
        ids = [*tokenizer.begin, *tokenizer.encode(text[: _characters(config)])]
        end = config.prompt_tokens + config.new_tokens
        if len(ids) >= end:
            reference = tokenizer.decode(ids[config.prompt_tokens : end])
            examples.append(Example(doc_id, "continue", tuple(ids[: config.prompt_tokens]), reference))
        if len(examples) == config.documents:
            break
    return sorted(examples, key=lambda e: e.doc_id)


def condensations(
    documents: Sequence[tuple[str, str]], tokenizer: StudyTokenizer, config: SummarizeConfig
) -> list[Example]:
    """As ``continuations``, for documents with an opening and enough text after it."""
    cue = tokenizer.encode(config.cue)
    room = _room(config, len(cue))
    examples: list[Example] = []
    for doc_id, text in documents:
        found = opening(text, config.min_opening_words)
        if found is None:
            continue
        rest = text[found.end() : found.end() + _characters(config)].lstrip()
        ids = [*tokenizer.begin, *tokenizer.encode(rest)][:room]
        if len(ids) == room:
            reference = " ".join(found.group().split())
            examples.append(Example(doc_id, "condense", (*ids, *cue), reference))
        if len(examples) == config.documents:
            break
    return sorted(examples, key=lambda e: e.doc_id)


def from_pairs(pairs: Pairs, tokenizer: StudyTokenizer, config: SummarizeConfig) -> list[Example]:
    """The texts of a pairs file, cut to fit the prompt, in the file's order. Raises StageError for other bytes than the
    pinned ones or for a row without text and summary."""
    data = read_unchanged(Path(pairs.path), pairs.pin, field="summarize.pairs.pin")
    cue = tokenizer.encode(config.cue)
    room = _room(config, len(cue))
    examples = []
    for number, line in enumerate(data.decode().splitlines(), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # not JSON; nested too deep
            row = None
        if not isinstance(row, dict) or not row.get("text") or not row.get("summary"):
            raise StageError(
                f"line {number} lacks text or summary",
                field="summarize.pairs.path",
                value=pairs.path,
                allowed='{"text": ..., "summary": ..., "id": optional} a line',
            )
        ids = [*tokenizer.begin, *tokenizer.encode(row["text"][: _characters(config)])][:room]
        examples.append(Example(str(row.get("id", f"line-{number}")), "condense", (*ids, *cue), row["summary"]))
    return examples[: config.documents]


def opening(text: str, least_words: int) -> re.Match[str] | None:
    """The first paragraph (text between blank lines) of ``least_words`` words or more; None if there is none."""
    paragraphs = re.finditer(r"\S.*?(?=\n[ \t]*\n|\Z)", text, re.DOTALL)
    return next((p for p in paragraphs if len(p.group().split()) >= least_words), None)


def _room(config: SummarizeConfig, cue: int) -> int:
    if cue >= config.prompt_tokens:
        raise StageError(
            f"the cue alone has {cue} tokens",
            field="summarize.prompt_tokens",
            value=config.prompt_tokens,
            allowed=f"> {cue}",
            fix="raise it or shorten summarize.cue",
        )
    return config.prompt_tokens - cue


def _characters(config: SummarizeConfig) -> int:
    """More characters than the tokens of prompt and continuation can hold, so that whole books need not be encoded."""
    return 32 * (config.prompt_tokens + config.new_tokens)
