"""Any files as a corpus: folders, globs and URLs of Parquet, JSON Lines and plain text, one shard a file.

What the readers of a study skip (undecodable, empty, NUL bytes) is skipped here too, and kept as a problem.
"""

from __future__ import annotations

import glob as globbing
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from cluster.storage import StorageError, check_bare
from stages.data.corpus.config import Columns, JsonLines, Parquet, TextFiles
from stages.data.corpus.files import ExternalFile, glob_of, is_remote, local_glob, remote, walk
from stages.data.corpus.opened import PACKED
from stages.data.corpus.readers import Raw, read
from stages.data.matching.shards import HashedText
from stages.stage import StageError

FileKind = Literal["parquet", "jsonl", "text"]
SUFFIXES: dict[str, FileKind] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
    ".tex": "text",
}
OTHERWISE_PACKED = (
    *(".7z", ".br", ".gzip", ".lz", ".lz4", ".lzma", ".lzo", ".rar", ".snappy", ".sz", ".tar", ".tbz2", ".tgz", ".txz"),
    *(".z", ".zip", ".zstd"),
)
"""Of files that hold text as likely as not, which is not read."""


class Stopped(Exception):
    """Reading was given up because the command is to end."""


@dataclass(frozen=True)
class FoundFile:
    """A file to read. ``name`` is what it is called in the audit, ``stamp`` changes when its content does."""

    name: str
    location: str
    kind: FileKind
    size: int
    stamp: str


def find(places: Sequence[str], kind: FileKind | None, option: str) -> tuple[list[FoundFile], list[str]]:
    """(files of the places, sorted by name, each once; what was left out: files of other kinds, links that lead out).

    A place is a file, a folder (with everything below it), a glob or an fsspec URL of these. A file named outright is
    text where its suffix says nothing; in folders and globs only SUFFIXES are taken. ``kind`` overrides the suffix.
    Raises StageError, naming ``option``, where a place holds nothing to read.
    """
    found: dict[str, tuple[str, FileKind, int, str]] = {}
    ignored: list[str] = []
    for place in places:
        if not place.strip():  # what a variable of the shell that is not set gives: not the working directory
            raise StageError("no name", field=option, value=place, allowed="a path, a glob or a URL", fix="give one")
        several, listed = _listed(place, option, ignored)
        taken = 0
        for location, size, stamp in listed:
            its = kind or _kind_of(location) or (None if several else "text")
            if its is None:
                ignored.append(location)
                continue
            taken += 1
            found[location] = (location, its, size, stamp)
        if not taken:
            others = f"; it holds {len(listed)} file(s) of other kinds, such as {listed[0][0]}" if listed else ""
            raise StageError(
                f"nothing to read there{others}",
                field=option,
                value=place,
                allowed=f"files, folders, globs or URLs of {', '.join(SUFFIXES)}, packed or not",
                fix="correct the path, or say what the files are with --format",
            )
    base = _common([location for location, *_ in found.values()])
    files = [
        FoundFile(location[len(base) :], location, its, size, stamp) for location, its, size, stamp in found.values()
    ]
    return sorted(files, key=lambda file: file.name), sorted(ignored)


def _kind_of(location: str) -> FileKind | None:
    return SUFFIXES.get(_suffix(location))


def _suffix(location: str) -> str:
    """What the file is once it is unpacked."""
    path = PurePosixPath(location.lower())
    return path.with_suffix("").suffix if path.suffix in PACKED else path.suffix


def otherwise_packed(location: str) -> bool:
    """By its name: in a way that is not unpacked here."""
    return _suffix(location) in OTHERWISE_PACKED


def _listed(place: str, option: str, left: list[str]) -> tuple[bool, list[tuple[str, int, str]]]:
    """(whether the place is a folder or a glob, (location, size, stamp) of its files). ``left``: see ``walk``."""
    if is_remote(place):
        try:
            check_bare(place, option)
            return _remote(place)
        except StorageError as error:
            raise StageError(str(error)) from error
        except Exception as error:  # each kind of storage raises its own; all mean: cannot be read from here
            raise StageError(
                f"cannot be read: {type(error).__name__}: {' '.join(str(error).split())}",
                field=option,
                value=place,
                fix="check URL, credentials and network; some protocols need a package of their own (s3fs, gcsfs)",
            ) from error
    path = os.path.abspath(os.path.expanduser(place.removeprefix("file://")))
    if os.path.isdir(path):
        several, names = True, list(_below(path, left))
    elif globbing.has_magic(path) and not os.path.lexists(path):
        several, names = True, local_glob(glob_of(path, os.path.lexists))
    else:
        several, names = False, [path] if os.path.isfile(path) else []
    listed = []
    for name in names:
        try:
            status = os.stat(name)
            listed.append((name, status.st_size, f"{status.st_size} {status.st_mtime_ns}"))
        except OSError:  # a link that leads nowhere: told of when it is to be read
            listed.append((name, 0, "not there"))
    return several, listed


def _below(folder: str, left: list[str]) -> Iterator[str]:
    """Files in and below a folder, links to folders followed; hidden ones are not part of a corpus, and go to
    ``left``."""
    for place, names in walk(folder, left):
        paths = [os.path.join(place, name) for name in names]
        left += [path for path, name in zip(paths, names, strict=True) if name.startswith(".")]
        yield from (path for path, name in zip(paths, names, strict=True) if not name.startswith("."))


def _remote(url: str) -> tuple[bool, list[tuple[str, int, str]]]:
    filesystem, path = remote(url)
    if globbing.has_magic(path) and not filesystem.exists(path):
        several, found = True, filesystem.glob(glob_of(path, filesystem.exists), detail=True)
    elif filesystem.isdir(path):
        several, found = True, filesystem.find(path, detail=True)
    else:
        several, found = False, {path: filesystem.info(path)}
    listed = []
    for name, info in found.items():
        if info.get("type") != "directory":
            tag = next((str(info[key]) for key in ("ETag", "etag", "md5Hash", "mtime", "created") if info.get(key)), "")
            size = int(info.get("size") or 0)
            listed.append((filesystem.unstrip_protocol(name), size, f"{size} {tag}"))
    return several, listed


def _common(locations: Sequence[str]) -> str:
    """What all locations begin with, up to a slash."""
    folders = [location.rpartition("/")[0].split("/") for location in locations]
    shared = [
        parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    ]
    return "/".join([*shared, ""])


@dataclass
class Reading:
    """What all shards of a scan share: how far it is, whether to stop, what could not be read. Threads write here."""

    columns: Columns
    encoding: tuple[str, ...] = ("utf-8",)
    heard: Callable[[int, int], None] = lambda documents, size: None
    stop: threading.Event = field(default_factory=threading.Event)
    faults: list[tuple[FileShard, StageError]] = field(default_factory=list)


@dataclass(frozen=True)
class FileShard:
    """One file, read as a stream. A text file is called by its name; a row by the id column, else by file and row.

    A repeated id gets ``#2``, ``#3``, ...; with several files the file's name stands before the id. ``notes`` is a
    local folder in which the problems of each file are kept.
    """

    number: int
    file: FoundFile
    alone: bool
    reading: Reading
    notes: Path

    @property
    def name(self) -> str:
        return f"{self.number:06d}"

    @property
    def size(self) -> int:
        return self.file.size

    def digest(self) -> str:
        """Of the file's place, size and time, not of its content."""
        identity = [self.file.location, self.file.stamp, self.file.kind, self.reading.columns.model_dump(), self.alone]
        identity.append(self.reading.encoding)
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def texts(self) -> Iterator[HashedText]:
        """Documents in order. Raises Stopped where the command is to end."""
        problems = []
        columns: set[str] = set()
        try:
            for raw in self.raws(columns):
                if raw.problem:
                    problems.append({"name": raw.id, "problem": raw.problem, "detail": raw.detail})
                    continue
                data = np.frombuffer(raw.text, np.uint8)
                yield HashedText(raw.id, hashlib.sha256(raw.text).hexdigest(), data)
                self.reading.heard(1, len(data))
                if self.reading.stop.is_set():
                    raise Stopped
        except StageError as error:  # of this file; the others may do
            self.reading.faults.append((self, error))
            problems.append(
                {"name": self.file.name, "problem": "unreadable", "detail": f"{error.message}: {error.value}"}
            )
        self.notes.mkdir(parents=True, exist_ok=True)
        notes = {"problems": problems, "columns": sorted(columns)}
        (self.notes / f"{self.name}-{self.digest()[:24]}.json").write_text(json.dumps(notes))

    def raws(self, columns: set[str] | None = None) -> Iterator[Raw]:
        """Documents as read, called by what they are called in the audit. Raises StageError for a file without the
        column of the text, and one that may not be read. ``columns`` takes up which columns the file has."""
        seen: dict[str, int] = {}  # name -> the last number that it got
        for raw in read(_source(self.file, self.reading), _external(self.file), columns):
            name = raw.id
            if not raw.problem:
                if self.file.kind != "text" and self.reading.columns.id is not None and not self.alone:
                    name = f"{self.file.name}:{name}"
                name = _apart(name, seen)
            yield Raw(name, raw.text, title=raw.title, problem=raw.problem, detail=raw.detail)

    def problems(self) -> list[dict[str, str]]:
        """What could not be read, once the file was."""
        return [{"file": self.file.name, **problem} for problem in self._told().get("problems", ())]

    def columns(self) -> list[str]:
        """Which of the columns that were asked for the file has, once it was read."""
        return list(self._told().get("columns", ()))

    def _told(self) -> dict[str, Any]:
        path = self.notes / f"{self.name}-{self.digest()[:24]}.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found


def _apart(name: str, seen: dict[str, int]) -> str:
    """``name``, or ``name#2``, ``name#3``, ... where it is taken."""
    new, number = name, seen.get(name, 1)
    while new in seen:
        number += 1
        new = f"{name}#{number}"
    seen[name] = number
    seen.setdefault(new, 1)
    return new


def _source(file: FoundFile, reading: Reading) -> Parquet | JsonLines | TextFiles:
    url: dict[str, Any] = {"name": "scan", "url": file.location, "split": "train"}
    if file.kind == "parquet":
        return Parquet(**url, columns=reading.columns)
    if file.kind == "jsonl":
        return JsonLines(**url, columns=reading.columns, encoding=reading.encoding)
    return TextFiles(**url, encoding=reading.encoding)


def _external(file: FoundFile) -> ExternalFile:
    return ExternalFile(file.name, file.location, file.size, "")
