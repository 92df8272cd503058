"""Work in parts that outlives a crash: what a part left in the step's work folder is not made again.

``spread_saved`` calls a function once for each item, by ``parallel.spread``. The function writes files into a folder
of its own and returns a small JSON value; folder and value are kept below ``work_url`` (any fsspec URL all nodes
reach), the value last, so a part is there whole or not at all. The next attempt at the step finds it by its
``identity``, a digest of all it follows from, and takes it over: a part made of other texts or rules is never taken.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cluster import storage
from stages.data.parallel import Hands, spread

Item = TypeVar("Item")


@dataclass(frozen=True)
class Saved:
    """One part's result. value: what the function returned (JSON); url: the folder of its files; resumed: it was there
    before this attempt."""

    value: Any
    url: str
    resumed: bool

    def take(self, name: str, target: Path) -> None:
        """Put the part's file ``name`` at ``target``."""
        take(storage.join(self.url, name), target)

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


def spread_saved(
    function: Callable[..., Any],
    items: Iterable[Item],
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


def saved(item: Item, function: Callable[..., Any], identity: Callable[..., str], work_url: str, *shared: Any) -> Saved:
    """One part, as ``spread_saved`` makes it: taken over from below ``work_url``, or made and left there."""
    fs, work = storage.filesystem(work_url)
    digest = identity(item, *shared)[:24]
    try:
        known = storage.read_json(fs, f"{work}/{digest}.json")
    except ValueError:
        known = None  # half-written by a store that does not write whole files: made again
    if known is not None:
        return Saved(known["value"], storage.join(work_url, known["folder"]), True)
    name = f"{digest}-{uuid.uuid4().hex[:12]}"  # a part made twice, by a task thought dead, never mixes its files
    if storage.is_local(fs):
        folder = Path(work) / name
        folder.mkdir(parents=True)
        value = function(item, folder, *shared)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            value = function(item, Path(scratch), *shared)
            storage.put_tree(fs, f"{work}/{name}", Path(scratch))
    storage.write_atomic(fs, f"{work}/{digest}.json", storage.to_json({"folder": name, "value": value}))
    return Saved(value, storage.join(work_url, name), False)
