"""One training run of several workers on Ray Train (V2): started, watched, restarted after a loss, and waited for.

Ray Train does here what it is good at: placing a gang of workers, starting their process group, noticing that one
died, starting all again. Checkpoints and progress are the training function's own business (in its work folder), so
the same function also runs without Ray, which is what a run of one worker does. Workers stay for the next run
(``groups.py``).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from cluster.connect import set_environment
from cluster.groups import groups

CANCEL_S = 20.0  # how long a cancelled run may take to stop by itself; after that all groups are ended


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
    name: str,
    workers: int,
    resources: Mapping[str, float],
    max_failures: int,
    poll: Callable[[], None] = lambda: None,
    cancel: Callable[[], None] = lambda: None,
    poll_s: float = 0.5,
) -> None:
    """Run ``train_fn(config)`` on ``workers`` Ray workers and wait; a lost worker restarts all, up to ``max_failures``.

    ``train_fn`` must find by itself where to go on, and leave its process as another run may find it. ``resources``:
    what each worker asks for (``CPU``, ``GPU``). They share a torch process group (nccl where GPUs are asked for, else
    gloo). ``name``: the same for every attempt at the same run; one that is going on is waited for.
    ``poll`` is called every ``poll_s`` seconds while the run lasts, and once after it. If the wait is interrupted
    (a cancelled task), ``cancel`` is called; it must make ``train_fn`` return soon, also after a restart.

    Raises TrainingLost when the retries are used up.
    """
    set_environment()
    import ray
    from ray import cloudpickle

    task = cloudpickle.dumps((train_fn, config))
    for _ in range(1 + max_failures):
        with groups() as keeper:
            running = keeper.train.remote(name, task, workers, dict(resources), max_failures)
            try:
                while not ray.wait([running], timeout=poll_s)[0]:
                    poll()
                poll()
                lost = ray.get(running)
            except ray.exceptions.RayActorError as error:  # it died, and the workers with it: by other workers then
                lost = str(error).strip().splitlines()[0]
                continue
            except BaseException:
                cancel()
                with contextlib.suppress(ray.exceptions.RayActorError):
                    if not ray.wait([running], timeout=CANCEL_S)[0]:
                        ray.kill(keeper)
                raise
        if lost is None:
            return
        raise TrainingLost(lost)
    raise TrainingLost(lost)
