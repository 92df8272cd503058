"""Does a tokenizer have the characters of a task? Found at one prompt of each, before any work."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from stages.data.tasks.haystack import Codec
from stages.stage import StageError


class Checked:
    """A codec that refuses text it does not give back, apart from space and from forms of one character. ``field``:
    what names the tasks, for errors."""

    def __init__(self, inner: Codec, field: str, fix: str) -> None:
        self.inner, self.begin, self.field, self.fix = inner, inner.begin, field, fix
        self.known: set[str] = set()

    def encode(self, text: str) -> list[int]:
        ids = self.inner.encode(text)
        if not self.known.issuperset(text):
            back = _plain(self.inner.decode(ids))
            lacking = sorted({c for c in _plain(text) if c not in back})
            if lacking or back != _plain(text):
                raise StageError(
                    f"the tokenizer does not give {text.strip()[:60]!r} back"
                    + (f": it lacks {' '.join(map(repr, lacking[:8]))}" if lacking else ""),
                    field=self.field,
                    value=text.strip()[:20],
                    fix=self.fix,
                )
            self.known.update(text)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.inner.decode(ids)


def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())
