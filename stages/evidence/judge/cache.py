"""Paid answers, kept by the digest of what was asked: one small file each, written before the answer is used."""

from __future__ import annotations

import json
from types import UnionType
from typing import Any

from cluster import storage
from stages.evidence.judge.config import home

_KINDS: dict[str, type | UnionType] = {
    "text": str | None,
    "read": int,
    "written": int,
    "estimated": bool,
    "model": str,
    "reason": str,
}
"""Fields of a reply."""


class Cache:
    """``url``: a folder or fsspec URL; None: ``infini-study/judge`` below the user's cache folder."""

    def __init__(self, url: str | None) -> None:
        self.url = url or str(home())
        self._files, self._root = storage.filesystem(self.url)

    def get(self, digest: str) -> dict[str, Any] | None:
        """The reply, or None. A file that is damaged counts as none."""
        data = storage.read_bytes(self._files, self._path(digest))
        try:
            value = None if data is None else json.loads(data)["reply"]
        except (ValueError, LookupError, TypeError, RecursionError):
            return None
        return (
            value if isinstance(value, dict) and all(isinstance(value.get(n), k) for n, k in _KINDS.items()) else None
        )

    def put(self, digest: str, value: dict[str, Any]) -> None:
        """Keep request and reply. Two that write the same at once write the same."""
        storage.write_atomic(self._files, self._path(digest), storage.to_json(value))

    def _path(self, digest: str) -> str:
        return f"{self._root.rstrip('/')}/{digest[:2]}/{digest}.json"
