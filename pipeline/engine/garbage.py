"""What a store holds that nobody needs: found, and deleted where no driver is at work on it."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import storage
from pipeline.engine import lease as leases
from pipeline.engine.store import Store


@dataclass(frozen=True)
class Garbage:
    """Something no named study needs."""

    path: str
    bytes: int
    reason: str


def collect(
    store: Store,
    keep: set[str],
    *,
    delete: bool = False,
    ttl: float = leases.TTL,
    say: Callable[[str], None] = lambda text: None,
) -> list[Garbage]:
    """What nobody needs: artifacts outside ``keep``, attempts that lost, what cut off writes left. Dry unless
    ``delete``.

    A key whose lease beats is left alone: unreleased leases beside garbage are watched for up to ``ttl`` seconds,
    after ``say`` was told. The work folder of an unfinished step in ``keep`` stays, its checkpoints are what the
    next run resumes from. Raises IntegrityError before deleting anything.
    """
    found = _all_garbage(store, store.keys(), keep)
    held, silent = leases.watch(store.fs, [store.lease_folder(*place) for place in found], ttl=ttl, say=say)
    taken = []
    for request in silent if delete else ():  # so that a driver that was only frozen finds its lease lost
        lease = request.take()
        if isinstance(lease, leases.Lease):
            taken.append(lease)
        else:
            held.add(request.folder)
    # A driver may have committed and let go of its lease between the two looks: what both call garbage is some.
    again = _all_garbage(store, [place for place in found if store.lease_folder(*place) not in held], keep)
    garbage = [g for place, there in again.items() for g in there if g.path in {g.path for g in found[place]}]
    garbage += _cut_off(store, [store.base, f"{store.base}/studies"])
    garbage = [one for one in garbage if _inside(store, one.path, say)]
    if delete:
        for one in garbage:
            storage.remove_tree(store.fs, f"{one.path}.manifest.json")
            storage.remove_tree(store.fs, one.path)
        for lease in taken:
            lease.release()
    return garbage


def _inside(store: Store, path: str, say: Callable[[str], None]) -> bool:
    """Does it lie in the store itself? Behind a link it may be anybody's."""
    if not store.local:
        return True
    inside = Path(path).parent.resolve().is_relative_to(Path(store.base).resolve())
    if not inside:
        say(f"{path}: left alone, a link leads there, out of the store")
    return inside


def _all_garbage(
    store: Store, places: Iterable[tuple[str, str]], keep: set[str]
) -> dict[tuple[str, str], list[Garbage]]:
    """By (stage, key), those that have some."""
    pairs = list(places)
    found = zip(pairs, store.map(lambda pair: list(_garbage(store, *pair, keep)), pairs), strict=True)
    return {pair: garbage for pair, garbage in found if garbage}


def _garbage(store: Store, stage: str, key: str, keep: set[str]) -> Iterator[Garbage]:
    place = store.folder(stage, key)
    sizes = storage.sizes_below(store.fs, place)
    commit = store.lookup(stage, key)
    if key not in keep:
        if sizes or store.local:
            yield Garbage(place, sum(sizes.values()), "no named study needs it")
        return

    def below(folder: str) -> int:
        return sum(size for path, size in sizes.items() if path.startswith(f"{folder}/"))

    for name in store.attempts(stage, key):
        path = f"{place}/attempts/{name}"
        there = store.local or any(file.startswith((f"{path}/", f"{path}.")) for file in sizes)
        if there and (commit is None or name != commit.attempt):
            yield Garbage(path, below(path), "an attempt that was not committed")
    work = f"{place}/work"
    if commit is not None and (below(work) or (store.local and store.fs.exists(work))):
        yield Garbage(work, below(work), "left over after the commit")
    yield from _cut_off(store, [place, f"{place}/lease", f"{place}/attempts"])


def _cut_off(store: Store, folders: Iterable[str]) -> Iterator[Garbage]:
    """Files that a process killed in the middle of a write left in ``folders``; only local files are written beside
    their place. One younger than an hour, by the clock of the disk that they lie on, may still be written."""
    now = None
    for folder in folders if store.local else ():
        for name in store.names(folder):
            path = Path(folder) / name
            if re.fullmatch(r"\..+\.tmp|\.writable-.+", name):
                now = now or _time_there(store)
                with contextlib.suppress(FileNotFoundError):  # written to its end meanwhile
                    if now - path.stat().st_mtime > 3600:
                        yield Garbage(str(path), path.stat().st_size, "left by a write that was cut off")


def _time_there(store: Store) -> float:
    """What time a file gets that is written into the store now: a shared folder has its server's."""
    try:
        with tempfile.NamedTemporaryFile(dir=store.base, prefix=".time-") as file:
            return os.stat(file.name).st_mtime
    except OSError:  # a store that can only be read
        return time.time()
