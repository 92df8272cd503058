"""A real SIGTERM in a training worker: a resume point after the step it is at, and the next attempt goes on from there
to the model of a run that nothing happened to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch.distributed as dist

from cluster.train import run_distributed
from stages.stage import Execution
from stages.training.pretrain import recipe, worker
from stages.training.pretrain.channel import told
from stages.training.pretrain.notice import Preempted
from stages.training.pretrain.worker import TrainingJob
from tests.model.ranks import on_ranks
from tests.stages.pretraining import make_inputs, pretrain_config
from tests.support import LocalArtifact

STEPS = 150
CONFIG: dict[str, Any] = {"steps": STEPS, "checkpoint_every": 1000}  # no resume point but the notice's
MODEL = "model/model.safetensors"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalArtifact]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def job(inputs: dict[str, LocalArtifact], work: Path, **execution: Any) -> TrainingJob:
    config = pretrain_config(**CONFIG)
    return TrainingJob(
        recipe=recipe.of_pretrain(config),
        work_url=str(work),
        execution=Execution(**execution),
        mixer=config.mixer,
        **inputs,
    )


@pytest.fixture(scope="module")
def whole(inputs: dict[str, LocalArtifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a run that nothing happens to, in one process."""
    folder = tmp_path_factory.mktemp("whole")
    worker.run(job(inputs, folder), 0, 1, on_row=lambda row: None)
    return folder / "export"


def resume_points(work: Path) -> dict[int, int]:
    """Rows of the log by the step of each whole resume point."""
    states = (json.loads(path.read_text()) for path in work.glob("checkpoints/step-*/state.json"))
    return {state["step"]: len(state["rows"]) for state in states}


def equal(export: Path, whole: Path) -> None:
    assert (export / MODEL).read_bytes() == (whole / MODEL).read_bytes()
    columns = ["step", "loss", "grad_norm", "gate_mean"]
    log = [pq.read_table(folder / "train_log.parquet", columns=columns).to_pylist() for folder in (export, whole)]
    assert log[0] == log[1]


def test_a_process_that_is_told_to_end_keeps_what_it_did(
    inputs: dict[str, LocalArtifact], whole: Path, tmp_path: Path
) -> None:
    fields = pretrain_config(**CONFIG).model_dump(mode="json", exclude_unset=True)
    fields["mixer"] = {"kind": "infini", "segment_length": fields["mixer"]["segment_length"]}
    (tmp_path / "arm.json").write_text(json.dumps(fields))
    command = [sys.executable, "-m", "stages.training.pretrain", "--config", str(tmp_path / "arm.json")]
    for name, artifact in inputs.items():
        command += [f"--{name}", str(artifact.directory)]
    command += ["--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        said = []
        for line in running.stderr:
            said.append(line)
            if line.startswith("step 5 of"):
                running.send_signal(signal.SIGTERM)
        assert running.wait(60) == -signal.SIGTERM, "".join(said)
    (step,) = resume_points(tmp_path / "out.work")
    assert 5 <= step < STEPS and said[-1].startswith(f"preempted: a resume point was written after step {step}")
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    equal(tmp_path / "out", whole)


def told_in_step(config: dict[str, Any]) -> None:
    """A worker of Ray Train whose process is told to end, once, when its first rows were reported."""
    marker, work = Path(config["marker"]), config["job"].work_url

    def tell() -> None:
        while not ((found := told(f"{work}/progress.json")) and found["rows"]):
            time.sleep(0.01)
        marker.touch()
        os.kill(os.getpid(), signal.SIGTERM)

    if not marker.exists():
        threading.Thread(target=tell, daemon=True).start()
    worker.ray_worker(config)


@pytest.mark.usefixtures("ray_session")
def test_a_worker_of_ray_train_that_is_told_to_end_is_replaced_by_one_that_goes_on(
    inputs: dict[str, LocalArtifact], whole: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    config = {"job": job(inputs, work), "marker": str(tmp_path / "told")}
    run_distributed(told_in_step, config, name=str(work), workers=1, resources={"CPU": 1}, max_failures=0)
    (step,) = resume_points(work)
    assert 1 <= step < STEPS and (tmp_path / "told").exists()
    equal(work / "export", whole)


def in_own_task(inputs: dict[str, LocalArtifact], work: Path, marker: Path) -> int:
    """A step's own task; the process that ended it."""

    def row(row: dict[str, Any]) -> None:
        if row["step"] == 5 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGTERM)

    worker.run(job(inputs, work), 0, 1, on_row=row)
    return os.getpid()


@pytest.mark.usefixtures("ray_session")
def test_a_steps_own_task_that_is_told_to_end_is_run_again(
    inputs: dict[str, LocalArtifact], whole: Path, tmp_path: Path
) -> None:
    import ray

    task = ray.remote(max_retries=1, retry_exceptions=False)(in_own_task)
    ray.get(task.remote(inputs, tmp_path, tmp_path / "told"), timeout=120)
    (step,) = resume_points(tmp_path)
    assert 5 <= step <= 6 and (tmp_path / "told").exists()
    equal(tmp_path / "export", whole)


def one_of_two(inputs: dict[str, LocalArtifact], work: Path) -> tuple[int, int, list[float]]:
    """The second of two ranks is told to end in step 4. The step they stopped after, how often SIGTERM then had its
    usual effect, and the losses of the attempt that went on."""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    rank = dist.get_rank()

    def row(row: dict[str, Any]) -> None:
        if rank == 1 and row["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    two = job(inputs, work, train_workers=2)
    try:
        worker.run(two, rank, 2, on_row=row, on_warning=lambda text: None)
    except Preempted as stopped:
        step = stopped.step
    dist.barrier()
    losses: list[float] = []
    worker.run(two, rank, 2, on_row=lambda row: losses.append(row["loss"]), on_warning=lambda text: None)
    return step, len(ended), losses


def test_all_ranks_stop_after_the_same_step_when_one_is_told(
    inputs: dict[str, LocalArtifact], whole: Path, tmp_path: Path
) -> None:
    found = on_ranks(2, one_of_two, inputs, tmp_path)
    assert [(step, ended) for step, ended, _ in found] == [(5, 0), (5, 1)]
    losses = [row["loss"] for row in pq.read_table(whole / "train_log.parquet").to_pylist()]
    assert found[0][2] == found[1][2] and len(losses) == STEPS
    assert found[0][2][:20] == pytest.approx(losses[:20], rel=1e-3)
