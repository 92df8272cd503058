"""One fault injector for all tests: plan a fault at a named point, in whatever process reaches it.

    faults = Faults(tmp_path / "faults")
    faults.fail_at("make", "half written", kind="sigkill")   # the next process that calls
    faults.reach("make", "half written")                     # this dies there

Plans and visits are files, so the injector works across drivers, Ray workers and restarts, and every planned fault
happens exactly once. It can be pickled or rebuilt from its folder. Points are named by the code under test (``toys``,
``driver``), or are all of a process's writes (``writes``). Beside it: ``damage`` (files that were written), ``proxy``
(a network that fails), ``nodes`` (machines that fail).
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.stage import StageError

Kind = Literal["raise", "stage_error", "oserror", "disk_full", "denied", "read_only", "sigkill", "kill_driver", "wait"]
ERRORS = {"disk_full": errno.ENOSPC, "denied": errno.EACCES, "read_only": errno.EROFS}
PATIENCE = 120.0  # seconds a waiting process waits for its release before the test is told


_PAST = (".visit", ".spent")


class InjectedFault(Exception):
    """What ``raise`` raises."""


@dataclass(frozen=True)
class Faults:
    """The faults planned in ``directory``."""

    directory: Path

    def fail_at(self, stage: str, point: str, *, times: int = 1, kind: Kind = "raise") -> None:
        """What the next ``times`` visits to the point end in: an exception (``raise``, ``stage_error``, ``oserror``,
        or the system's own for a full disk, a read-only one, a refusal: ``disk_full``, ``read_only``, ``denied``),
        the visiting process's death (``sigkill``) or the driver's (``kill_driver``), or a ``wait`` for ``release``."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for _ in range(times):
            (self.directory / f"{self.slug(stage, point)}.{uuid.uuid4().hex}.{kind}").touch()

    def reach(self, stage: str, point: str) -> None:
        """Called by the code under test at the point; counts the visit and commits the fault planned for it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        slug = self.slug(stage, point)
        kind = self._take(slug)  # before the visit is told: who waits for the visit may interrupt at once
        (self.directory / f"{slug}.{uuid.uuid4().hex}.visit").touch()
        if kind:
            self._commit(kind, f"{stage}: {point}")

    def visits(self, stage: str, point: str) -> int:
        """How often the point was reached, in all processes."""
        return len(list(self.directory.glob(f"{self.slug(stage, point)}.*.visit")))

    def planned(self, stage: str) -> set[str]:
        """Slugs of the stage's points that a fault is planned for and has not yet happened at."""
        plans = (path for path in self.directory.glob(f"{self.slug(stage, '')}*") if path.suffix not in _PAST)
        return {path.name.split(".")[0] for path in plans}

    @staticmethod
    def slug(stage: str, point: str) -> str:
        """The point as part of a file's name."""
        return re.sub(r"[^A-Za-z0-9_-]+", "-", f"{stage}--{point}")

    def release(self) -> None:
        """Let every waiting process, and every later one, go on."""
        (self.directory / "release").touch()

    def driver_is(self, pid: int) -> None:
        """Name the process that ``kill_driver`` kills."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "driver").write_text(str(pid))

    def await_visit(self, stage: str, point: str) -> None:
        """Return once some process has reached the point."""
        _until(lambda: self.visits(stage, point) > 0, f"nobody reached {stage}: {point}")

    def _take(self, slug: str) -> str | None:
        """Take the first fault planned for a point: its kind, ``None`` where there is none."""
        for plan in sorted(self.directory.glob(f"{slug}.*")):
            if plan.suffix in _PAST:
                continue
            try:
                plan.rename(plan.with_suffix(".spent"))
            except FileNotFoundError:
                continue  # another process took this one
            return plan.suffix[1:]
        return None

    def _commit(self, kind: str, where: str) -> None:
        if kind == "kill_driver":
            os.kill(int((self.directory / "driver").read_text()), signal.SIGKILL)
        if kind in ("kill_driver", "wait"):
            _until((self.directory / "release").exists, f"nobody released {where}")
        else:
            happen(kind, where)


def happen(kind: str, where: str) -> None:
    """The fault itself, here and now."""
    if kind == "stage_error":
        raise StageError("injected", field="point", value=where, allowed="none", fix="run again")
    if kind == "oserror":
        raise OSError(f"injected at {where}")
    if kind in ERRORS:
        raise OSError(ERRORS[kind], f"{os.strerror(ERRORS[kind])} (injected)", where)
    if kind == "sigkill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise InjectedFault(f"injected at {where}")


def _until(true: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(otherwise)
        time.sleep(0.01)  # another process decides; files have nothing to block on
