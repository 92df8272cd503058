"""Work in parts that outlives a crash: what a part left in the step's work folder is not made again.

``spread_saved`` calls a function once for each item, by ``parallel.spread``. The function writes files into a folder
of its own and returns a small JSON value; folder and value are kept below ``work_url`` (any fsspec URL all nodes
reach), the value last, so a part is there whole or not at all. The next attempt at the step finds it by its
``identity``, a digest of all it follows from, and takes it over: a part made of other texts or rules is never taken,
nor one whose files are not what was written.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cluster import storage
from stages.data.parallel import Hands, spread

Work = TypeVar("Work")


@dataclass(frozen=True)
class Saved:
    """One part's result. value: what the function returned (JSON); url: the folder of its files; resumed: it was there
    before this attempt; files: size and sha256 of each of its files, known where storage is remote."""

    value: Any
    url: str
    resumed: bool
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    def take(self, name: str, target: Path) -> None:
        """Put the part's file ``name`` at ``target``."""
        take(storage.join(self.url, name), target)

    def place(self, name: str, target: Path) -> None:
        """Make the part's file ``name`` the output's file ``target``. On remote storage its bytes stay there: what is
        left at ``target`` is a reference (``storage.refer``), so the stage itself cannot read it."""
        if storage.local_path(self.url) is not None:
            self.take(name, target)
            return
        size, sha256 = self.files[name]
        storage.refer(target, storage.join(self.url, name), size, sha256)

    def on_disk(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """The part's file ``name`` on this machine's disk."""
        return on_disk(storage.join(self.url, name))


def take(url: str, target: Path) -> None:
    """Put the file at ``url`` at ``target`` (a hard link where that is possible: no copying)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    place = storage.local_path(url)
    if place is None:
        storage.get_file(*storage.filesystem(url), target)
        return
    try:
        os.link(place, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(place, target)


@contextlib.contextmanager
def on_disk(url: str) -> Iterator[Path]:
    """The file at ``url`` on this machine's disk; fetched, and removed afterwards, where storage is remote."""
    place = storage.local_path(url)
    if place is not None:
        yield place
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, url.rsplit("/", 1)[-1])
        storage.get_file(*storage.filesystem(url), place)
        yield place


@contextlib.contextmanager
def spill(work_url: str) -> Iterator[Path]:
    """A folder on this machine's disk for what is mapped: in the work folder where that is here."""
    place = storage.local_path(work_url)
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="spill-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def numbers(url: str, kind: Any, start: int, end: int) -> Any:
    """Numbers ``start`` to ``end`` (numpy array) of a file at ``url`` of nothing but numbers of one ``kind``."""
    import numpy as np

    size = np.dtype(kind).itemsize
    place = storage.local_path(url)
    if place is not None:
        return np.fromfile(place, kind, end - start, offset=start * size)
    if start == end:
        return np.empty(0, kind)
    filesystem, path = storage.filesystem(url)
    return np.frombuffer(filesystem.cat_file(path, start=start * size, end=end * size), kind)


def mapped(url: str, folder: Path | None = None) -> Any:
    """The Arrow file at ``url`` as a table: mapped, not read, where storage is on this machine or the file can be
    fetched into the folder ``folder``; else in memory."""
    import pyarrow as pa

    place = storage.local_path(url)
    if place is None and folder is None:
        filesystem, path = storage.filesystem(url)
        return pa.ipc.open_file(pa.py_buffer(filesystem.cat_file(path))).read_all()
    if place is None and folder is not None:
        place = folder / "-".join(url.rsplit("/", 2)[1:])
        storage.get_file(*storage.filesystem(url), place)
    return pa.ipc.open_file(pa.memory_map(str(place))).read_all()


def spread_saved(
    function: Callable[..., Any],
    items: Iterable[Work],
    work_url: str,
    *shared: Any,
    identity: Callable[..., str],
    worth_it: bool = True,
    hands: Hands | None = None,
    waiting: Callable[[], None] | None = None,
) -> Generator[Saved, None, None]:
    """Yield the result of ``function(item, folder, *shared)`` in the order of ``items``, each part made once a step.

    function, identity: picklable. The function writes files into the local ``folder`` (exists, empty) and returns a
    JSON value; ``identity(item, *shared)`` is a hex digest that changes whenever the result would; it too is computed
    in the task. The rest is as in ``parallel.spread``.
    """
    work = function, identity, work_url, *shared
    yield from spread(saved, items, *work, worth_it=worth_it, hands=hands, waiting=waiting)


def saved(item: Work, function: Callable[..., Any], identity: Callable[..., str], work_url: str, *shared: Any) -> Saved:
    """One part, as ``spread_saved`` makes it: taken over from below ``work_url``, or made and left there."""
    fs, work = storage.filesystem(work_url)
    digest = identity(item, *shared)[:24]
    known = storage.read_checked(fs, f"{work}/{digest}.json")
    if known is not None and _whole(fs, f"{work}/{known['folder']}", known["files"]):
        files = {name: (of["size"], of["sha256"]) for name, of in known["files"].items() if "sha256" in of}
        return Saved(known["value"], storage.join(work_url, known["folder"]), True, files)
    name = f"{digest}-{uuid.uuid4().hex[:12]}"  # a part made twice, by a task thought dead, never mixes its files
    if storage.is_local(fs):
        folder = Path(work) / name
        folder.mkdir(parents=True)
        value = function(item, folder, *shared)
        left = storage.fingerprints(fs, str(folder))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            value = function(item, Path(scratch), *shared)
            below = storage.files_below(Path(scratch))
            left = {file: {"size": path.stat().st_size, "sha256": _sha256(path)} for file, path in below}
            storage.put_tree(fs, f"{work}/{name}", Path(scratch))
    storage.write_checked(fs, f"{work}/{digest}.json", {"folder": name, "value": value, "files": left})
    files = {file: (of["size"], of["sha256"]) for file, of in left.items() if "sha256" in of}
    return Saved(value, storage.join(work_url, name), False, files)


def _whole(fs: Any, folder: str, files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Are the files of a part what was written? Remote ones by their size."""
    try:
        found = storage.fingerprints(fs, folder) if files else {}
    except OSError:
        return False
    return found == {name: {key: of[key] for key in of if key != "sha256"} for name, of in files.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
