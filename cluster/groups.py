"""Workers of Ray Train that stay from one training run to the next.

Placing a gang of workers, starting their processes, importing torch and meeting in a process group takes Ray Train 15
to 35 s, a small run two. So one training function takes run after run in the same workers, which keep their process
group. Ray Train goes on doing what it did: it places them, notices that one died and starts all again; then they take
up the run they were at. A group that had nothing to do for ``IDLE_S``, or whose cores somebody waits for, ends.

One actor, ``WorkerGroups``, has them all; it lives with the driver that made it. Runs of one shape (number of workers
and what each asks for) wait in one line, and the next group of that shape that is free takes the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from traceback import format_exception_only
from typing import Any

from cluster.connect import set_environment

# Beside cluster.connect's: nodes that are gone must not hold a restart for a minute; one process less per group.
TRAIN_ENVIRONMENT: Mapping[str, str] = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
IDLE_S = 15.0  # how long a group without a run keeps its workers
PATIENCE_S = 20.0  # how long a run waits for a group that is at work, where there is no room for one more
CLOSE_S = 20.0  # how long groups may take to end
NAME = "infini-study-training"

GroupShape = tuple[int, tuple[tuple[str, float], ...]]


@dataclass
class _GroupRun:
    """A training run. task: its function and config, pickled. failures: times that workers were lost at it."""

    name: str
    task: bytes
    shape: GroupShape
    max_failures: int
    failures: int = 0
    since: float = field(default_factory=time.monotonic)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = ""  # why it could not be done


@dataclass
class _Group:
    """Workers, while Ray Train keeps them. up: one has asked for a run. number: of the run they are at, or were.
    asked: which of a rank's questions is the newest: those of a worker that died are never answered."""

    number: int
    shape: GroupShape
    run: _GroupRun | None = None
    runs: int = 0
    up: bool = False
    ending: bool = False
    failing: bool = False
    idle_since: float = 0.0
    returned: set[int] = field(default_factory=set)
    asked: dict[int, int] = field(default_factory=dict)


class WorkerGroups:
    """The actor. All of its methods are coroutines, so that any number of workers may be waiting."""

    def __init__(self) -> None:
        set_environment()
        for variable, value in TRAIN_ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        self._watch_drains = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER" not in os.environ
        self._waiting: list[_GroupRun] = []
        self._groups: dict[int, _Group] = {}
        self._made = 0
        self._changed = asyncio.Condition()
        self._minder: asyncio.Task[None] | None = None

    async def train(
        self, name: str, task: bytes, workers: int, resources: dict[str, float], max_failures: int
    ) -> str | None:
        """Have the run done by some group; asked again for a run that is not done, wait for it. None: it is done; else
        why not."""
        run = next((r for r in self._all() if r.name == name), None)
        if run is None:
            run = _GroupRun(name, task, (workers, tuple(sorted(resources.items()))), max_failures)
            self._waiting.append(run)
            await self._settle()
        if self._minder is None:
            self._minder = asyncio.create_task(self._mind())
        await run.ended.wait()
        return run.reason or None

    async def next(self, number: int, rank: int, done: int) -> tuple[int, bytes] | None:
        """A worker's question, which run it is to take after its ``done``-th: (number, task); None: no more."""
        group = self._groups[number]
        mine = group.asked[rank] = group.asked.get(rank, 0) + 1
        if done == 0:  # new workers
            group.up, group.failing, group.idle_since = True, False, time.monotonic()
            group.returned.discard(rank)
        elif group.run is not None and done == group.runs:
            group.returned.add(rank)
            if len(group.returned) == group.shape[0]:
                self._end(group)
        await self._settle()
        async with self._changed:
            await self._changed.wait_for(
                lambda: group.asked[rank] != mine or group.ending or (group.run is not None and group.runs > done)
            )
        if group.asked[rank] != mine or group.run is None or group.runs <= done:
            return None
        return group.runs, group.run.task

    async def failed(self, number: int, reason: str, counts: bool) -> None:
        """Ray Train lost workers of a group and will start it again. ``counts``: against the run's ``max_failures``."""
        group = self._groups[number]
        group.failing = True  # until its new workers ask
        run = group.run or next((r for r in self._waiting if r.shape == group.shape and not group.up), None)
        if run is not None and counts:
            run.failures += 1
            if run.failures > run.max_failures:
                run.reason = reason
                if run is group.run:
                    self._end(group)
                else:
                    self._waiting.remove(run)
                    run.ended.set()
        await self._settle()

    async def release(self) -> None:
        """Let groups without a run end: somebody waits for their cores."""
        for group in self._groups.values():
            group.ending = group.ending or (group.up and group.run is None)
        await self._settle()

    async def close(self) -> None:
        """End all groups and wait for it: killed with them, this actor would leave their cores reserved."""
        for group in self._groups.values():
            group.ending = True
        await self._settle()
        async with self._changed:
            await self._changed.wait_for(lambda: not self._groups)

    def _all(self) -> list[_GroupRun]:
        return [*self._waiting, *(group.run for group in self._groups.values() if group.run is not None)]

    def _end(self, group: _Group) -> None:
        assert group.run is not None
        group.run.ended.set()
        group.run, group.idle_since = None, time.monotonic()

    async def _mind(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            for group in self._groups.values():
                if group.up and not group.failing and group.run is None and now - group.idle_since > IDLE_S:
                    group.ending = True
            with contextlib.suppress(Exception):  # the cluster may not answer just now; this must go on
                await self._settle()

    async def _settle(self) -> None:
        """Give runs to groups that are free, and start groups for those that remain."""
        for run in list(self._waiting):
            free = [g for g in self._groups.values() if g.shape == run.shape and g.run is None and not g.ending]
            ready = next((g for g in free if g.up and not g.failing), None)
            if ready is not None:
                self._waiting.remove(run)
                ready.run, ready.runs = run, ready.runs + 1
                ready.returned.clear()
        lacking: dict[GroupShape, list[_GroupRun]] = {}
        for run in self._waiting:
            lacking.setdefault(run.shape, []).append(run)
        for shape, runs in lacking.items():
            coming = sum(g.shape == shape and g.run is None and not g.ending for g in self._groups.values())
            for run in runs[coming:]:
                busy = any(g.shape == shape and g.run is not None for g in self._groups.values())
                if not busy or time.monotonic() - run.since > PATIENCE_S or _room(shape):
                    for other in self._groups.values():  # of another shape, on cores that these may need
                        other.ending = other.ending or (other.up and other.run is None)
                    self._start(shape)
        async with self._changed:
            self._changed.notify_all()

    def _start(self, shape: GroupShape) -> None:
        import ray

        self._made += 1
        group = self._groups[self._made] = _Group(self._made, shape)
        if self._watch_drains:  # on one node there is nobody to warn of a drain: one process less
            os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = str(int(len(ray.nodes()) > 1))
        me, loop = ray.get_runtime_context().current_actor, asyncio.get_running_loop()

        def fit() -> None:
            reason = _fit(me, group.number, shape)
            asyncio.run_coroutine_threadsafe(self._gone(group, reason), loop)

        threading.Thread(target=fit, name=f"ray-train-{group.number}", daemon=True).start()

    async def _gone(self, group: _Group, reason: str) -> None:
        """A group's workers are no more. Where it did not end by itself, its run is told why."""
        del self._groups[group.number]
        run = group.run or next((r for r in self._waiting if r.shape == group.shape and reason), None)
        if run is not None:
            run.reason = reason or "its workers ended"
            if run in self._waiting:
                self._waiting.remove(run)
            run.ended.set()
        await self._settle()


def _room(shape: GroupShape) -> bool:
    """Are there as many resources free as a group of this shape asks for?"""
    import ray

    free = ray.available_resources()
    return all(free.get(name, 0.0) >= shape[0] * amount for name, amount in shape[1])


def _fit(groups: Any, number: int, shape: GroupShape) -> str:
    """Ray Train's part: keep the workers until they end by themselves. Returns why it gave up, "" if it did not."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    workers, resources = shape[0], dict(shape[1])
    gpu = resources.get("GPU", 0) > 0
    records = tempfile.mkdtemp(prefix="ray-train-")  # its own records; resume points are the training function's
    trainer = TorchTrainer(
        _serve,
        train_loop_config={"groups": groups, "number": number},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=f"group-{number}",
            storage_path=records,
            failure_config=FailureConfig(max_failures=-1),  # failures are a run's, and counted there
            callbacks=[_told(groups, number)],
        ),
    )
    try:
        trainer.fit()
    except BaseException as error:
        return _reason(getattr(error, "worker_failures", None) or {None: error})
    finally:
        shutil.rmtree(records, ignore_errors=True)
    return ""


def _told(groups: Any, number: int) -> Any:
    """What Ray Train's controller calls when workers are lost."""
    from ray.train import UserCallback

    class Told(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            import ray

            preempted = any(
                getattr(error, "preempted", False) or getattr(getattr(error, "_base_exc", None), "preempted", False)
                for error in worker_exceptions.values()
            )
            with contextlib.suppress(Exception):  # the group starts again in any case
                ray.get(groups.failed.remote(number, _reason(worker_exceptions), not preempted), timeout=10)

    return Told()


def _serve(config: dict[str, Any]) -> None:
    """What each worker does: run after run, until there are no more."""
    import ray
    import ray.train
    from ray import cloudpickle

    rank, done = ray.train.get_context().get_world_rank(), 0
    while (given := ray.get(config["groups"].next.remote(config["number"], rank, done))) is not None:
        number, task = given
        function, its_config = cloudpickle.loads(task)
        function(its_config)
        done = number
        del function, its_config
        gc.collect()  # what the run held (sharded modules are in circles) is not kept beside the next one's


def _reason(failures: Mapping[Any, BaseException]) -> str:
    """The last line of what the first failed worker said; Ray Train's own first line only says that one did."""
    rank, cause = min(failures.items(), key=lambda item: -1 if item[0] is None else item[0])
    lines = [line.strip() for line in "".join(format_exception_only(cause)).splitlines() if line.strip()]
    return lines[-1] if rank is None else f"worker {rank}: {lines[-1]}"


def start_groups(name: str | None = None) -> Any:
    """A new ``WorkerGroups`` actor on this node; it ends with this process at the latest. ``name``: under which
    ``groups`` finds it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here}
    if name is not None:
        options |= {"name": name, "get_if_exists": True}
    return ray.remote(WorkerGroups).options(**options).remote()


@contextlib.contextmanager
def groups() -> Iterator[Any]:
    """The driver's ``WorkerGroups``, or where it has none, one for as long as the block lasts."""
    import ray

    try:
        standing = ray.get_actor(NAME)
    except ValueError:
        standing = None
    if standing is not None:
        yield standing
        return
    own = start_groups()
    try:
        yield own
    finally:
        close(own)


def close(keeper: Any) -> None:
    """End a ``WorkerGroups`` actor and the workers it has."""
    import ray

    with contextlib.suppress(Exception):  # it is gone, or some run does not stop
        ray.get(keeper.close.remote(), timeout=CLOSE_S)
    ray.kill(keeper)
