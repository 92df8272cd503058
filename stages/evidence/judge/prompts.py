"""What the judge is asked, and how its answers are read.

The labels of sentences are those of BooookScore (Chang et al., 2023): what makes a sentence of a summary confusing to a
reader who does not know the book.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from stages.evidence.summarize.rouge import sentences

Winner = Literal["A", "B", "tie"]
LABELS = (
    "entity omission",
    "event omission",
    "causal omission",
    "salience",
    "discontinuity",
    "duplication",
    "inconsistency",
    "language",
)
MOST_SENTENCES = 60
SYSTEM = "You judge summaries of books. You answer with JSON and nothing else."

_PAIR = """Two summaries of the same text follow. Which one tells a reader better what happens in the text? Weigh what \
is covered, what is true of the text, and whether it can be read; do not weigh length or the order they stand in. If \
neither is better, say tie.
{context}
Summary A:
<<<
{a}
>>>

Summary B:
<<<
{b}
>>>

Answer with one JSON object: {{"winner": "A" or "B" or "tie", "reason": "one sentence"}}"""

_SENTENCES = """A summary of a text follows, its sentences numbered. Name the sentences that would confuse a reader \
who does not know the text, and why, with these labels: {labels}.
{context}
Summary:
<<<
{numbered}
>>>

Answer with one JSON object: {{"confusing": [{{"sentence": number, "labels": [...]}}]}}, the list empty if none is."""


def pair_prompt(context: str, a: str, b: str) -> str:
    """The question which of two summaries is better."""
    return _PAIR.format(context=context, a=a.strip() or "(empty)", b=b.strip() or "(empty)")


def sentences_prompt(context: str, text: str) -> str:
    """The question which sentences confuse."""
    numbered = "\n".join(f"{n}. {sentence}" for n, sentence in enumerate(sentences_of(text), 1))
    return _SENTENCES.format(context=context, labels=", ".join(LABELS), numbered=numbered)


def sentences_of(text: str) -> list[str]:
    """Those sentences of a summary that are asked about."""
    return sentences(text)[:MOST_SENTENCES]


def context_of(text: str, references: Sequence[str], source_words: int, reference_words: int) -> str:
    """What the judge knows of the text: a person's summary, and the text or its beginning, middle and end."""
    parts = []
    if references and reference_words:
        parts.append(f"A person's summary of the text:\n<<<\n{_cut(references[0], reference_words)}\n>>>")
    if source_words:
        parts.append(f"The text, or parts of it:\n<<<\n{excerpt(text, source_words)}\n>>>")
    return "\n" + "\n\n".join(parts) + "\n"


def excerpt(text: str, words: int) -> str:
    """The text, or a third of ``words`` each from its beginning, middle and end."""
    said = text.split()
    if len(said) <= words:
        return " ".join(said)
    third = max(1, words // 3)
    middle = (len(said) - third) // 2
    return " [...] ".join(" ".join(part) for part in (said[:third], said[middle : middle + third], said[-third:]))


def read_winner(answer: str) -> Winner | None:
    """The winner that an answer names: in JSON, in prose around JSON, or as a bare word; None where it names none, or
    contradicts itself."""
    found = {_winner(value["winner"]) for value in _objects(answer) if "winner" in value}
    if not found and (bare := re.fullmatch(r"\W*(?:summary\s+)?(A|B|tie)\W*", answer.strip(), re.IGNORECASE)):
        found = {_winner(bare.group(1))}
    return found.pop() if len(found) == 1 else None


def _winner(value: Any) -> Winner | None:
    said = str(value).strip().lower().removeprefix("summary ").strip()
    return {"a": "A", "b": "B", "tie": "tie"}.get(said)  # type: ignore[return-value]


def read_labels(answer: str, count: int) -> dict[int, tuple[str, ...]] | None:
    """Sentence (from 1) to its labels; None where the answer has no list, names a sentence there is not, or none of the
    known labels for one."""
    for value in _objects(answer):
        if isinstance(value.get("confusing"), list):
            return _labels(value["confusing"], count)
    return None


def _labels(rows: list[Any], count: int) -> dict[int, tuple[str, ...]] | None:
    found: dict[int, tuple[str, ...]] = {}
    for row in rows:
        number = row.get("sentence") if isinstance(row, dict) else None
        said = row.get("labels", []) if isinstance(row, dict) else []
        known = (
            tuple(label for label in LABELS if label in {str(x).strip().lower() for x in said})
            if isinstance(said, list)
            else ()
        )
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= count or not known:
            return None
        found[number] = known
    return found


def _objects(answer: str) -> Iterator[dict[str, Any]]:
    """Every JSON object that begins somewhere in the answer and is not within another."""
    decoder, at = json.JSONDecoder(), 0
    while (at := answer.find("{", at)) >= 0:
        try:
            value, end = decoder.raw_decode(answer, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        if isinstance(value, dict):
            yield value
        at = end


def _cut(text: str, words: int) -> str:
    said = text.split()
    return " ".join(said[:words]) + (" [...]" if len(said) > words else "")
