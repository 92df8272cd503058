"""Who computes a step: a lease with heartbeat beside the key, so that two drivers do not do the same work.

Below ``<root>/<stage>/<key>/lease/`` stand numbered files, ``1.json``, ``2.json``, ...; the highest number is the
lease. Taking over a stale or released lease is the conditional creation of the next number, which one of any number
of racing drivers wins, and nothing ever has to be deleted to take it. The number is a fencing token: whoever sees a
higher one has lost, and attempts carry it in their name.

A lease is stale when its file has not changed for ``ttl`` seconds *by the waiting driver's own clock* (clocks of two
machines need not agree), or at once when its process is known to be gone from this machine. The lease only saves
work: what protects the artifacts is the conditional commit (``store.py``).
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal

from cluster import storage
from cluster.noted import birth, is_running
from pipeline.engine.records import read_object, typed
from pipeline.errors import IntegrityError

TTL = 30.0  # seconds; a heartbeat every sixth of it rides out a few failed writes


@dataclass(frozen=True)
class Owner:
    """A driver process. ``machine`` tells process ids of different machines, boots and containers apart."""

    uuid: str
    host: str
    machine: str
    pid: int
    started: float  # of the process, as ``birth`` tells it; tells a reused pid apart

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def dead(self) -> bool:
        """True only if it ran on this machine and is certainly gone."""
        return self.machine == machine_id() and not is_running(self.pid, self.started)


@dataclass(frozen=True)
class Holder:
    """What a lease file says."""

    owner: Owner
    number: int
    beat: int
    time: float  # wall clock of the owner's machine, for people to read
    released: bool


@cache
def machine_id() -> str:
    """Host name, boot and process-id namespace: two equal ids mean pids can be compared."""
    parts = [platform.node()]
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        parts.append(file.read().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def this_process() -> Owner:
    """A new owner identity of this process."""
    return Owner(uuid.uuid4().hex, platform.node(), machine_id(), os.getpid(), birth(os.getpid()))


def _numbers(fs: Any, folder: str) -> list[int]:
    try:
        names = [str(name).rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(folder, detail=False)]
    except FileNotFoundError:
        return []
    return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())


def current(fs: Any, folder: str) -> Holder | None:
    """The holder named by the highest lease file, or None where there is none. Raises IntegrityError."""
    while numbers := _numbers(fs, folder):
        path = f"{folder}/{numbers[-1]}.json"
        try:
            data = storage.read_bytes(fs, path)
            if data is not None:
                return typed(Holder, read_object(data))
        except (ValueError, storage.NotAFile) as error:
            raise IntegrityError(f"{path}: not a lease ({error}). Fix: delete it if no run is active") from error
        # Superseded and cleaned up between the two looks, so there is a higher one now.
    return None


class LeaseRequest:
    """A driver's wish for one step's lease: ask ``take`` again and again, it never blocks.

    ``clock`` is monotonic seconds. Between calls it remembers since when the holder's file has not changed.
    """

    def __init__(
        self, fs: Any, folder: str, owner: Owner, *, ttl: float = TTL, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.fs, self.folder, self.owner, self.ttl, self.clock = fs, folder, owner, ttl, clock
        self._seen: Holder | None = None
        self._seen_at = 0.0

    def take(self) -> Lease | Holder:
        """The lease, or who has it. Storage errors are the caller's to retry."""
        holder = current(self.fs, self.folder)
        if holder is not None and not self._stale(holder):
            return holder
        number = 1 if holder is None else holder.number + 1
        mine = Holder(self.owner, number, 0, time.time(), False)
        created = storage.create_exclusive(self.fs, f"{self.folder}/{number}.json", storage.to_json(asdict(mine)))
        numbers = _numbers(self.fs, self.folder)
        if created and numbers[-1] == number:
            for older in numbers[:-1]:
                with contextlib.suppress(OSError):  # two takers in a row may clean up the same file
                    self.fs.rm_file(f"{self.folder}/{older}.json")
            return Lease(self.fs, self.folder, mine, ttl=self.ttl, clock=self.clock)
        winner = current(self.fs, self.folder)
        assert winner is not None  # files are only ever superseded by a higher number
        return winner

    def state(self) -> Literal["free", "silent", "held", "unknown"]:
        """Whose the lease is, as far as earlier calls tell: nobody's; of a holder that ``take`` would take it from; of
        one that was seen to beat; or not watched for long enough. Nothing is taken."""
        holder, before = current(self.fs, self.folder), self._seen
        if holder is None or holder.released:
            return "free"
        if self._stale(holder):
            return "silent"
        return "held" if before is not None and before != holder else "unknown"

    def _stale(self, holder: Holder) -> bool:
        if holder.released or holder.owner.dead():
            return True
        if self._seen != holder:
            self._seen, self._seen_at = holder, self.clock()
            return False
        return self.clock() - self._seen_at > self.ttl


def watch(
    fs: Any,
    folders: Iterable[str],
    *,
    ttl: float = TTL,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[set[str], list[LeaseRequest]]:
    """Those of the lease folders that a driver holds, seen from its heartbeat, and a request for each that has been
    silent for ``ttl`` seconds, which can take it at once. Clocks are not compared. ``say``: told if it takes time."""
    owner, held, silent, said = this_process(), set[str](), [], False
    waiting = [LeaseRequest(fs, folder, owner, ttl=ttl, clock=clock) for folder in folders]
    while waiting:
        unknown = []
        for request in waiting:
            state = request.state()
            if state == "unknown":
                unknown.append(request)
            elif state == "held":
                held.add(request.folder)
            elif state == "silent":
                silent.append(request)
        if unknown and not said:
            said = True
            say(f"watching the leases of {len(unknown)} unfinished steps for a heartbeat, up to {ttl:g} s")
        if waiting := unknown:
            pause(ttl / 30)
    return held, silent


class Lease:
    """A lease this process holds. ``start`` beats in a thread until ``release`` or loss."""

    def __init__(self, fs: Any, folder: str, holder: Holder, *, ttl: float, clock: Callable[[], float]) -> None:
        self.fs, self.folder, self.ttl, self.clock = fs, folder, ttl, clock
        self.number = holder.number
        self.lost: str | None = None  # why, once it is lost
        self._holder = holder
        self._beaten_at = clock()
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, on_lost: Callable[[str], None]) -> None:
        """Beat every ``ttl / 6`` seconds; call ``on_lost(reason)`` once, from that thread, if it is lost."""

        def keep() -> None:
            while not self._end.wait(self.ttl / 6):
                if not self.beat():
                    assert self.lost is not None
                    on_lost(self.lost)
                    return

        self._thread = threading.Thread(target=keep, name=f"lease {self.folder}", daemon=True)
        self._thread.start()

    def beat(self) -> bool:
        """Renew; False once the lease is lost, because another driver took it or because it could not be
        renewed for longer than the time to live. Anything that goes wrong is tried again at the next beat."""
        with self._lock:
            if self.lost is not None or self._end.is_set():
                return self.lost is None
            try:
                if not self._check():
                    return False
                self._write(replace(self._holder, beat=self._holder.beat + 1, time=time.time()))
                self._beaten_at = self.clock()
            except Exception as error:  # an error here must never end the heartbeat silently
                if self.clock() - self._beaten_at > self.ttl:
                    self.lost = (
                        f"the heartbeat could not be written for {self.ttl:g} s: {type(error).__name__}: {error}"
                    )
            return self.lost is None

    def held(self) -> bool:
        """Is it still ours, asked of the storage? Raises the storage's errors; call before a commit."""
        with self._lock:
            return self.lost is None and self._check()

    def release(self) -> None:
        """Stop beating and let the next driver take over at once. Best effort: an unreleased lease goes stale."""
        self._end.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=self.ttl)
        with self._lock, contextlib.suppress(Exception):
            if self.lost is None and self._check():
                self._write(replace(self._holder, released=True, time=time.time()))

    def _check(self) -> bool:
        highest = max(_numbers(self.fs, self.folder), default=0)
        if highest > self.number:
            holder = current(self.fs, self.folder)
            self.lost = f"taken over by {holder.owner if holder else 'another driver'}"
        elif highest < self.number:
            self.lost = "deleted as garbage"
        return self.lost is None

    def _write(self, holder: Holder) -> None:
        storage.write_atomic(self.fs, f"{self.folder}/{self.number}.json", storage.to_json(asdict(holder)))
        self._holder = holder
