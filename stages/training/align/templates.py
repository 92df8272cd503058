"""Conversations and preferences made from the training text, where none are given: a passage, and a question about it
that the passage answers. Rejected answers are of the same form and wrong, or, every other time round, right and behind
words that nobody asked for: of style, as much of what people prefer is. A toy model learns the latter; the former alone
teach it nothing that holds on other pairs.

They teach a form, as instruction tuning does: every answer lies in the passage, so a row of few tokens asks nothing of
a long context, and a row of many does (how the passage begins).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from stages.data.tasks.haystack import Codec

Ask = Callable[[Sequence[str], str, random.Random], tuple[str, str, str]]
"""(sentences of the passage, a sentence of another document, random stream) -> question, right and wrong answer."""

SLACK = 20  # tokens kept free for what stands before turns and behind the answer
FEW, STRETCH = 4, 5  # with fewer sentences a passage is taken in stretches of so many words
CHARACTERS = 50_000_000  # of training text that passages are drawn from
TRIES = 50  # passages drawn for one example before the text is taken to have too few


def _begin(sentences: Sequence[str], other: str, rng: random.Random) -> tuple[str, str, str]:
    wrong = rng.choice(sentences[1:])
    return "With which words does this text begin?", _words(sentences[0]), _words(wrong)


def _last(sentences: Sequence[str], other: str, rng: random.Random) -> tuple[str, str, str]:
    return "Repeat the last sentence.", _words(sentences[-1], 12), _words(rng.choice(sentences[:-1]), 12)


def _contains(sentences: Sequence[str], other: str, rng: random.Random) -> tuple[str, str, str]:
    there = rng.random() < 0.5
    asked = rng.choice(sentences) if there else other
    said = ("Yes.", "No.")
    return f'Does the text say "{_words(asked)}"?', said[not there], said[there]


ASKED: tuple[Ask, ...] = (_begin, _last, _contains)
UNASKED = ("As far as I can tell:", "I would say that it is", "Thank you for your question!", "Well, let me see.")
"""What stands before an answer that is rejected for its style."""


def _words(sentence: str, count: int = 6) -> str:
    return " ".join(sentence.split()[:count])


def training_texts(documents: Path) -> list[str]:
    """Texts of the train split, in the table's order, of ``CHARACTERS`` together."""
    from stages.data.corpus.documents import read_texts

    texts, size = [], 0
    for document in read_texts(documents, ("train",)):
        texts.append(bytes(document.data).decode())
        size += len(texts[-1])
        if size >= CHARACTERS:
            break
    return texts


def made(texts: Sequence[str], codec: Codec, length: int, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """``count`` rows with ``messages``, ``prompt``, ``chosen`` and ``rejected``, a passage in each that nearly fills
    ``length`` tokens; row i depends on (texts, length, seed, i). Fewer where the texts have too few sentences.

    Which question is asked goes round; passages are sentences from anywhere in a text drawn by its length.
    """
    weights = [len(text) for text in texts]
    for number in range(count):
        rng = random.Random(f"{seed}/{length}/{number}")
        for _ in range(TRIES):
            text, other = rng.choices(texts, weights, k=2)
            style = number // len(ASKED) % 2 == 1
            row = _row(text, other, codec, length, ASKED[number % len(ASKED)], style, rng)
            if row is not None:
                yield row
                break


def _row(
    text: str, other: str, codec: Codec, length: int, ask: Ask, style: bool, rng: random.Random
) -> dict[str, Any] | None:
    """``style``: the rejected answer is right, behind words that nobody asked for."""
    size = 8 * length  # characters: more than the tokens hold, so that no whole book is encoded
    start = rng.randrange(max(1, len(text) - size // 4))
    pieces = _pieces(codec.decode(codec.encode(text[start : start + size])[:length]))
    place = rng.randrange(max(1, len(other) - 400))
    foreign = _pieces(other[place : place + 800])
    state = rng.getstate()
    while len(pieces) > 1 and foreign:
        rng.setstate(state)
        passage = " ".join(pieces)
        absent = [one for one in foreign if _words(one) not in passage]
        if not absent:
            return None
        question, right, wrong = ask(pieces, absent[0], rng)
        wrong = f"{rng.choice(UNASKED)} {right}" if style and right else wrong
        prompt = f"{passage}\n{question}"
        if len(codec.encode(prompt)) + max(len(codec.encode(answer)) for answer in (right, wrong)) > length - SLACK:
            pieces.pop()
            continue
        if not right or not wrong or right.startswith(wrong):
            return None
        asked = [{"role": "user", "content": prompt}]
        answers = [[{"role": "assistant", "content": answer}] for answer in (right, wrong)]
        return {"messages": asked + answers[0], "prompt": asked, "chosen": answers[0], "rejected": answers[1]}
    return None


def _pieces(text: str) -> list[str]:
    """Sentences without the cut ones at the edges; of a text with few of them, stretches of a few words."""
    sentences = [" ".join(one.split()) for one in re.split(r"(?<=[.!?])\s+|\n\s*\n", text) if one.strip()][1:-1]
    if len(sentences) >= FEW:
        return sentences
    words = text.split()[1:-1]
    return [" ".join(words[i : i + STRETCH]) for i in range(0, len(words) - STRETCH + 1, STRETCH)]
