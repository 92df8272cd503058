"""A committed artifact seen from a step: its manifest, and its files on local disk whatever the store's URL.

Reached through ``Store.artifact``; picklable, so that any worker on any node can open it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import storage
from pipeline.engine.records import typed_json
from pipeline.errors import IntegrityError


@dataclass(frozen=True)
class Entry:
    """One file of a manifest: posix path below the artifact, size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    """What a manifest says."""

    files: tuple[Entry, ...]


_DIGESTS: dict[tuple[int, int, int, int], str] = {}
"""sha256 of the files this process has read whole, by device, inode, size and time of change in ns."""


def sha256_file(path: Path, again: bool = False) -> str:
    """Hex digest of a local file, read once in this process (``again``: in any case). Raises FileNotFoundError and
    NotAFile."""
    with storage.open_local(path) as file:
        status = os.fstat(file.fileno())
        known = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if again or known not in _DIGESTS:
            _DIGESTS[known] = hashlib.file_digest(file, "sha256").hexdigest()
    return _DIGESTS[known]


def build_manifest(folder: Path) -> tuple[bytes, list[Entry]]:
    """The manifest of every file below ``folder``, after making each durable. Depends on names and bytes only. A
    reference counts as the file it stands for."""
    meant = storage.references_below(folder)
    entries = [Entry(name, said["size"], said["sha256"]) for name, said in meant.items()]
    for name, path in storage.files_below(folder):
        if name.endswith(storage.REFERENCE):
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        entries.append(Entry(name, path.stat().st_size, digest))
    entries.sort(key=lambda entry: entry.path)
    body = {"files": [{"path": e.path, "size": e.size, "sha256": e.sha256} for e in entries]}
    return storage.to_json(body), entries


def parse_manifest(data: bytes | None, where: str, sha256: str, fix: str) -> dict[str, Entry]:
    """The entries by path. Raises IntegrityError if the file is missing or not the committed one."""
    if data is None:
        raise IntegrityError(f"{where}: the manifest of a committed artifact is missing. Fix: {fix}")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise IntegrityError(f"{where}: the manifest is not the one that was committed. Fix: {fix}")
    try:
        entries = typed_json(_Manifest, data).files
    except ValueError as error:
        raise IntegrityError(f"{where}: not a readable manifest ({error}). Fix: {fix}") from error
    for entry in entries:
        if entry.path.startswith("/") or ".." in entry.path.split("/"):
            raise IntegrityError(f"{where}: names {entry.path!r}, which is no file of the artifact. Fix: {fix}")
    return {entry.path: entry for entry in entries}


@dataclass
class StoredArtifact:
    """Implements ``stages.stage.Artifact``.

    ``base`` is the URL of the committed attempt's folder. Of a local store the files are used in place; from
    another they are fetched one by one into ``cache``, and again where what lies there is damaged. The sha256 of
    every file is checked before its first use in a process.
    """

    stage: str
    key: str
    base: str
    manifest_sha256: str
    cache: str
    summary: Mapping[str, Any] = field(default_factory=dict)
    _manifest: dict[str, Entry] | None = field(default=None, repr=False)
    _checked: set[str] = field(default_factory=set, repr=False)

    @property
    def fix(self) -> str:
        """What repairs a damaged artifact."""
        return f"make it again with --force {self.stage}"

    @property
    def manifest(self) -> dict[str, Entry]:
        """Entries by path, sorted. Raises IntegrityError."""
        if self._manifest is None:
            fs, path = storage.filesystem(f"{self.base}.manifest.json")
            try:
                data = storage.read_bytes(fs, path)
            except storage.NotAFile as error:
                raise IntegrityError(f"{path}: no manifest ({error.strerror}). Fix: {self.fix}") from error
            self._manifest = parse_manifest(data, path, self.manifest_sha256, self.fix)
        return self._manifest

    def path(self, name: str = "") -> Path:
        """Local path of the file or folder ``name``; see ``stages.stage.Artifact``.

        Raises FileNotFoundError for a name the artifact never had, IntegrityError for a file that is gone or damaged.
        """
        wanted = list(self._entries(name.strip("/")))
        folder = storage.local_path(self.base)
        if folder is None:
            folder = self.copies
            self._fetch(folder, wanted)
        for entry in wanted:
            if entry.path not in self._checked:
                self._check(folder / entry.path, entry)
                self._checked.add(entry.path)
        return folder / name if name else folder

    def sizes(self, name: str = "") -> Mapping[str, int]:
        """See ``stages.stage.Artifact``."""
        return {entry.path: entry.size for entry in self._entries(name.strip("/"))}

    @property
    def place(self) -> str:
        """The artifact's folder for people to read: a local path, or the URL of a remote one. Nothing is fetched."""
        return str(storage.local_path(self.base) or self.base)

    @property
    def copies(self) -> Path:
        """Folder on this machine for files fetched from a remote store."""
        return Path(self.cache) / self.stage / self.key / self.base.rsplit("/", 1)[-1]

    def json(self, name: str) -> Any:
        """The parsed JSON file ``name``."""
        return json.loads(self.path(name).read_text(encoding="utf-8"))

    def damages(self, deep: bool) -> Iterator[str]:
        """One line per file that is missing, has another size or (``deep``) another sha256: in the store itself, and
        among the copies this machine keeps of a remote store's files."""
        fs, base = storage.filesystem(self.base)
        sizes = storage.sizes_below(fs, base)
        for entry in self.manifest.values():
            where = f"{base}/{entry.path}"
            if where not in sizes:
                yield f"{where}: missing"
            elif sizes[where] != entry.size:
                yield f"{where}: {sizes[where]} bytes instead of {entry.size}"
            elif deep:
                with fs.open(where, "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                        yield f"{where}: sha256 differs from the manifest"
            copy = self.copies / entry.path
            if deep and not storage.is_local(fs) and copy.is_file() and sha256_file(copy, again=True) != entry.sha256:
                yield f"{copy}: this machine's copy differs from the manifest. Fix: delete it, it is fetched again"

    def _entries(self, name: str) -> Iterator[Entry]:
        found = [e for p, e in self.manifest.items() if not name or p == name or p.startswith(name + "/")]
        if not found:
            names = ", ".join(sorted({p.split("/")[0] for p in self.manifest})[:12])
            raise FileNotFoundError(f"artifact {self.stage} {self.key[:12]}: no file {name!r} (there are: {names})")
        yield from found

    def _fetch(self, folder: Path, entries: list[Entry]) -> None:
        fs, base = storage.filesystem(self.base)
        for entry in entries:
            target = folder / entry.path
            if target.is_file() and (entry.path in self._checked or sha256_file(target) == entry.sha256):
                continue
            part = target.with_name(f".{target.name}.{os.getpid()}.fetched")
            try:
                try:
                    storage.get_file(fs, f"{base}/{entry.path}", part, entry.size)
                except FileNotFoundError:
                    raise IntegrityError(f"{base}/{entry.path}: missing from the store. Fix: {self.fix}") from None
                if sha256_file(part, again=True) != entry.sha256:
                    raise IntegrityError(f"{base}/{entry.path}: sha256 differs from the manifest. Fix: {self.fix}")
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)

    def _check(self, path: Path, entry: Entry) -> None:
        try:
            size = path.stat().st_size
            digest = sha256_file(path) if size == entry.size else ""
        except (FileNotFoundError, NotADirectoryError):
            raise IntegrityError(f"{path}: missing from the store. Fix: {self.fix}") from None
        except storage.NotAFile as error:
            raise IntegrityError(f"{path}: {error.strerror}. Fix: {self.fix}") from None
        if size != entry.size:
            raise IntegrityError(f"{path}: {size} bytes instead of {entry.size}. Fix: {self.fix}")
        if digest != entry.sha256:
            raise IntegrityError(f"{path}: sha256 differs from the manifest. Fix: {self.fix}")
