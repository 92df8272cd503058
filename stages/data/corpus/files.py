"""The files of a source as they lie outside, by name and digest, and what their names alone say of their documents."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stages.data.corpus.config import (
    JsonLines,
    Parquet,
    Pg19,
    Source,
    SplitName,
    SplitShares,
    TextFiles,
)
from stages.stage import StageError

RACY_NS = 2_000_000_000  # a file touched this recently may change again within one tick of its clock: not cached


@dataclass(frozen=True)
class ExternalFile:
    """One file a source reads. ``name`` is relative and the same on every machine, ``location`` is where it is here."""

    name: str
    location: str
    size: int
    digest: str

    def entry(self) -> dict[str, Any]:
        """The file's line in listing.json."""
        return {"name": self.name, "size": self.size, "digest": self.digest}


class DigestCache:
    """sha256 of local files, remembered by path, size and modification time in a JSON file (None: not remembered)."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        if path is not None:
            try:
                known = json.loads(path.read_text())
            except (OSError, ValueError):
                known = {}  # a missing, torn or forbidden cache costs one more hashing, nothing else
            self._known = known if isinstance(known, dict) else {}

    def digest(self, path: str, status: os.stat_result) -> str:
        """``sha256:<hex>`` of the file's bytes."""
        stamp = [status.st_size, status.st_mtime_ns]
        known = self._known.get(path)
        if isinstance(known, list) and known[:2] == stamp:
            return str(known[2])
        try:
            with open(path, "rb") as file:
                digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise StageError(
                f"cannot be read: {error.strerror}", field="file", value=path, fix="check its permissions, or remove it"
            ) from error
        if time.time_ns() - status.st_mtime_ns > RACY_NS:
            self._known[path] = [*stamp, digest]
            self._changed = True
        return digest

    def save(self) -> None:
        """Write what was learned, atomically; another process may do the same."""
        if self._path is None or not self._changed:
            return
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(self._known))
            draft.replace(self._path)
        except OSError:  # no home, a read-only one, a full disk: nothing is lost but time
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)


def stable_share(text: str) -> float:
    """A number in [0, 1) that depends on ``text`` alone: the same on every machine and in every Python."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56


def is_remote(url: str) -> bool:
    """True for fsspec URLs other than ``file://``."""
    return "://" in url and not url.startswith("file://")


def book_id(name: str) -> str:
    """``train/11.txt`` -> ``11``."""
    return PurePosixPath(name).stem


def split_of(name: str, split: SplitName | SplitShares | None) -> str:
    """The split of a document: the named one, or by the stable hash of its id."""
    if not isinstance(split, SplitShares):
        return split or ""
    share = stable_share(name)
    if share < split.test:
        return "test"
    return "validation" if share < split.test + split.validation else "train"


def split_of_file(source: Source, name: str) -> str | None:
    """The split of all documents in the file, None where that is not known without reading it."""
    if isinstance(source, Pg19):
        return name.split("/", maxsplit=1)[0] if "/" in name else None
    if isinstance(source, TextFiles):
        return split_of(text_id(name), source.split)
    if isinstance(source, Parquet | JsonLines) and isinstance(source.split, str):
        return source.split
    return None


def text_id(name: str) -> str:
    """``a/b.txt`` -> ``a/b``: the id of a plain text file's document."""
    return str(PurePosixPath(name).with_suffix("")) if "." in os.path.basename(name) else name
