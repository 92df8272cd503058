"""Carrying out a plan: order, reuse, failures and their messages, two drivers, zombies, Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine.execute import Outcome, execute
from pipeline.engine.garbage import collect
from pipeline.engine.plan import Selection, decide
from pipeline.engine.progress import Display
from pipeline.engine.store import Store
from pipeline.errors import ClusterUnreachable, StudyError
from stages.stage import Execution
from tests.faults import Faults
from tests.faults.toys import toy_plan

REPOSITORY = Path(__file__).parents[2]
ORDER = ["make", "count/a/0", "count/a/1", "total"]


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    return Faults(tmp_path / "faults")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "root", tmp_path / "cache")


def run(store: Store, faults: Faults | None = None, address: str = "inline", **options: Any) -> Outcome:
    plan = toy_plan(faults, cpus=options.pop("cpus", 1.0))
    selection = Selection(force=tuple(options.get("force", ())))
    return execute(plan, decide(plan, store, selection), store, execution=Execution(), address=address, **options)


def states(outcome: Outcome) -> dict[str, str]:
    return {step.id: step.state for step in outcome.steps.values()}


def digests(outcome: Outcome) -> dict[str, str]:
    return {step.id: step.commit.digest for step in outcome.steps.values() if step.commit}


def driver(store: Store, faults: Faults, *options: str, address: str = "inline") -> subprocess.Popen[str]:
    """The same run in a process of its own."""
    command = [sys.executable, "-m", "tests.faults.driver", store.root, str(faults.directory), address, *options]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=120)
    assert output, errors
    return json.loads(output)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of an undisturbed run."""
    return digests(run(Store(tmp_path_factory.mktemp("expected"))))


def test_everything_runs_once_in_order_and_then_is_reused(store: Store, faults: Faults):
    first = run(store, faults)
    assert first.ids("done") == ORDER and first.exit_code == 0
    assert ("make", "one number is odd") in first.warnings
    assert json.loads(store.artifact(first.steps["total"].commit).path("total.json").read_text()) == 29
    second = run(store, faults)
    assert set(states(second).values()) == {"reused"} and faults.visits("make", "start") == 1


def test_a_cached_run_imports_nothing_heavy(store: Store, faults: Faults):
    """A server that knows the study is not asked again (the command line gives no tracker then)."""
    run(store, faults)
    again = result(driver(store, faults, address="local"))
    assert again["heavy"] == [] and set(again["states"].values()) == {"reused"}


def test_memory_and_local_stores_give_the_same_digests(expected: dict[str, str], tmp_path: Path):
    remote = Store(f"memory://{tmp_path.name}", tmp_path / "cache")
    assert digests(run(remote)) == expected
    assert [text for _, text in remote.logs("make", toy_plan()["make"].key) if "printed by make" in text]


def test_a_stage_error_is_one_line_and_ends_the_run(store: Store, faults: Faults):
    faults.fail_at("count", "half", kind="stage_error")
    outcome = run(store, faults)
    assert outcome.exit_code == 1
    assert states(outcome) == {"make": "done", "count/a/0": "failed", "count/a/1": "cancelled", "total": "blocked"}
    assert "Fix: run again" in outcome.steps["count/a/0"].message
    assert run(store, faults).exit_code == 0


def test_a_bug_is_its_last_line_and_the_log_has_the_traceback(store: Store, faults: Faults):
    faults.fail_at("count", "half", kind="raise")
    failed = run(store, faults).steps["count/a/0"]
    assert failed.message == "InjectedFault: injected at count: half"
    assert "Traceback" in Path(failed.log).read_text() and "in reach" in Path(failed.log).read_text()


def test_keep_going_does_what_does_not_need_the_failed_step(store: Store, faults: Faults):
    faults.fail_at("count", "half")
    outcome = run(store, faults, keep_going=True)
    assert states(outcome) == {"make": "done", "count/a/0": "failed", "count/a/1": "done", "total": "blocked"}
    assert outcome.steps["total"].message == "needs count/a/0" and outcome.exit_code == 1


def test_a_damaged_input_stops_its_step_with_exit_code_4_and_forcing_repairs(store: Store, faults: Faults):
    made = run(store, faults).steps["make"].commit
    assert made is not None
    number = store.artifact(made).path("numbers/0.json")
    total, count = (toy_plan()[name] for name in ("total", "count/a/0"))
    for step in (total, count):
        os.remove(Path(store.folder(step.stage.name, step.key)) / "COMMIT.json")
    number.write_text("1 and more")
    outcome = run(store, faults)
    assert outcome.exit_code == 4 and str(number) in outcome.steps["count/a/0"].message
    repaired = run(store, faults, force=("make",))
    assert repaired.exit_code == 0 and repaired.ids("done") == ORDER


def test_forcing_computes_the_step_and_what_needs_it_again(store: Store, faults: Faults, expected: dict[str, str]):
    run(store, faults)
    outcome = run(store, faults, force=("count/a/0",))
    assert outcome.ids("done") == ["count/a/0", "total"] and digests(outcome) == expected
    assert store.verify(outcome.steps["count/a/0"].commit) == []


def test_a_resumed_step_goes_on_from_its_work_folder_which_then_goes(store: Store, faults: Faults):
    faults.fail_at("count", "step 2")
    run(store, faults)
    assert faults.visits("count", "step 0") == 1
    outcome = run(store, faults)
    assert outcome.exit_code == 0
    assert faults.visits("count", "step 0") == 2, "one visit of each count, none repeated"
    for step in outcome.steps.values():
        assert not Path(store.work_url(step.commit.stage, step.commit.key)).exists()
    assert collect(store, store.kept()) == []


class Releasing(Display):
    """Lets the other driver go on as soon as this one says that it waits."""

    faults: Faults
    waited_for: list[tuple[str, str]]

    def waiting(self, step: str, holder: str) -> None:
        self.waited_for.append((step, holder))
        self.faults.release()


def test_of_two_drivers_one_computes_and_the_other_waits_and_says_for_whom(store: Store, faults: Faults):
    faults.fail_at("make", "half", kind="wait")
    other = driver(store, faults)
    faults.await_visit("make", "half")
    display = Releasing(quiet=True)
    display.faults, display.waited_for = faults, []
    outcome = run(store, faults, display=display, poll=0.02)
    done = result(other)
    assert display.waited_for[0] == ("make", f"process {other.pid} on {os.uname().nodename}")
    assert outcome.exit_code == done["exit"] == 0 and digests(outcome) == done["digests"]
    assert outcome.steps["make"].state == "reused" and faults.visits("make", "start") == 1
    made = [step for step, state in [*states(outcome).items(), *done["states"].items()] if state == "done"]
    assert sorted(made) == sorted(ORDER), "each step was computed by exactly one of the two"


def test_a_zombie_that_wakes_up_adopts_what_its_successor_made(store: Store, faults: Faults, expected: dict[str, str]):
    faults.fail_at("driver", "before commit", kind="wait")
    zombie = driver(store, faults, "1.0")
    faults.await_visit("driver", "before commit")
    os.kill(zombie.pid, signal.SIGSTOP)
    try:
        outcome = run(store, faults, ttl=1.0, poll=0.05)
    finally:
        faults.release()
        os.kill(zombie.pid, signal.SIGCONT)
    assert outcome.ids("done") == ORDER
    woken = result(zombie)
    assert woken["exit"] == 0 and woken["digests"] == digests(outcome) == expected
    commit = store.lookup("make", toy_plan()["make"].key)
    assert commit == outcome.steps["make"].commit and store.verify(commit) == []


def test_a_driver_that_was_frozen_in_a_step_says_that_it_lost_it_and_adopts(
    store: Store, faults: Faults, expected: dict[str, str]
):
    """Its step finds its files removed by the driver that took over, before its heartbeat finds out why."""
    faults.fail_at("make", "half", kind="wait")
    frozen = driver(store, faults, "1.0")
    faults.await_visit("make", "half")
    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        outcome = run(store, faults, ttl=1.0, poll=0.05)
    finally:
        faults.release()
        os.kill(frozen.pid, signal.SIGCONT)
    assert outcome.ids("done") == ORDER
    output, errors = frozen.communicate(timeout=120)
    assert json.loads(output)["exit"] == 0 and json.loads(output)["digests"] == expected
    assert f"make  warning: lost its lease (taken over by process {os.getpid()} on " in errors


def test_three_drivers_on_a_real_object_store_share_the_work(
    s3_root: str, tmp_path: Path, faults: Faults, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("INFINI_STUDY_CACHE", str(tmp_path / "cache"))
    done = [result(one) for one in [driver(Store(s3_root), faults) for _ in range(3)]]
    assert [(one["exit"], one["digests"]) for one in done] == [(0, expected)] * 3
    made = [step for one in done for step, state in one["states"].items() if state == "done"]
    assert sorted(made) == sorted(ORDER), "each step was computed by exactly one of the three"


KILLS = [
    ("driver", "leased"),
    ("make", "half"),
    ("make", "end"),
    ("driver", "before commit"),
    ("driver", "after commit"),
    ("count", "step 2"),
    ("total", "end"),
]


@pytest.mark.parametrize("where", KILLS, ids=" ".join)
def test_a_driver_killed_anywhere_leaves_what_the_next_run_completes(
    where: tuple[str, str], store: Store, faults: Faults, expected: dict[str, str]
):
    faults.fail_at(*where, kind="sigkill")
    killed = driver(store, faults)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL and faults.visits(*where) == 1
    outcome = run(store, faults)
    assert outcome.exit_code == 0 and digests(outcome) == expected
    assert all(store.verify(step.commit) == [] for step in outcome.steps.values())
    leavings = {garbage.reason for garbage in collect(store, store.kept(), delete=True)}
    assert leavings <= {"left over after the commit"}, "only a work folder nobody got to remove"
    assert digests(run(store)) == expected


def test_killed_three_times_in_a_row_it_still_ends_the_same(store: Store, faults: Faults, expected: dict[str, str]):
    for where in (("make", "half"), ("count", "step 1"), ("driver", "before commit")):
        faults.fail_at(*where, kind="sigkill")
        driver(store, faults).communicate(timeout=120)
    assert digests(run(store, faults)) == expected


def test_ctrl_c_ends_cleanly_and_running_again_resumes(store: Store, faults: Faults, expected: dict[str, str]):
    faults.fail_at("count", "step 1", kind="wait")
    process = driver(store, faults)
    faults.await_visit("count", "step 1")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert json.loads(output)["exit"] == process.returncode == 130
    assert "running again goes on from there" in errors
    again = run(store, faults)
    assert states(again)["make"] == "reused" and digests(again) == expected


def test_an_unwritable_store_and_an_absent_cluster_are_said_before_any_work(tmp_path: Path, faults: Faults):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"root = .*storage cannot be read"):
        run(Store(tmp_path / "file" / "root"), faults)
    with pytest.raises(ClusterUnreachable, match=r"127\.0\.0\.1:1") as caught:
        run(Store(tmp_path / "root"), faults, address="127.0.0.1:1")
    assert caught.value.exit_code == 5 and not faults.directory.exists()


# On Ray. These start their own embedded cluster, or share the session's.


@pytest.fixture
def on_ray(ray_session: None) -> Iterator[None]:
    yield


def test_on_ray_the_result_is_the_same_and_output_lands_in_the_log(
    on_ray: None, store: Store, faults: Faults, expected: dict[str, str]
):
    class Recording(Display):
        seen: list[tuple[str, float]]

        def progress(self, step, done, total, unit, numbers):
            self.seen.append((step, done))

    display = Recording(quiet=True)
    display.seen = []
    outcome = run(store, faults, "local", display=display)
    assert digests(outcome) == expected and ("make", "one number is odd") in outcome.warnings
    assert ("make", 4.0) in display.seen and ("count/a/1", 4.0) in display.seen
    assert [text for _, text in store.logs("make", toy_plan()["make"].key) if "printed by make" in text]


def test_on_ray_a_killed_worker_is_replaced_and_a_fault_is_one_line(
    on_ray: None, store: Store, faults: Faults, expected: dict[str, str]
):
    faults.fail_at("count", "step 1", kind="sigkill")
    faults.fail_at("total", "half", kind="stage_error")
    failed = run(store, faults, "local")
    assert states(failed)["total"] == "failed" and "Fix: run again" in failed.steps["total"].message
    assert faults.visits("count", "start") == 3
    outcome = run(store, faults, "local")
    assert outcome.ids("done") == ["total"] and digests(outcome) == expected


def test_on_ray_a_failure_cancels_what_runs_beside_it(on_ray: None, store: Store, faults: Faults):
    faults.fail_at("count", "step 0", kind="wait")
    faults.fail_at("count", "step 0", kind="raise")
    outcome = run(store, faults, "local")
    assert sorted(states(outcome).values()) == ["blocked", "cancelled", "done", "failed"]


def test_on_ray_a_step_that_can_never_start_is_refused(on_ray: None, store: Store):
    with pytest.raises(StudyError, match=r"step make asks for 1000 CPUs, this machine has 2"):
        run(store, None, "local", cpus=1000)


def test_on_ray_a_killed_driver_leaves_what_the_next_run_completes(
    store: Store, faults: Faults, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")  # make prints what that cannot hold
    faults.fail_at("count", "step 2", kind="kill_driver")
    killed = driver(store, faults, address="local")
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    outcome = run(store, faults)
    assert states(outcome)["make"] == "reused" and digests(outcome) == expected
