"""``python -m tests.faults.boundaries STUDY FOLDER COUNT SEED [STAGE...]``: steps of a study, killed at their writes.

A clean run first, in this process, which then has everything imported. Then, for each stage and each kind of write it
makes (``writes``), a forked child makes the step and dies by SIGKILL right before that write; another makes it again,
and what it commits is compared with the clean run's. With COUNT > 0 then a soak: that many random faults (SIGKILL, a
full disk, a refusal, a read-only disk; damage to what is unfinished) at random writes, one study after the other.

Prints one JSON line: {"stages": {stage: {"points": n, "survived": n}}, "soak": {...}, "failures": [...], ...}.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from pipeline.engine import execute as executor
from pipeline.engine.garbage import collect
from pipeline.engine.plan import Plan, Selection, decide
from pipeline.engine.progress import Display
from pipeline.engine.store import Store
from pipeline.study.graph import expand
from pipeline.study.load import load
from stages.stage import Execution
from tests.faults import Faults
from tests.faults.damage import damage_something
from tests.faults.drivers import content
from tests.faults.writes import watch_nth_write, watch_writes

STEPS_OF = {"evaluate": "evaluate/infini-delta/0", "pretrain": "pretrain/infini-delta/0"}  # else a stage's first
SOAK_KINDS = ("sigkill", "sigkill", "sigkill", "disk_full", "denied", "read_only", "damage")


def carry_out(plan: Plan, root: Path, *until: str) -> executor.Outcome:
    """The plan, or what these steps need of it and they, in this process."""
    store = Store(root)
    decisions = decide(plan, store, Selection(until=until))
    return executor.execute(
        plan, decisions, store, execution=Execution(), address="inline", display=Display(quiet=True), poll=0.02
    )


def forked(work: Callable[[], int], log: Path) -> int:
    """``work`` in a child; its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            with log.open("ab", 0) as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


class Harness:
    """A study, its clean run (of all its stages or those in ``only``), and what differed from that."""

    def __init__(self, study: Path, folder: Path, only: Collection[str] = ()) -> None:
        self.folder, self.plan = folder, expand(load(study, ()), None)
        self.log = folder / "log.txt"
        folder.mkdir(parents=True, exist_ok=True)
        self.chosen = {stage: step for stage, step in self.steps().items() if not only or stage in only}
        outcome = carry_out(self.plan, folder / "clean", *(self.chosen.values() if only else ()))
        assert outcome.exit_code == 0, [s.message for s in outcome.steps.values()]
        made = [step.id for step in outcome.steps.values() if step.state == "done"]
        self.clean = {step_id: content(self._artifact(folder / "clean", step_id)) for step_id in made}
        self.failures: list[str] = []

    def _artifact(self, root: Path, step_id: str) -> Any:
        step, store = self.plan[step_id], Store(root)
        commit = store.lookup(step.stage.name, step.key)
        assert commit is not None, f"{step_id} is not made"
        damages = store.verify(commit)
        assert damages == [], damages
        return store.artifact(commit)

    def steps(self) -> dict[str, str]:
        """A step of each stage."""
        chosen: dict[str, str] = {}
        for step in self.plan.steps:
            chosen.setdefault(step.stage.name, STEPS_OF.get(step.stage.name, step.id))
        return chosen

    def root_before(self, step_id: str) -> Path:
        """A store with what the step needs."""
        root = self.folder / "root"
        shutil.rmtree(root, ignore_errors=True)
        for needed in sorted(self.plan.upstream([step_id]) - {step_id}):
            step = self.plan[needed]
            place = Path(step.stage.name) / step.key
            shutil.copytree(self.folder / "clean" / place, root / place, copy_function=os.link)
        return root

    def killed_at_each_write(self, step_id: str) -> dict[str, int]:
        """Kinds of writes of the step, and how many of them it survived."""
        faults, record = Faults(self.folder / "faults"), self.folder / "writes.txt"
        root = self.root_before(step_id)
        record.unlink(missing_ok=True)

        def recorded() -> int:
            watch_writes(faults, root, record)
            return carry_out(self.plan, root, step_id).exit_code

        assert forked(recorded, self.log) == 0, self.log.read_text()[-3000:]
        assert content(self._artifact(root, step_id)) == self.clean[step_id], f"{step_id} twice differs"
        points = list(dict.fromkeys(record.read_text().splitlines()))
        survived = 0
        for where in points:
            root = self.root_before(step_id)
            shutil.rmtree(faults.directory, ignore_errors=True)
            faults.fail_at("write", where, kind="sigkill")

            def killed(root: Path = root) -> int:
                watch_writes(faults, root)
                return carry_out(self.plan, root, step_id).exit_code

            try:
                ended = forked(killed, self.log)
                assert ended == -signal.SIGKILL, f"ended with {ended} instead of being killed"
                assert forked(lambda root=root: carry_out(self.plan, root, step_id).exit_code, self.log) == 0
                assert content(self._artifact(root, step_id)) == self.clean[step_id], "other files"
                left = {one.reason for one in collect(Store(root), Store(root).kept(), delete=True)}
                assert content(self._artifact(root, step_id)) == self.clean[step_id], f"other files after gc of {left}"
                survived += 1
            except AssertionError as error:
                self.failures.append(f"{step_id}: {where}: {error}")
                print(self.failures[-1], file=sys.stderr, flush=True)
        return {"points": len(points), "survived": survived}

    def soak(self, count: int, seed: int) -> dict[str, Any]:
        """``count`` faults at random moments of the whole study, which is begun anew each time it is done."""
        rng, came, hit, studies = random.Random(seed), Counter[str](), Counter[str](), 0
        deadline = time.monotonic() + 3600
        while sum(came.values()) < count and time.monotonic() < deadline:
            root = self.folder / "soak"
            shutil.rmtree(root, ignore_errors=True)
            done = False
            while not done:
                kind = rng.choice(SOAK_KINDS) if sum(came.values()) < count else None
                number = round(2 ** rng.uniform(0, 9))  # mostly soon, at times after the longest step
                marker = self.folder / "came"
                marker.unlink(missing_ok=True)
                if kind == "damage":
                    what = damage_something(root, rng)
                    if what is not None:
                        came[f"damage: {what}"] += 1
                    continue

                def attempt(
                    kind: str | None = kind, number: int = number, root: Path = root, marker: Path = marker
                ) -> int:
                    if kind is not None:
                        watch_nth_write(root, number, kind, marker)
                    return carry_out(self.plan, root).exit_code

                ended = forked(attempt, self.log)
                if kind is not None and marker.exists():
                    came[kind] += 1
                    hit[marker.read_text().split(" ", 1)[1].split("/")[0]] += 1
                done = ended == 0
                if not done and kind is None:
                    self.failures.append(f"soak: the study ends with {ended} though nothing fails")
                    return {"came": came, "studies": studies}
            studies += 1
            print(f"soak: {sum(came.values())} of {count} faults, study {studies}", file=sys.stderr, flush=True)
            for step in self.plan.steps:
                try:
                    if step.stage.name != "report":
                        assert content(self._artifact(root, step.id)) == self.clean[step.id], "other files"
                except AssertionError as error:
                    self.failures.append(f"soak: {step.id}: {error}")
        return {"injected": sum(came.values()), "by_kind": dict(came), "by_stage": dict(hit), "studies": studies}


def main() -> None:
    study, folder, count, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    only = sys.argv[5:]
    began = time.monotonic()
    harness = Harness(study, folder, only)
    stages = {}
    for stage, step_id in harness.chosen.items():
        if count == 0:
            stages[stage] = harness.killed_at_each_write(step_id)
            print(stage, stages[stage], f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    soak = harness.soak(count, seed) if count else None
    seconds = round(time.monotonic() - began)
    print(json.dumps({"stages": stages, "soak": soak, "failures": harness.failures, "seconds": seconds}))


if __name__ == "__main__":
    main()
