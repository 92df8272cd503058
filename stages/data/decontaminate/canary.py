"""Canaries: passages of evaluation documents planted in copies of clean training documents, then searched for.

They never enter the output; they show what the audit finds on this very corpus. Quotations too short to act on are
planted as well: acting on one would be a false alarm.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.decide import decide
from stages.data.matching.chain import scan
from stages.data.matching.index import Index

PASSAGE_WORDS, QUOTATION_WORDS, HOST_BYTES = 200, 20, 20_000


@dataclass(frozen=True)
class Planted:
    """How many canaries of one kind were planted, found (any verified span) and acted on (cut or dropped)."""

    kind: str
    planted: int
    found: int
    acted: int


def _verbatim(text: str, chance: random.Random) -> str:
    return text


def _retyped(text: str, chance: random.Random) -> str:
    """Another edition's typography: new line breaks with hyphenation, upper case, typographic apostrophes."""
    lines, line = [], ""
    for word in text.replace("'", "’").split():
        line += word + " "
        if len(line) > 50:
            lines.append(line.upper() if chance.random() < 0.1 else line)
            line = ""
    return "\n".join([*lines, line])


def _scanned_badly(text: str, chance: random.Random) -> str:
    """Optical character recognition at 5% wrong letters."""
    return "".join(chance.choice("abcdefghilmnorstu") if c.isalpha() and chance.random() < 0.05 else c for c in text)


KINDS: dict[str, Callable[[str, random.Random], str]] = {
    "passage of 200 words": _verbatim,
    "passage of 200 words, retyped": _retyped,
    "passage of 200 words, 5% wrong letters": _scanned_badly,
}


def plant(hosts: Sequence[bytes], index: Index, rule: DecontaminateConfig) -> tuple[list[Planted], Planted]:
    """(recall per kind, quotations) of ``rule.canaries.count`` canaries each, planted in copies of ``hosts``.

    Evaluation documents are drawn in proportion to their words; those shorter than a passage are not drawn.
    """
    chance = random.Random(rule.canaries.seed)
    weights = [n if (n := index.words_in(book)) >= PASSAGE_WORDS else 0 for book in range(len(index.book_ids))]
    count = rule.canaries.count if hosts and any(weights) else 0
    recalls = []
    for kind, change in {**KINDS, "quotation": _verbatim}.items():
        found = acted = 0
        for _ in range(count):
            book = chance.choices(range(len(weights)), weights)[0]
            passage = _passage(index, book, QUOTATION_WORDS if kind == "quotation" else PASSAGE_WORDS, chance)
            planted = _inserted(chance.choice(hosts), change(passage, chance), chance)
            scanned = scan(planted, index, rule.max_gap, rule.max_drift, rule.min_span_words)
            scanned = scanned._replace(spans=[span for span in scanned.spans if span.book == book])
            decision = decide([scanned], [index.words_in(b) for b in range(len(index.book_ids))], rule)[0]
            found += bool(decision.pairs)
            acted += decision.action in ("cut", "drop")
        recalls.append(Planted(kind, count, found, acted))
    return recalls[:-1], recalls[-1]


def _passage(index: Index, book: int, length: int, chance: random.Random) -> str:
    base = int(index.first_word[book])
    first = chance.randrange(index.words_in(book) - length + 1)
    return index.evidence(book, int(index.starts[base + first]), int(index.ends[base + first + length - 1]))


def _inserted(host: bytes, passage: str, chance: random.Random) -> bytes:
    """A stretch of the host with the passage between two of its words."""
    start = chance.randrange(max(1, len(host) - HOST_BYTES))
    text = host[start : start + HOST_BYTES].decode(errors="ignore")
    at = text.find(" ", chance.randrange(max(1, len(text))))
    at = len(text) if at < 0 else at
    return f"{text[:at]} {passage} {text[at:]}".encode()
