"""The files of a source as they lie outside, by name and digest, and what their names alone say of their documents."""

from __future__ import annotations

import contextlib
import fnmatch
import glob as globbing
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stages.data.corpus.config import (
    CorpusSource,
    JsonLines,
    Parquet,
    Pg19,
    SplitName,
    SplitShares,
    TextFiles,
)
from stages.stage import StageError

HASHED_ALONE = 2**22  # bytes below which threads cost more than they save
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

    def __init__(self, path: Path | None, digests: Callable[[Sequence[str], int], list[str]] | None = None) -> None:
        """``digests``: how those of so many files of so many bytes are made; in threads of this process without."""
        self._path, self._digests = path, digests or _in_threads
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        if path is not None:
            try:
                known = json.loads(path.read_text())
            except (OSError, ValueError, RecursionError):
                known = {}  # a missing, torn or forbidden cache costs one more hashing, nothing else
            self._known = known if isinstance(known, dict) else {}

    def digests(self, files: Sequence[tuple[str, os.stat_result]]) -> list[str]:
        """``sha256:<hex>`` of the bytes of every file. Raises StageError for one that cannot be read."""
        found = [self._remembered(path, status) for path, status in files]
        new = [at for at, digest in enumerate(found) if not digest]
        made = self._digests([files[at][0] for at in new], sum(files[at][1].st_size for at in new))
        for at, digest in zip(new, made, strict=True):
            path, status = files[at]
            found[at] = digest
            if time.time_ns() - status.st_mtime_ns > RACY_NS:
                self._known[path] = [status.st_size, status.st_mtime_ns, digest]
                self._changed = True
        return found

    def _remembered(self, path: str, status: os.stat_result) -> str:
        known = self._known.get(path)
        if isinstance(known, list) and len(known) == 3 and known[:2] == [status.st_size, status.st_mtime_ns]:
            return str(known[2])
        return ""

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


def _in_threads(paths: Sequence[str], size: int) -> list[str]:
    """Hashing leaves the interpreter to others."""
    if len(paths) < 2 or size < HASHED_ALONE:
        return digests_of(paths)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(digest_of, paths))


def digests_of(paths: Sequence[str]) -> list[str]:
    """One after the other."""
    return [digest_of(path) for path in paths]


def digest_of(path: str) -> str:
    """``sha256:<hex>`` of a file's bytes. Raises StageError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StageError(
            f"cannot be read: {error.strerror}", field="file", value=path, fix="check its permissions, or remove it"
        ) from error


def default_cache() -> Path | None:
    """Where digests of unchanged external files are kept between commands; None without a home."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError:
        return None
    return Path(base) / "infini-study" / "digests.json"


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


def split_of_file(source: CorpusSource, name: str) -> str | None:
    """The split of all documents in the file, None where that is not known without reading it."""
    if isinstance(source, Pg19):
        return name.split("/", maxsplit=1)[0] if "/" in name else None
    if isinstance(source, TextFiles):
        return (
            None
            if source.papers and not isinstance(source.split, str)
            else split_of(without_suffix(name), source.split)
        )
    if isinstance(source, Parquet | JsonLines) and isinstance(source.split, str):
        return source.split
    return None


def without_suffix(name: str) -> str:
    """``a/b.txt`` -> ``a/b``: what the split of a text file goes by, so that a work is on one side in every format."""
    return str(PurePosixPath(name).with_suffix("")) if "." in os.path.basename(name) else name


def glob_of(place: str, exists: Callable[[str], bool]) -> str:
    """``place`` as a glob in which everything that is there by that very name stands for itself: names may hold
    ``[``, ``]``, ``*`` and ``?``. ``exists``: whether a path is there."""
    parts = place.split("/")
    if not globbing.has_magic(place):
        return place
    known = 0
    while known < len(parts) and (not parts[known] or exists("/".join(parts[: known + 1]))):
        known += 1
    return "/".join([*map(globbing.escape, parts[:known]), *parts[known:]])


def unescaped(part: str) -> str:
    """What ``glob.escape`` was given."""
    return re.sub(r"\[([*?[])\]", r"\1", part)


def walk(root: str, left: list[str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """(folder, its file names) of ``root`` and all below, links to folders followed, in order of the paths. Every
    folder comes once, under its own path where it has one below ``root``; hidden ones are left out, and links that
    lead back to a folder they stand in: ``left`` takes up the hidden ones, and those that lead out of ``root``, so that
    what lies there is nowhere else. Raises StageError for a folder that cannot be looked into."""
    found: list[tuple[str, list[str]]] = []
    seen: set[str] = set()
    roots = [root]
    while roots:
        links: list[str] = []
        for start in roots:
            if os.path.realpath(start) in seen:
                continue
            for folder, folders, names in os.walk(start, onerror=_refused):
                seen.add(os.path.realpath(folder))
                if left is not None:
                    left += [os.path.join(folder, name) for name in folders if name.startswith(".")]
                folders[:] = [name for name in folders if not name.startswith(".")]
                here = os.path.realpath(folder)
                paths = {name: os.path.join(folder, name) for name in folders}
                linked = [path for path in paths.values() if os.path.islink(path)]
                links += [path for path in linked if not _above(path, here)]
                if left is not None:
                    left += [path for path in linked if _above(path, here) and not _above(root, os.path.realpath(path))]
                folders[:] = [n for n, path in paths.items() if os.path.realpath(path) not in seen]
                found.append((folder, sorted(names)))
        roots = sorted(links)
    yield from sorted(found)


def _refused(error: OSError) -> None:
    if isinstance(error, NotADirectoryError | FileNotFoundError):  # a file, or gone in the meantime
        return
    raise StageError(
        f"cannot be read: {error.strerror}",
        field="folder",
        value=error.filename,
        fix="check its permissions, or leave it out",
    ) from error


def _above(link: str, folder: str) -> bool:
    """Does the link lead to the folder or to one that it lies in?"""
    target = os.path.realpath(link)
    return os.path.commonpath([target, folder]) == target


def local_glob(pattern: str) -> list[str]:
    """Files that match, sorted. As ``glob.glob(recursive=True)``, but ``**`` does not run in circles: see ``walk``.
    Raises StageError for a link that leads nowhere."""
    parts = pattern.split("/")
    first = parts.index("**") if "**" in parts else len(parts)
    found = _matched(parts[:first])
    if first < len(parts):
        roots, found = found, []
        for root in roots:
            for folder, names in walk(root or "."):
                inside = os.path.relpath(folder, root or ".")
                above = [] if inside == "." else inside.split(os.sep)
                found += [os.path.join(folder, n) for n in names if _fits([*above, n], parts[first:])]
    for name in found:
        if os.path.islink(name) and not os.path.exists(name):
            raise StageError(
                "a link that leads nowhere",
                field="file",
                value=name,
                fix="mend the link, or remove it",
            )
    return sorted({name for name in found if os.path.isfile(name)})


def _matched(parts: Sequence[str]) -> list[str]:
    """What is there by these names, of which each may be a pattern. Raises StageError for a folder on the way that
    cannot be looked into: what lies there would be left out in silence."""
    found = ["/" if parts[:1] == [""] else ""]
    for part in parts:
        before, found = found, []
        for place in before if part else ():
            try:
                if globbing.has_magic(part):
                    names = sorted(n for n in os.listdir(place or ".") if _fits([n], [part]))
                else:
                    os.lstat(os.path.join(place, part))
                    names = [part]
            except OSError as error:
                _refused(error)
            else:
                found += [os.path.join(place, name) for name in names]
        found = found if part else before
    return found


def _fits(names: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not names
    if pattern[0] == "**":
        return _fits(names, pattern[1:]) or (bool(names) and names[0][0] != "." and _fits(names[1:], pattern))
    if not names or (names[0][0] == "." and pattern[0][:1] != "."):
        return False
    return fnmatch.fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])


def remote(location: str) -> tuple[Any, str]:
    """(file system, path) of an fsspec URL as listings give it: ``::`` is part of the name, no chain."""
    import fsspec

    filesystem = fsspec.filesystem(location.split("://", 1)[0]) if "::" in location else None
    if filesystem is None:
        found: tuple[Any, str] = fsspec.core.url_to_fs(location)
        return found
    return filesystem, str(filesystem._strip_protocol(location))
