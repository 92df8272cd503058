"""Two texts side by side as HTML, the words on which they agree marked, by the same words that the matching sees."""

from __future__ import annotations

import difflib
import html
from collections.abc import Sequence

from stages.data.matching.normalize import words

Range = tuple[int, int]


def highlighted(left: str, right: str) -> tuple[str, str]:
    """Both texts, escaped; runs of words they share in the same order stand in <mark>, whatever their typography."""
    a, b = left.encode(), right.encode()
    in_a, in_b = words(a), words(b)
    matcher = difflib.SequenceMatcher(a=in_a.hashes.tolist(), b=in_b.hashes.tolist(), autojunk=False)
    blocks = [block for block in matcher.get_matching_blocks() if block.size]
    runs_a = [(int(in_a.starts[m.a]), int(in_a.ends[m.a + m.size - 1])) for m in blocks]
    runs_b = [(int(in_b.starts[m.b]), int(in_b.ends[m.b + m.size - 1])) for m in blocks]
    return _marked(a, runs_a), _marked(b, runs_b)


def _marked(text: bytes, runs: Sequence[Range]) -> str:
    parts, at = [], 0
    for start, end in runs:
        parts += [_escaped(text[at:start]), "<mark>", _escaped(text[start:end]), "</mark>"]
        at = end
    return "".join([*parts, _escaped(text[at:])])


def _escaped(text: bytes) -> str:
    return html.escape(text.decode(errors="replace"))
