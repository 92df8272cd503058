"""What transcribers put around a book: Project Gutenberg's header and licence, in every one of its files.

Left in, nearly every pair of such files would share text. It is taken off both sides before they are compared (the
text itself is not changed), where the marks that Project Gutenberg's files have carried since 1991 are found; what
stands elsewhere, such as a licence in the middle of an anthology, is caught by the exclusion lists (``exclude.py``).
"""

from __future__ import annotations

import re
from typing import Any

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
        for found in _BEGIN.finditer(head):
            start = found.end()
    at = max(start, end - TAIL)
    tail = bytes(view[at:])
    if _named(tail) and (found_end := _END.search(tail)):
        end = at + found_end.start()
    return start, end


def _named(text: bytes) -> bool:
    """A hundred times faster than the marks' expressions, and false for nearly every document."""
    return b"utenberg" in text or b"UTENBERG" in text
