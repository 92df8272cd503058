"""Disks that fill up or turn read-only, and clocks that are wrong: said in a line, and the next run ends the same."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.engine.store import Store
from tests.faults import Faults
from tests.faults.drivers import contents, driver, result, sound


class Disk:
    """A small file system of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.root, self.filler = folder, folder / "root", folder / "filler"
        self.mounted = self._mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder))

    def _mount(self, *arguments: str) -> bool:
        return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0

    def fill(self) -> None:
        """Leave no room."""
        with contextlib.suppress(OSError), self.filler.open("ab", 0) as file:
            while True:
                file.write(bytes(1 << 12))

    def free(self) -> None:
        self.filler.unlink()

    def read_only(self, yes: bool) -> None:
        """Refuse writes, as a disk with faults does."""
        assert self._mount("-o", f"remount,{'ro' if yes else 'rw'}", str(self.folder))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    if not disk.mounted:
        pytest.skip("this user may not mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk.folder)], capture_output=True, check=False)


@pytest.mark.parametrize("step", ["make", "count"])
def test_a_full_disk_is_one_line_with_its_fix(step: str, disk: Disk, faults: Faults, expected: dict[str, str]):
    faults.fail_at(step, "half", kind="wait")
    running = driver(disk.root, faults)
    faults.await_visit(step, "half")
    disk.fill()
    faults.release()
    failed = result(running)
    assert failed["exit"] == 1
    (message,) = failed["messages"].values()
    assert message.startswith("No space left on device") and "Fix: make room and run again" in message
    disk.free()
    assert result(driver(disk.root, faults))["digests"] == expected
    assert sound(Store(disk.root)) == expected


def test_a_disk_that_is_full_before_the_log_has_a_line_is_told_the_same(
    disk: Disk, faults: Faults, expected: dict[str, str]
):
    faults.fail_at("driver", "leased", kind="wait")
    running = driver(disk.root, faults)
    faults.await_visit("driver", "leased")
    disk.fill()
    faults.release()
    failed = result(running)
    assert failed["exit"] == 1 and "Traceback" not in failed["errors"]
    (message,) = failed["messages"].values()
    assert message.startswith("No space left on device") and "Fix: make room and run again" in message
    disk.free()
    assert result(driver(disk.root, faults))["digests"] == expected


def test_a_disk_that_turns_read_only_is_said_and_the_next_run_goes_on(
    disk: Disk, faults: Faults, expected: dict[str, str]
):
    faults.fail_at("count", "half", kind="wait")
    running = driver(disk.root, faults)
    faults.await_visit("count", "half")
    disk.folder.joinpath("busy").touch()
    subprocess.run(["mount", "-o", "remount,ro,force", str(disk.folder)], capture_output=True, check=False)
    turned = not os.access(disk.folder, os.W_OK)
    faults.release()
    first = result(running)
    if turned:
        assert first["exit"] == 1 and "Read-only file system" in next(iter(first["messages"].values()))
        refused = driver(disk.root, faults)
        assert "Read-only file system" in refused.communicate(timeout=60)[1] and refused.returncode
        disk.read_only(False)
    assert result(driver(disk.root, faults))["digests"] == expected


@pytest.mark.parametrize("kind", ["disk_full", "denied", "read_only"])
@pytest.mark.parametrize(
    "where",
    ["open count/*/work/*checkpoint.json*", "open count/*/attempts/*/page.html", "link make/*/COMMIT.json"],
    ids=["in training", "in the output", "at the commit"],
)
def test_a_write_that_is_refused_fails_its_step_in_a_line_and_can_be_done_again(
    kind: str, where: str, tmp_path: Path, faults: Faults, expected: dict[str, str]
):
    pattern = {"open count/*/work/*checkpoint.json*": "open count/*/work/.checkpoint.json.*.tmp"}.get(where, where)
    faults.fail_at("write", pattern, kind=kind)  # type: ignore[arg-type]
    failed = result(driver(tmp_path / "root", faults))
    assert faults.visits("write", pattern) == 1
    assert failed["exit"] == 1 and "(injected)" in next(iter(failed["messages"].values()))
    assert "Traceback" not in failed["errors"]
    assert result(driver(tmp_path / "root", faults))["digests"] == expected


@pytest.mark.parametrize("ahead", [4 * 3600, -4 * 3600])
def test_a_clock_that_is_four_hours_off_takes_no_lease_and_loses_none(
    ahead: int, tmp_path: Path, faults: Faults, expected: dict[str, str]
):
    """The driver with the wrong clock waits for the one that computes, and then the other way round."""
    for number, (first, second) in enumerate(((f"clock={ahead}", "clock=0"), ("clock=0", f"clock={ahead}"))):
        mine = Faults(tmp_path / f"faults{number}")
        mine.fail_at("make", "half", kind="wait")
        root = tmp_path / f"root{number}"
        holder = driver(root, mine, "1.0", first)
        mine.await_visit("make", "half")
        waiter = driver(root, mine, "1.0", second)
        time.sleep(1.8)  # longer than the lease lasts without a heartbeat
        assert waiter.poll() is None and mine.visits("make", "start") == 1
        mine.release()
        done = [result(holder), result(waiter)]
        assert [one["digests"] for one in done] == [expected] * 2
        assert done[0]["states"]["make"] == "done" and "lost" not in done[0]["errors"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", ["tokenize", "pretrain"])
def test_a_disk_that_fills_up_in_a_real_stage(
    stage: str, disk: Disk, faults: Faults, tiny: Path, promised: dict[str, str]
):
    running = driver(disk.root, faults, f"study={tiny}", "until=pretrain")
    end = time.monotonic() + 200
    while not list(disk.root.glob(f"{stage}/*/attempts")) and running.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    disk.fill()
    failed = result(running, timeout=200)
    assert failed["exit"] == 1, failed["errors"][-2000:]
    message = next(iter(failed["messages"].values()))
    assert message.startswith("No space left on device") and "Fix: make room" in message
    disk.free()
    done = result(driver(disk.root, faults, f"study={tiny}", "until=pretrain"), timeout=280)
    assert done["exit"] == 0, done["errors"][-2000:]
    made = contents(Store(disk.root))
    assert "pretrain/local/0" in made and made == {step: promised[step] for step in made}
