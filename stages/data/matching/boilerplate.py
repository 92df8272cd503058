"""What transcribers put around a book: Project Gutenberg's header and licence, in every one of its files.

Left in, nearly every pair of such files would share text. It is taken off both sides before they are compared (the
text itself is not changed), where the marks that Project Gutenberg's files have carried since 1991 are found; what
stands elsewhere, such as a licence in the middle of an anthology, is caught by the exclusion lists (``exclude.py``).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import njit

LIST_NGRAM = 5  # words of one entry of an exclusion list, whatever the index's own n-grams
HEAD, TAIL = 1 << 16, 1 << 16  # bytes in which the marks are looked for: headers were up to 20 KB, licences are 19 KB

_BEGIN = re.compile(
    rb"^(?:\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG[^\n]*\*\*\*|\*END[* ]*THE SMALL PRINT![^\n]*\*END\*)[ \r]*$",
    re.MULTILINE | re.IGNORECASE,
)
_END = re.compile(
    rb"^(?:\*\*\* ?END OF TH(?:E|IS) PROJECT GUTENBERG|End of (?:the |this )?Project Gutenberg(?:'s)?\b)[^\n]*$",
    re.MULTILINE | re.IGNORECASE,
)


def body(text: Any) -> tuple[int, int]:
    """Bytes [start, end) of ``text`` (bytes or a uint8 array) between header and licence; all where there is none."""
    view = memoryview(text)
    start, end = 0, len(view)
    head = bytes(view[:HEAD])
    if _named(head):
        for found in _marks(_BEGIN, head, b"project gutenberg", b"the small print!"):
            start = found.end()
    at = max(start, end - TAIL)
    tail = bytes(view[at:])
    if _named(tail) and (found_end := next(_marks(_END, tail, b"project gutenberg"), None)):
        end = at + found_end.start()
    return start, end


def _marks(mark: re.Pattern[bytes], text: bytes, *names: bytes) -> Iterator[re.Match[bytes]]:
    """What ``mark.finditer`` gives, ten times faster: a mark is a line, and one of ``names`` stands in it."""
    lower = text.lower()
    places = (found.start() for name in names for found in re.finditer(re.escape(name), lower))
    for line in sorted({lower.rfind(b"\n", 0, place) + 1 for place in places}):
        if found := mark.match(text, line):
            yield found


def _named(text: bytes) -> bool:
    """Whether the name stands there, in lower or in upper case: false for nearly every document, so it must be fast."""
    fours = np.frombuffer(text, np.uint32, len(text) // 4)
    at = _likely(fours, 0)
    while at < len(fours):
        first, last = max(0, 4 * at - 4), 4 * (at + _BLOCK) + 4
        if text.find(b"utenberg", first, last) >= 0 or text.find(b"UTENBERG", first, last) >= 0:
            return True
        at = _likely(fours, at + _BLOCK)
    return False


_BLOCK = 256  # fours
_UTEN, _TENB, _ENBE, _NBER = (int.from_bytes(part, sys.byteorder) for part in (b"UTEN", b"TENB", b"ENBE", b"NBER"))


@njit(cache=True, nogil=True)
def _likely(fours: Any, at: int) -> int:
    """First block from ``at`` on in which the name may begin or go on: whatever its place, one four of its eight bytes
    is one of these. Without a branch, so that many are compared at a time: ten times faster than looking for eight."""
    while at < len(fours):
        found = np.uint32(0)
        block = fours[at : at + _BLOCK]
        for k in range(len(block)):
            upper = block[k] & np.uint32(0xDFDFDFDF)  # of letters
            if (
                (upper == np.uint32(_UTEN))
                | (upper == np.uint32(_TENB))
                | (upper == np.uint32(_ENBE))
                | (upper == np.uint32(_NBER))
            ):
                found += np.uint32(1)
        if found:
            return at
        at += _BLOCK
    return len(fours)
