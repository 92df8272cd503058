"""What is summarized, with its references, made from held-out documents or from pairs.

``continue``: the first ``prompt_tokens`` tokens; the reference is the true continuation.
``condense``: the reference is the document's own opening, its first paragraph of ``min_opening_words`` words or more;
the text is what follows it. The opening itself is withheld, with all that stands before it. Authors open manuals,
articles and chapters by saying what they are about, so this is a summary that exists for any document; it is not a
human abstract, and the report says which one was used. With ``pairs`` the references are real summaries.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data import summaries
from stages.data.pinned import unchanged
from stages.evidence.summarize.config import ItemsConfig, Pairs
from stages.stage import Artifact, StageError

if TYPE_CHECKING:
    from stages.data.tokens.load import StudyTokenizer

DOCUMENT = "document"  # the level of items made from held-out documents
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("task", "level", "doc_id", "book", "title")]
    + [("text", pa.large_string()), ("references", pa.list_(pa.large_string()))]
    + [("prompt", pa.list_(pa.int32())), ("rows", pa.list_(pa.int64()))]
)


@dataclass(frozen=True)
class SummaryExample:
    """One thing to write. ``text``: what the model reads, or the whole of which it reads the beginning. ``prompt``: its
    tokens where they are fixed (continue). ``rows``: of the pairs. ``level``: ``document``, ``chapter`` or ``book``."""

    task: str
    level: str
    doc_id: str
    book: str
    title: str
    text: str
    references: tuple[str, ...]
    prompt: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()

    @property
    def name(self) -> tuple[str, str, str]:
        """What it is known by, in every table."""
        return self.task, self.level, self.doc_id


def write(examples: Iterable[SummaryExample], path: Path) -> None:
    """items.parquet (docs/formats.md)."""
    rows = [{field: getattr(example, field) for field in SCHEMA.names} for example in examples]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path, compression="zstd")


def load(artifact: Artifact) -> list[SummaryExample]:
    """The items of a references artifact, in its order."""
    lists = ("references", "prompt", "rows")
    made = []
    for row in pq.read_table(artifact.path("items.parquet")).to_pylist():
        fields: dict[str, Any] = {name: tuple(value) if name in lists else value for name, value in row.items()}
        made.append(SummaryExample(**fields))
    return made


def held_out(artifact: Artifact, splits: Sequence[str]) -> list[tuple[str, str]]:
    """(doc_id, text) of the splits, in the order of the hashed id: its first n are a stable sample."""
    table = pq.read_table(
        artifact.path("documents"), columns=["doc_id", "split", "text"], filters=[("split", "in", list(splits))]
    )
    rows = list(zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True))
    return sorted(rows, key=lambda row: hashlib.sha256(row[0].encode()).digest())


def continuations(
    documents: Sequence[tuple[str, str]], tokenizer: StudyTokenizer, config: ItemsConfig
) -> list[SummaryExample]:
    """One example per document that is long enough, up to ``config.documents``, sorted by doc_id."""
    examples: list[SummaryExample] = []
    for doc_id, text in documents:
        ids = [*tokenizer.begin, *tokenizer.encode(text[: characters(config.prompt_tokens + config.new_tokens)])]
        end = config.prompt_tokens + config.new_tokens
        if len(ids) >= end:
            prompt = tuple(ids[: config.prompt_tokens])
            reference = tokenizer.decode(ids[config.prompt_tokens : end])
            examples.append(
                SummaryExample("continue", DOCUMENT, doc_id, doc_id, "", tokenizer.decode(prompt), (reference,), prompt)
            )
        if len(examples) == config.documents:
            break
    return sorted(examples, key=lambda e: e.doc_id)


def condensations(
    documents: Sequence[tuple[str, str]], tokenizer: StudyTokenizer, config: ItemsConfig
) -> list[SummaryExample]:
    """As ``continuations``, for documents with an opening and enough text after it."""
    room = room_beside(tokenizer, config.prompt_tokens, config.cue)
    examples: list[SummaryExample] = []
    for doc_id, text in documents:
        found = opening(text, config.min_opening_words)
        if found is None:
            continue
        rest = text[found.end() :].lstrip()
        beginning = rest[: characters(config.prompt_tokens)]
        if len(tokenizer.begin) + len(tokenizer.encode(beginning)) >= room:
            reference = " ".join(found.group().split())
            examples.append(SummaryExample("condense", DOCUMENT, doc_id, doc_id, "", rest, (reference,)))
        if len(examples) == config.documents:
            break
    return sorted(examples, key=lambda e: e.doc_id)


def from_pairs(pairs: Pairs, config: ItemsConfig) -> list[SummaryExample]:
    """The texts of the pairs, at most ``config.documents`` of each level, books in turn. Raises StageError for other
    bytes than the pinned ones or for a row without text and summary."""
    path = summaries.located(pairs.path, "summarize.pairs.path")
    if not path.exists():
        raise StageError(
            "no such file on this node",
            field="summarize.pairs.path",
            value=pairs.path,
            fix="put it there, or plan again",
        )
    unchanged(summaries.digest(path, pairs.root, "summarize.pairs"), pairs.pin, field="summarize.pairs.pin")
    made = summaries.items(summaries.read(path, pairs.root, "summarize.pairs", pairs.splits))
    examples = []
    for level in summaries.LEVELS:
        of_level = [item for item in made if item.level == level][: config.documents]
        examples += [
            SummaryExample(
                "condense", level, item.name, item.book, item.title, item.text, item.references, rows=item.rows
            )
            for item in of_level
        ]
    return examples


def opening(text: str, least_words: int) -> re.Match[str] | None:
    """The first paragraph (text between blank lines) of ``least_words`` words or more; None if there is none."""
    paragraphs = re.finditer(r"\S.*?(?=\n[ \t]*\n|\Z)", text, re.DOTALL)
    return next((p for p in paragraphs if len(p.group().split()) >= least_words), None)


def room_beside(tokenizer: StudyTokenizer, tokens: int, cue: str) -> int:
    """Tokens of the text in a prompt of ``tokens``. Raises StageError where the cue fills it."""
    length = len(tokenizer.encode(cue))
    if length >= tokens:
        raise StageError(
            f"the cue alone has {length} tokens",
            field="summarize.prompt_tokens",
            value=tokens,
            allowed=f"> {length}",
            fix="raise it or shorten summarize.cue",
        )
    return tokens - length


def prompt_of(example: SummaryExample, tokenizer: StudyTokenizer, length: str, cue: str) -> tuple[int, ...]:
    """The tokens that the model reads: of ``continue`` as they are, else the beginning of the text (``whole``: all of
    it) and the cue."""
    if example.prompt:
        return example.prompt
    end = tokenizer.encode(cue)
    if length == "whole":
        return (*tokenizer.begin, *tokenizer.encode(example.text), *end)
    room = room_beside(tokenizer, int(length), cue)
    text = example.text[: characters(int(length))]
    return (*[*tokenizer.begin, *tokenizer.encode(text)][:room], *end)


def characters(tokens: int) -> int:
    """More characters than so many tokens can hold, so that whole books need not be encoded."""
    return 32 * tokens
