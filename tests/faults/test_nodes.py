"""A study on several real nodes that die: every model and row equal to those of a run that nothing happened to."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import storage
from pipeline.engine.store import Store
from pipeline.study.yamlfile import parse
from tests import seaweed
from tests.faults import Faults
from tests.faults.drivers import contents, driver, result
from tests.faults.nodes import HEAD, Nodes, several
from tests.faults.proxy import Weather, proxying
from tests.tiny import write_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STEPS = 60


def small_study(folder: Path) -> Path:
    """The tiny study with one arm, two workers a training, and trainings and evaluations of a few seconds."""
    path = write_study(folder)
    changed: dict[str, Any] = parse(path.read_text(), path.name)
    changed["arms"] = {"infini-delta": changed["arms"]["infini-delta"]}
    changed["pretrain"] |= {"steps": STEPS, "checkpoint_every": 10}
    changed["evaluate"]["retrieval"] |= {"trials": 20}
    del changed["summarize"], changed["ablate"]
    changed["execution"] = {"train_workers": 2, "jobs": 2, "max_failures": 4}
    path.write_text(json.dumps(changed))
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_study(tmp_path_factory.mktemp("nodes"))


@pytest.fixture(scope="module")
def unbroken(study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the same study on one machine, undisturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    running = driver(folder / "root", Faults(folder / "faults"), f"study={study}", "until=evaluate", address="local")
    done = result(running, timeout=580)
    assert done["exit"] == 0, done["errors"][-4000:]
    return contents(Store(folder / "root"))


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head and two nodes, which know an S3 server where there is one. To start them takes longer than a test."""
    with contextlib.ExitStack() as stack:

        def storage_of_nodes(cluster: Nodes) -> None:
            if seaweed.binary() is not None:
                server = request.getfixturevalue("s3_server")
                proxy = stack.enter_context(proxying(server, Weather(), host=cluster.gateway))
                cluster.environment |= seaweed.environment(proxy.url)

        yield stack.enter_context(several(tmp_path_factory.mktemp("cluster"), before=storage_of_nodes))


@pytest.fixture
def cluster(whole: Nodes) -> Nodes:
    """The same after every node that a test before left dead has come back."""
    whole.await_nodes(3)
    return whole


def until(true: Callable[[], Any], running: subprocess.Popen[str], patience: float = 300) -> Any:
    """What ``true`` says once it is true. Fails if the driver ends before."""
    end = time.monotonic() + patience
    while not (found := true()):
        if running.poll() is not None or time.monotonic() > end:
            raise AssertionError(running.communicate(timeout=20)[1][-4000:] if running.poll() is not None else "late")
        time.sleep(0.2)
    return found


class Told:
    """Prints what happened, and how many seconds after this was made."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def __call__(self, what: str) -> None:
        print(f"[{time.monotonic() - self.began:5.0f} s] {what}", flush=True)


def evaluating(root: Path) -> list[int]:
    """Process of the evaluation that is under way, as its log names it."""
    logs = [log for log in root.glob("evaluate/*/logs/*.log") if not (log.parents[1] / "COMMIT.json").exists()]
    return [int(found[1]) for log in logs if (found := re.search(r"process (\d+)\n", log.read_text()))][:1]


def models_equal(store: Store, unbroken: dict[str, str]) -> None:
    """Both models, their training logs, evaluations and all before them."""
    made = contents(store)
    assert set(made) >= {"base/0", "pretrain/infini-delta/0", "evaluate/base/0", "evaluate/infini-delta/0"}
    assert made == unbroken


def test_nodes_that_die_in_training_and_evaluation_change_nothing(
    cluster: Nodes, study: Path, unbroken: dict[str, str], tmp_path: Path
):
    root, faults, told = tmp_path / "root", Faults(tmp_path / "faults"), Told()
    running = cluster.driver(root, faults, f"study={study}", "until=evaluate")
    until(lambda: list(root.glob("pretrain/*/work/checkpoints/step-*/state.json")), running)
    cluster.kill(1)
    told("node 1 killed in training")
    cluster.add(1)
    until(lambda: list(root.glob("pretrain/*/COMMIT.json")), running)
    told("the model is trained")
    node = cluster.node_of(*until(lambda: evaluating(root), running))
    cluster.kill(node)
    told(f"node {node} killed in evaluation")
    cluster.add(node)
    done = result(running, timeout=500)
    told(f"ended with {done['exit']}")
    assert done["exit"] == 0, done["errors"][-4000:]
    models_equal(Store(root), unbroken)
    attempts, steps = (len(list(root.glob(f"evaluate/*/{what}"))) for what in ("logs/*.log", "COMMIT.json"))
    told(f"{attempts} attempts of {steps} evaluations")
    assert attempts > steps


def test_a_head_that_dies_ends_the_run_and_the_next_one_goes_on(
    cluster: Nodes, study: Path, unbroken: dict[str, str], tmp_path: Path
):
    root, faults, told = tmp_path / "root", Faults(tmp_path / "faults"), Told()
    running = cluster.driver(root, faults, f"study={study}", "until=evaluate")
    until(lambda: list(root.glob("pretrain/*/work/checkpoints/step-*/state.json")), running)
    for number in (HEAD, 1, 2):  # the workers of a head that is gone end too
        cluster.kill(number)
    told("head and nodes killed in training")
    assert running.wait(timeout=120) != 0
    told("the driver has ended")
    running.communicate()
    cluster.add(HEAD)
    cluster.await_nodes(1)
    cluster.add(1)
    cluster.add(2)
    cluster.await_nodes(3)
    told("head and nodes are back")
    done = result(cluster.driver(root, faults, f"study={study}", "until=evaluate"), timeout=500)
    told(f"the next run ended with {done['exit']}")
    assert done["exit"] == 0, done["errors"][-4000:]
    assert done["states"]["base/0"] == "reused"
    models_equal(Store(root), unbroken)


def test_on_object_storage_a_network_cut_and_healed_in_training_changes_nothing(
    s3_server: str, cluster: Nodes, study: Path, unbroken: dict[str, str], tmp_path: Path, monkeypatch
):
    """The node that is cut off loses its place in the training, and comes back when the link is healed."""
    import s3fs

    for name, value in cluster.environment.items():
        if name.startswith("AWS"):
            monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    if not files.exists("nodes"):
        files.mkdir("nodes")
    root, told = f"s3://nodes/{tmp_path.name}", Told()
    fs, base = storage.filesystem(root)
    running = cluster.driver(root, Faults(tmp_path / "faults"), f"study={study}", "until=evaluate")
    until(lambda: fs.glob(f"{base}/pretrain/*/work/checkpoints/step-*/state.json"), running)
    told("node 2 cut off in training" if cluster.isolated else "node 2 killed in training")
    if cluster.isolated:
        cluster.cut(2)
        time.sleep(20)  # longer than a node may be silent
        cluster.heal(2)
        told("healed")
        cluster.await_nodes(3)  # a node that was given up ends itself, and is started again as a supervisor does
        told("node 2 is back")
    else:
        cluster.kill(2)
        cluster.add(2)
    done = result(running, timeout=500)
    told(f"ended with {done['exit']}")
    assert done["exit"] == 0, done["errors"][-4000:]
    models_equal(Store(root, tmp_path / "cache"), unbroken)
    s3fs.S3FileSystem.clear_instance_cache()
