"""One training run of several workers on Ray Train (V2): started, watched, restarted after a loss, and waited for.

Ray Train does here what it is good at: placing a gang of workers, starting their process group, noticing that one
died, starting all again. Checkpoints and progress are the training function's own business (in its work folder), so
the same function also runs without Ray, which is what a run of one worker does.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from cluster.connect import set_environment

# Beside cluster.connect's: nodes that are gone must not hold a restart for a minute; one process less per run.
TRAIN_ENVIRONMENT: Mapping[str, str] = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
CANCEL_S = 20.0  # how long a cancelled run may take to stop by itself; after that it ends with this process


class TrainingLost(Exception):
    """Workers were lost, or failed, more often than ``max_failures``; the message holds the last worker's traceback."""


def ray_is_running() -> bool:
    """Is this process part of a Ray cluster? Does not import Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def run_distributed(
    train_fn: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    workers: int,
    resources: Mapping[str, float],
    storage_url: str,
    name: str,
    max_failures: int,
    poll: Callable[[], None] = lambda: None,
    cancel: Callable[[], None] = lambda: None,
    poll_s: float = 0.5,
) -> None:
    """Run ``train_fn(config)`` on ``workers`` Ray workers and wait; a lost worker restarts all, up to ``max_failures``.

    ``train_fn`` must find by itself where to go on. ``resources``: what each worker asks for (``CPU``, ``GPU``).
    They share a torch process group (nccl where GPUs are asked for, else gloo).
    ``storage_url`` and ``name``: where Ray Train keeps its own records; the same ones for every attempt.
    ``poll`` is called every ``poll_s`` seconds while the run lasts, and once after it. If the wait is interrupted
    (a cancelled task), ``cancel`` is called; it must make ``train_fn`` return soon, also after a restart.

    Raises TrainingLost when the retries are used up.
    """
    set_environment()
    for variable, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    if len(ray.nodes()) == 1:  # nobody to warn of a drain: one process less
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    trainer = TorchTrainer(
        train_fn,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if resources.get("GPU", 0) > 0 else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=resources.get("GPU", 0) > 0, resources_per_worker=dict(resources)
        ),
        run_config=RunConfig(
            name=name, storage_path=storage_url, failure_config=FailureConfig(max_failures=max_failures)
        ),
    )

    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # handed to the waiting thread
            failure.append(error)

    # Not in the main thread: there fit would take over SIGINT, which is how Ray cancels a task, and leave its handler
    # in this process, which serves other steps afterwards.
    fitting = threading.Thread(target=fit, name="ray-train", daemon=True)
    fitting.start()
    try:
        while fitting.is_alive():
            fitting.join(poll_s)
            poll()
    except BaseException:
        cancel()
        fitting.join(CANCEL_S)
        raise
    if failure and isinstance(failure[0], TrainingFailedError):
        raise TrainingLost(_reason(failure[0])) from failure[0]
    if failure:
        raise failure[0]


def _reason(error: BaseException) -> str:
    """The last line of what the first failed worker said; Ray Train's own first line only says that one did."""
    failures = getattr(error, "worker_failures", None) or {}
    rank, cause = min(failures.items(), default=(None, error), key=lambda item: item[0])
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    return lines[-1] if rank is None else f"worker {rank}: {lines[-1]}"
