"""The same training inside Ray: a single worker in the step's own task, killed and cancelled; two on Ray Train."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster import groups
from cluster.train import run_distributed
from stages.stage import Execution, Resources, StageError
from stages.training.pretrain import recipe, worker
from stages.training.pretrain.stage import PRETRAIN
from stages.training.pretrain.worker import TrainingJob
from tests.stages.pretraining import make_inputs, pretrain_config
from tests.support import LocalArtifact, LocalContext

COLUMNS = ["step", "loss", "grad_norm", "gate_mean"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalArtifact]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def log(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "train_log.parquet", columns=COLUMNS).to_pylist()


@pytest.fixture(scope="module")
def whole(inputs: dict[str, LocalArtifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run in one process, without Ray."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "output").mkdir()
    job = TrainingJob(
        recipe=recipe.of_pretrain(pretrain_config()),
        work_url=str(folder / "work"),
        execution=Execution(),
        mixer=pretrain_config().mixer,
        **inputs,
    )
    worker.run(job, 0, 1, on_row=lambda row: None)
    worker.take_export(job.work_url, folder / "output")
    return folder / "output"


def die_while_saving(marker: Path) -> None:
    """This process dies by SIGKILL, once, between the second checkpoint's tensors and the file that completes it."""
    from stages.training.pretrain import checkpoint

    write = checkpoint.write_atomic

    def fatal(fs: Any, path: str, data: bytes) -> None:
        if "step-00000010" in path and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        write(fs, path, data)

    checkpoint.write_atomic = fatal


def killed_while_saving(config: dict[str, Any]) -> None:
    """A worker of Ray Train that dies so."""
    die_while_saving(Path(config["marker"]))
    worker.ray_worker(config)


def step(
    inputs: dict[str, LocalArtifact], folder: Path, context: LocalContext, marker: Path | None = None
) -> list[float]:
    """The body of a step's Ray task. Returns the steps that it reported, first those of earlier attempts."""
    if marker is not None:
        die_while_saving(marker)
    folder.mkdir(exist_ok=True)
    PRETRAIN.run(pretrain_config(), inputs, folder, context)
    return [done for done, *_ in context.progressed]


@dataclass
class Slow(LocalContext):
    """Waits at step 8, in short naps, until the task is cancelled."""

    def progress(self, done: float, total: float, unit: str, **numbers: float) -> None:
        super().progress(done, total, unit, **numbers)
        if done == 8:
            (Path(self.work_url) / "waiting").touch()
            while True:
                time.sleep(0.01)


@pytest.mark.usefixtures("ray_session")
def test_a_killed_step_is_run_again_to_the_same_losses(
    inputs: dict[str, LocalArtifact], whole: Path, tmp_path: Path
) -> None:
    import ray

    task = ray.remote(max_retries=1, retry_exceptions=False)(step)
    context = LocalContext(str(tmp_path / "work"))
    reported = ray.get(task.remote(inputs, tmp_path / "output", context, tmp_path / "killed"), timeout=120)
    assert (tmp_path / "killed").exists() and reported == list(range(1, 13))
    assert (tmp_path / "work" / "checkpoints" / "step-00000010" / "state.json").exists()
    assert log(tmp_path / "output") == log(whole)
    model = "model/model.safetensors"
    assert (tmp_path / "output" / model).read_bytes() == (whole / model).read_bytes()


@pytest.mark.usefixtures("ray_session")
def test_a_cancelled_step_stops_at_once_and_keeps_its_resume_points(
    inputs: dict[str, LocalArtifact], whole: Path, tmp_path: Path
) -> None:
    import ray

    task = ray.remote(max_retries=3, retry_exceptions=False)(step)
    running = task.remote(inputs, tmp_path / "first", Slow(str(tmp_path / "work")))
    deadline = time.monotonic() + 60
    while not (tmp_path / "work" / "waiting").exists() and time.monotonic() < deadline:
        ray.wait([running], timeout=0.05)
    ray.cancel(running)
    with pytest.raises((ray.exceptions.TaskCancelledError, ray.exceptions.RayTaskError)) as ended:
        ray.get(running, timeout=30)
    assert "KeyboardInterrupt" in str(ended.value) or isinstance(ended.value, ray.exceptions.TaskCancelledError)
    assert not (tmp_path / "work" / "export.json").exists()
    assert (tmp_path / "work" / "checkpoints" / "step-00000005" / "state.json").exists()
    reported = step(inputs, tmp_path / "output", LocalContext(str(tmp_path / "work")))
    assert reported == list(range(1, 13)) and log(tmp_path / "output") == log(whole)


@pytest.mark.usefixtures("ray_session")
def test_a_killed_worker_is_restarted_to_the_same_losses(
    inputs: dict[str, LocalArtifact], whole: Path, tmp_path: Path
) -> None:
    job = TrainingJob(
        recipe=recipe.of_pretrain(pretrain_config()),
        work_url=str(tmp_path / "work"),
        execution=Execution(),
        mixer=pretrain_config().mixer,
        **inputs,
    )
    (tmp_path / "work").mkdir()
    run_distributed(
        killed_while_saving,
        {"job": job, "marker": str(tmp_path / "killed")},
        workers=1,
        resources={"CPU": 1},
        name=str(tmp_path),
        max_failures=1,
    )
    assert (tmp_path / "killed").exists()
    worker.take_export(job.work_url, tmp_path / "output")
    assert log(tmp_path / "output") == log(whole)
    model = "model/model.safetensors"
    assert (tmp_path / "output" / model).read_bytes() == (whole / model).read_bytes()


@pytest.mark.usefixtures("ray_session")
def test_two_workers_train_as_one(inputs: dict[str, LocalArtifact], whole: Path, tmp_path: Path) -> None:
    context = LocalContext(str(tmp_path / "work"), Execution(train_workers=2, sequence_parallel=2, micro_batch=1))
    (tmp_path / "output").mkdir()
    PRETRAIN.run(pretrain_config(), inputs, tmp_path / "output", context)
    for mine, theirs in zip(log(tmp_path / "output"), log(whole), strict=True):
        assert {name for name in mine if mine[name] is None} == {name for name in theirs if theirs[name] is None}
        assert [v for v in mine.values() if v is not None] == pytest.approx(
            [v for v in theirs.values() if v is not None], rel=1e-4
        )
    assert [done for done, *_ in context.progressed] == list(range(1, 13))


@pytest.mark.usefixtures("ray_session")
def test_workers_that_trained_before_train_the_same_to_the_bit(
    inputs: dict[str, LocalArtifact], tmp_path: Path
) -> None:
    """Arm after arm in the same two processes; the third training is the first one again."""
    standing, models = groups.start_groups(groups.NAME), []
    try:
        for name, mixer in (("first", {}), ("other", {"kind": "window"}), ("again", {})):
            folder = tmp_path / name
            (folder / "output").mkdir(parents=True)
            execution = Execution(train_workers=2, sequence_parallel=2, async_checkpoints=True)
            PRETRAIN.run(
                pretrain_config(mixer), inputs, folder / "output", LocalContext(str(folder / "work"), execution)
            )
            models.append((folder / "output" / "model" / "model.safetensors").read_bytes())
        assert log(tmp_path / "first" / "output") == log(tmp_path / "again" / "output")
        assert models[0] == models[2] != models[1]
    finally:
        groups.close(standing)


@pytest.mark.usefixtures("ray_session")
def test_a_fault_of_the_input_is_told_and_not_retried(inputs: dict[str, LocalArtifact], tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    with pytest.raises(StageError, match=r"diverged at step \d+"):
        config = pretrain_config(lr=1e25, schedule="constant")
        PRETRAIN.run(config, inputs, tmp_path / "output", LocalContext(str(tmp_path / "work")))


def test_several_workers_need_ray(
    inputs: dict[str, LocalArtifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.training.pretrain.run.ray_is_running", lambda: False)
    context = LocalContext(str(tmp_path / "work"), Execution(train_workers=2))
    with pytest.raises(StageError, match=r"execution\.train_workers = 2: .*on Ray only"):
        PRETRAIN.run(pretrain_config(), inputs, tmp_path / "output", context)


def test_what_a_step_asks_for_is_what_its_training_uses() -> None:
    config, one, two = pretrain_config(), Execution(cpus_per_worker=3, gpus_per_worker=0.5), Execution(train_workers=2)
    assert PRETRAIN.resources(config, one) == PRETRAIN.needs(config, one) == Resources(cpus=3, gpus=0.5)
    assert PRETRAIN.resources(config, two) == Resources(cpus=0) and PRETRAIN.needs(config, two) == Resources(cpus=2)


def test_workers_must_share_the_batch_equally(inputs: dict[str, LocalArtifact], tmp_path: Path) -> None:
    context = LocalContext(str(tmp_path / "work"), Execution(train_workers=3))
    with pytest.raises(StageError, match=r"execution\.train_workers = 3: .*global batch = 4"):
        PRETRAIN.run(pretrain_config(), inputs, tmp_path / "output", context)
