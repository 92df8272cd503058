"""Leases: one holder, takeover only when stale, no silent end, judged by an injected clock."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from cluster import storage
from pipeline.engine.lease import Holder, Lease, LeaseRequest, current, this_process, watch


class Clock:
    """Seconds that pass when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path):
    url = str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"
    if request.param == "s3":
        url = request.getfixturevalue("s3_root")
    fs, path = storage.filesystem(url)
    return fs, f"{path}/lease"


def elsewhere():
    """A driver on another machine: whether it lives cannot be seen from here."""
    return replace(this_process(), machine="another machine", host="other")


def take(place, clock, owner=None) -> Lease | Holder:
    return LeaseRequest(*place, owner or elsewhere(), ttl=30, clock=clock).take()


def test_a_held_lease_names_its_holder_and_a_released_one_is_free(place, clock):
    lease = take(place, clock)
    second = LeaseRequest(*place, this_process(), ttl=30, clock=clock)
    holder = second.take()
    assert isinstance(holder, Holder) and str(holder.owner) == f"process {os.getpid()} on other"
    lease.release()
    successor = second.take()
    assert isinstance(successor, Lease) and successor.number == lease.number + 1


def test_of_many_racing_drivers_one_gets_it(place, clock):
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: take(place, clock), range(16)))
    assert sum(isinstance(result, Lease) for result in results) == 1


def test_a_lease_that_beats_is_never_stale_and_one_that_stops_is(place, clock):
    lease, waiting = take(place, clock), LeaseRequest(*place, elsewhere(), ttl=30, clock=clock)
    for _ in range(5):
        clock.now += 20
        assert lease.beat() and isinstance(waiting.take(), Holder)
    clock.now += 31
    taken = waiting.take()
    assert isinstance(taken, Lease)
    assert not lease.held() and not lease.beat() and "taken over by process" in (lease.lost or "")


def test_a_waiting_driver_trusts_its_own_clock_only(place, clock):
    take(place, clock)
    clock.now += 1e6  # the other machine's clock may be far off; what counts is how long it was seen unchanged
    assert isinstance(take(place, clock), Holder)


def test_the_lease_of_a_dead_process_of_this_machine_is_free_at_once(place, clock):
    gone = replace(this_process(), pid=2**22 + 1)
    reused_pid = replace(this_process(), started=1.0)
    for owner in (gone, reused_pid):
        assert isinstance(take(place, clock, owner), Lease)
    assert isinstance(take(place, clock), Lease)


@pytest.mark.parametrize("step", [4 * 3600, -4 * 3600])
def test_a_clock_that_is_set_takes_no_lease_from_a_process_that_lives(place, clock, monkeypatch, step):
    """After it the system says of every process that it began at another time."""
    take(place, clock)
    began = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: began(self) + step)
    assert isinstance(take(place, clock), Holder)


def test_failed_heartbeats_are_retried_and_reported_after_the_time_to_live(place, clock, monkeypatch):
    lease = take(place, clock)
    writes = storage.write_atomic

    def broken(*_):
        raise OSError("503 slow down")

    monkeypatch.setattr(storage, "write_atomic", broken)
    clock.now += 29
    assert lease.beat()
    monkeypatch.setattr(storage, "write_atomic", writes)
    assert lease.beat()  # mended: the count starts again
    monkeypatch.setattr(storage, "write_atomic", broken)
    clock.now += 31
    assert not lease.beat() and "503 slow down" in (lease.lost or "")


def test_losing_the_lease_calls_back_once_from_the_heartbeat(place, clock):
    import queue

    lost: queue.Queue[str] = queue.Queue()
    owner = elsewhere()
    lease = LeaseRequest(*place, owner, ttl=0.06, clock=clock).take()
    lease.start(lost.put)
    rival = replace(current(*place), number=lease.number + 1, owner=this_process())
    storage.create_exclusive(place[0], f"{place[1]}/{rival.number}.json", storage.to_json(asdict(rival)))
    assert "taken over" in lost.get(timeout=30)
    lease.release()
    assert lost.empty()


def test_a_zombie_that_beats_late_cannot_take_the_lease_back(place, clock):
    zombie, waiting = take(place, clock), LeaseRequest(*place, elsewhere(), ttl=30, clock=clock)
    late = storage.to_json(asdict(current(*place)))
    waiting.take()
    clock.now += 31
    new = waiting.take()
    storage.write_atomic(place[0], f"{place[1]}/{zombie.number}.json", late)  # on its way when it was overtaken
    assert new.held() and new.beat() and not zombie.held()
    zombie.release()
    assert isinstance(take(place, clock), Holder)


def test_watching_tells_leases_that_beat_from_silent_ones_whatever_their_clocks_say(place, clock, monkeypatch):
    fs, folder = place
    leases = {name: take((fs, f"{folder}/{name}"), clock) for name in ("beats", "silent", "released")}
    behind = time.time() - 4 * 3600
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: behind)  # of machines whose clocks are behind
        assert all(lease.beat() for lease in leases.values())
    leases["released"].release()
    said = []

    def pause(seconds: float) -> None:
        clock.now += 20
        leases["beats"].beat()

    folders = [f"{folder}/{name}" for name in (*leases, "never")]
    held, silent = watch(fs, folders, ttl=30, clock=clock, pause=pause, say=said.append)
    assert held == {f"{folder}/beats"} and [request.folder for request in silent] == [f"{folder}/silent"]
    assert said == ["watching the leases of 2 unfinished steps for a heartbeat, up to 30 s"]
    assert isinstance(silent[0].take(), Lease) and not leases["silent"].held()


def test_a_lease_that_was_deleted_is_lost(place, clock):
    lease = take(place, clock)
    place[0].rm(place[1], recursive=True)
    assert not lease.held() and not lease.beat()
