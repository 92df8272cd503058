"""Cuts documents into pieces that a tokenizer encodes one by one to the very tokens it gives the whole.

A library call costs the same per byte however its text is cut, but what it holds grows with the text (some 70 bytes a
token while it works), and long texts leave the processor's caches. So documents are cut before a space between two
words, where byte-level, whitespace and Metaspace tokenizers split anyway. ``splits_between_words`` finds out whether a
tokenizer does; one that does not gets whole documents.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PIECE = 8192  # characters: pieces above this end at the next space between words
LONGEST = 2**20  # characters without such a space: cut at a line's end, or anywhere
WHOLE = 2**24  # characters of a document given in one piece to a tokenizer that must see it whole
_BLOCK = 2**20  # bytes decoded at a time

_LEFT = ("The", "cat", "don't", "x_1", "a 12", "naïve", "日本語", "End.\n\nNew", "\tlist", "«Да", "I am")
_RIGHT = (" next", " Word, and", " élan\n", " x", " s is", " ll", " 'tis", " да", " the\n\nend.")


def splits_between_words(tokenizer: Tokenizer) -> bool:
    """Does a text cut before a space between two words (the second begins with a letter) keep its tokens?

    Tried on pairs of texts: the pre-tokenizer must split there, so that no token crosses, and both ends together must
    give the tokens of the whole. False where an added token has a space in it or reaches for the spaces around it.
    """
    if tokenizer.pre_tokenizer is None:
        return False
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.lstrip or token.rstrip or " " in token.content:
            return False

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    for left in _LEFT:
        for right in (text for text in _RIGHT if text[1].isalpha()):
            whole = left + right
            normal = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
            at = len(normal(whole)) - len(normal(right))
            spans = [span for _, span in tokenizer.pre_tokenizer.pre_tokenize_str(normal(whole))]
            if any(start < at < end for start, end in spans) or ids(whole) != ids(left) + ids(right):
                return False
    return True


def pieces(data: memoryview, between_words: bool) -> Iterator[tuple[str, bool]]:
    """The text of the UTF-8 ``data`` in pieces: (piece, it goes on inside a word of the one before).

    Decoded block by block: never more than a piece and a block are held. Joined, the pieces are the text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    shortest, longest = (PIECE, LONGEST) if between_words else (WHOLE, WHOLE)
    text, start, searched = "", 0, 0  # the piece begins at ``start``; no seam before ``searched``
    inside = False
    for position in range(0, len(data), _BLOCK):
        text, searched, start = text[start:] + decoder.decode(data[position : position + _BLOCK]), searched - start, 0
        while len(text) - start > shortest:
            seam = _between_words(text, max(searched, start + shortest)) if between_words else 0
            if not seam and len(text) - start <= longest:
                searched = len(text) - 1
                break
            seam = seam or _anywhere(text, start, start + longest)
            yield text[start:seam], inside
            inside = not (text[seam].isspace() or text[seam - 1].isspace())
            start = searched = seam
    if start < len(text):
        yield text[start:], inside


def _between_words(text: str, at: int) -> int:
    """The place of the first space at or after ``at`` between two words; 0 where there is none."""
    at = text.find(" ", at)
    while 0 < at < len(text) - 1:
        if text[at - 1].isalnum() and text[at + 1].isalpha():
            return at
        at = text.find(" ", at + 1)
    return 0


def _anywhere(text: str, start: int, end: int) -> int:
    """After the last line's end, or else before the last space, in the second half of start .. end; else the end."""
    middle = (start + end) // 2
    line, space = text.rfind("\n", middle, end - 1) + 1, text.rfind(" ", middle, end)
    return line or max(space, 0) or end
