"""Worker groups that stay: run after run in the same processes, restarted after a loss, ended when others need room."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import groups
from cluster.train import TrainingLost, run_distributed

PATIENCE = 120.0

pytestmark = pytest.mark.timeout(900)  # five starts of Ray workers, each of which a busy machine takes a minute for


def meet(config: dict[str, Any]) -> None:
    """Each of the workers notes its process and the sum of all ranks, which it has from the others. One dies on the way
    where ``killed`` names a file that is not there yet, or fails where ``fault`` says so."""
    import torch
    import torch.distributed as dist

    folder, rank = Path(config["folder"]), dist.get_rank()
    if rank == 1 and "killed" in config and not Path(config["killed"]).exists():
        Path(config["killed"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 0 and "fault" in config:
        raise ValueError(config["fault"])
    ranks = torch.tensor([rank + 1.0])
    dist.all_reduce(ranks)
    (folder / f"{rank}.json").write_text(json.dumps([os.getpid(), ranks.item()]))


def run(folder: Path, workers: int = 2, **config: Any) -> list[int]:
    """The processes that took part."""
    folder.mkdir()
    run_distributed(
        meet,
        {"folder": str(folder), **config},
        name=str(folder),
        workers=workers,
        resources={"CPU": 1},
        max_failures=1,
    )
    told = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(workers)]
    assert {total for _, total in told} == {workers * (workers + 1) / 2}
    return [pid for pid, _ in told]


@pytest.fixture
def standing(ray_session: None) -> Iterator[Any]:
    """The driver's groups."""
    import ray

    keeper = groups.start_groups(groups.NAME)
    yield keeper
    groups.close(keeper)
    assert ray.available_resources().get("CPU") == 2, "their cores are free again"


def test_runs_follow_each_other_in_the_same_workers_whatever_befalls_them(standing: Any, tmp_path: Path) -> None:
    import ray

    first = run(tmp_path / "first")
    assert run(tmp_path / "second") == first, "the workers stayed"
    with pytest.raises(TrainingLost, match="worker 0: ValueError: a bug"):
        run(tmp_path / "faulty", fault="a bug")
    assert not list((tmp_path / "faulty").iterdir())
    third = run(tmp_path / "third", killed=str(tmp_path / "killed"))
    assert (tmp_path / "killed").exists() and set(third).isdisjoint(first)
    assert run(tmp_path / "fourth") == third, "the failures of one run are not the next one's"
    alone = run(tmp_path / "alone", workers=1)
    assert set(alone).isdisjoint(third), "a group of another number of workers, in the place of the one that was idle"
    ray.get(standing.release.remote())
    end = time.monotonic() + PATIENCE
    while ray.available_resources().get("CPU", 0) < 2:
        assert time.monotonic() < end, "released workers give their cores back"
        time.sleep(0.1)


def test_without_a_driver_that_keeps_them_workers_end_with_the_run(ray_session: None, tmp_path: Path) -> None:
    import psutil

    pids = run(tmp_path / "once")
    end = time.monotonic() + PATIENCE
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.1)
