"""Work in parts that outlives a crash: what a part left in the step's work folder is not made again.

``spread_saved`` calls a function once for each item, by ``parallel.spread``. The function writes files into a folder
of its own and returns a small JSON value; folder and value are kept below ``work_url`` (any fsspec URL all nodes
reach), the value last, so a part is there whole or not at all. The next attempt at the step finds it by the item's
position and ``identity`` and takes it over.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stages.data.corpus.parallel import spread

Item = TypeVar("Item")


@dataclass(frozen=True)
class Saved:
    """One part's result. value: what the function returned (JSON); url: the folder of its files; resumed: it was there
    before this attempt."""

    value: Any
    url: str
    resumed: bool

    def take(self, name: str, target: Path) -> None:
        """Put the part's file ``name`` at ``target`` (a hard link where that is possible: no copying)."""
        from cluster.storage import filesystem, get_file, is_local

        fs, folder = filesystem(self.url)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not is_local(fs):
            get_file(fs, f"{folder}/{name}", target)
            return
        try:
            os.link(f"{folder}/{name}", target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(f"{folder}/{name}", target)


def spread_saved(
    function: Callable[..., Any],
    items: Iterable[Item],
    work_url: str,
    *shared: Any,
    identity: Callable[[Item], str],
    worth_it: bool = True,
) -> Iterator[Saved]:
    """Yield the result of ``function(item, folder, *shared)`` in the order of ``items``, each part made once a step.

    function: picklable; writes files into the local ``folder`` (exists, empty) and returns a JSON value. identity: a
    text that changes whenever the item's result would. The rest is as in ``parallel.spread``.
    """
    parts = ((index, identity(item), item) for index, item in enumerate(items))
    yield from spread(_part, parts, function, work_url, shared, worth_it=worth_it)


def _part(part: tuple[int, str, Any], function: Callable[..., Any], work_url: str, shared: tuple[Any, ...]) -> Saved:
    from cluster.storage import filesystem, is_local, put_tree, read_json, write_atomic

    index, identity, item = part
    fs, work = filesystem(work_url)
    record = f"{work}/{index:06d}.json"
    try:
        known = read_json(fs, record)
    except ValueError:
        known = None  # half-written by a store that does not write whole files: made again
    if known is not None and known["identity"] == identity:
        return Saved(known["value"], f"{work_url.rstrip('/')}/{known['folder']}", True)
    name = f"{index:06d}-{uuid.uuid4().hex[:12]}"  # a part made twice, by a task thought dead, never mixes its files
    if is_local(fs):
        folder = Path(work) / name
        folder.mkdir(parents=True)
        value = function(item, folder, *shared)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            value = function(item, Path(scratch), *shared)
            put_tree(fs, f"{work}/{name}", Path(scratch))
    write_atomic(fs, record, json.dumps({"identity": identity, "folder": name, "value": value}).encode())
    return Saved(value, f"{work_url.rstrip('/')}/{name}", False)
