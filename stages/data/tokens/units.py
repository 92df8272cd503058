"""The documents of the corpus in units of about a megabyte of text: what one task encodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from stages.data.corpus.documents import DocumentText
from stages.data.tokens.pieces import pieces

UNIT = 2**20  # characters for one task: a twentieth to some tenths of a second


@dataclass
class CountedDocument:
    """A document on its way; what was counted of it so far."""

    doc_id: str
    source: str
    split: str
    bytes: int
    words: int = 0
    tokens: int = 0
    controls: int = 0


@dataclass
class Unit:
    """One task's pieces of text, and of each its document, whether it goes on inside a word, whether it is last."""

    texts: list[str] = field(default_factory=list)
    layout: list[tuple[CountedDocument, bool, bool]] = field(default_factory=list)
    size: int = 0

    def add(self, document: CountedDocument, piece: str, inside: bool, last: bool) -> None:
        """The next piece."""
        self.texts.append(piece)
        self.layout.append((document, inside, last))
        self.size += len(piece)


def units(documents: Iterable[DocumentText], between_words: bool) -> Iterator[Unit]:
    """The documents' pieces in order, about ``UNIT`` characters at a time."""
    unit = Unit()
    for text in documents:
        document = CountedDocument(text.doc_id, text.source, text.split, len(text.data))
        before: tuple[str, bool] | None = None
        for piece in pieces(text.data, between_words):
            if before is not None:
                unit.add(document, *before, False)
                if unit.size >= UNIT:
                    yield unit
                    unit = Unit()
            before = piece
        unit.add(document, *(before or ("", False)), True)
        if unit.size >= UNIT:
            yield unit
            unit = Unit()
    if unit.texts:
        yield unit
