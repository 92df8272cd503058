"""Where jobs run: as Ray tasks, or one after the other in this process.

Both have the same five calls; the executor knows no Ray. The inline runner serves tests and ``memory://`` stores
(whose content lives in one process), and needs neither Ray nor a second process.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from cluster import connect, groups
from pipeline.engine.worker import Cancelled, Done, Failed, Job, Message, run_step
from pipeline.errors import ClusterUnreachable, StudyError
from stages.stage import Resources

Result = Done | Failed | Cancelled
INLINE = "inline"


class Runner(Protocol):
    """Runs jobs and passes on what they say."""

    def check(self, wanted: Iterable[tuple[str, Resources]]) -> None:
        """Raises StudyError if a step could never start for want of resources."""

    def submit(self, job: Job, resources: Resources) -> None:
        """Start a job; its step id names it from now on."""

    def wait(self, seconds: float) -> list[tuple[str, Result]]:
        """What has finished, after at most ``seconds``. All of its messages can then be drained."""

    def drain(self, seconds: float = 10.0) -> list[Message]:
        """Messages since the last call, in order of each step; those that do not come within ``seconds`` come with the
        next."""

    def cancel(self, step: str, force: bool = False) -> None:
        """Interrupt a job; ``force`` ends its process. ``wait`` will return it as Cancelled."""

    def close(self) -> None:
        """Leave, ending what was started for this run."""


def start(address: str, max_retries: int, say: Callable[[str], None] = lambda text: None) -> Runner:
    """The runner for an address: ``inline``, ``local`` (embedded Ray), ``auto`` or ``host:port``. ``say``: told what a
    person should know meanwhile.

    Raises ClusterUnreachable.
    """
    return InlineRunner() if address == INLINE else RayRunner(address, max_retries, say)


class InlineRunner:
    """Runs a job to its end inside ``wait``. Cancelling means not starting."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._results: list[tuple[str, Result]] = []
        self._messages: list[Message] = []

    def check(self, wanted: Iterable[tuple[str, Resources]]) -> None:
        """Everything fits: the process takes what it needs."""

    def submit(self, job: Job, resources: Resources) -> None:
        self._jobs.append(job)

    def wait(self, seconds: float) -> list[tuple[str, Result]]:
        if self._jobs:
            job = self._jobs.pop(0)
            try:
                self._results.append((job.step, run_step(job, self, redirect=False)))
            except KeyboardInterrupt:
                self._results.append((job.step, Cancelled()))
                raise
        elif not self._results:
            _pause(seconds)
        finished, self._results = self._results, []
        return finished

    def send(self, messages: list[Message], last: bool = False) -> None:
        self._messages += messages

    def drain(self, seconds: float = 10.0) -> list[Message]:
        messages, self._messages = self._messages, []
        return messages

    def cancel(self, step: str, force: bool = False) -> None:
        waiting = [job for job in self._jobs if job.step == step]
        self._jobs = [job for job in self._jobs if job.step != step]
        self._results += [(job.step, Cancelled()) for job in waiting]

    def close(self) -> None:
        self._jobs.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a step that runs inline cannot pass its context to other processes; run it with address local")


def _pause(seconds: float) -> None:
    """Pause while another driver computes what this one waits for; ends at once on Ctrl-C."""
    with contextlib.suppress(queue.Empty):
        queue.SimpleQueue[None]().get(timeout=seconds)


class RayRunner:
    """One Ray task per job, one small actor on the driver's node for their messages."""

    def __init__(self, address: str, max_retries: int, say: Callable[[str], None]) -> None:
        try:
            self.connection = connect.connect(address, say=say)
        except connect.ClusterError as error:
            raise ClusterUnreachable(str(error)) from error
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self.connection.node_id, soft=False)
        self._ray = ray
        mailbox: Any = ray.remote(_Mailbox)
        self._mailbox = mailbox.options(num_cpus=0, scheduling_strategy=here).remote()
        self._task: Any = ray.remote(max_retries=max_retries, retry_exceptions=False)(_task)
        self._running: dict[Any, str] = {}
        self._fetching: Any = None
        self._groups: Any = None  # workers that trainings of several share, from the first of them on
        self._reserved, self._released = 0.0, 0.0  # cores of such a group; when those that idle were last told to end
        self._asked: dict[str, float] = {}  # cores, by running step

    def check(self, wanted: Iterable[tuple[str, Resources]]) -> None:
        if not self.connection.embedded:
            return  # other nodes may join, an autoscaler may start them
        have = {"CPU": 0.0, "GPU": 0.0, **self.connection.resources}
        for step, needs in wanted:
            for name, amount in (("CPU", needs.cpus), ("GPU", needs.gpus)):
                if amount > have[name]:
                    fields = "train_workers, cpus_per_worker or task_cpus" if name == "CPU" else "gpus_per_worker"
                    raise StudyError(
                        f"execution: step {step} asks for {amount:g} {name}s, this machine has {have[name]:g}. "
                        f"Fix: lower execution.{fields}, or give --address of a cluster"
                    )

    def submit(self, job: Job, resources: Resources) -> None:
        if job.execution.train_workers > 1 and self._groups is None:
            self._groups = groups.start_groups(groups.NAME)
            self._reserved = job.execution.train_workers * job.execution.cpus_per_worker
        self._asked[job.step] = resources.cpus
        task = self._task.options(num_cpus=resources.cpus, num_gpus=resources.gpus, name=job.step)
        self._running[task.remote(job, _MailboxSink(self._mailbox))] = job.step

    def wait(self, seconds: float) -> list[tuple[str, Result]]:
        if not self._running:
            _pause(seconds)
            return []
        self._make_room()
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds, fetch_local=False)
        return [(self._running.pop(reference), self._result(reference)) for reference in ready]

    def _make_room(self) -> None:
        """Let training workers that idle end where their cores are wanted."""
        wanted = sum(self._asked[step] for step in self._running.values())
        if self._groups is None or not wanted or time.monotonic() - self._released < 1:
            return
        self._released = time.monotonic()
        if wanted + self._reserved > self._ray.cluster_resources().get("CPU", 0.0):
            self._groups.release.remote()

    def _result(self, reference: Any) -> Result:
        errors = self._ray.exceptions
        try:
            result: Result = self._ray.get(reference)
            return result
        except (errors.TaskCancelledError, KeyboardInterrupt):
            return Cancelled()
        except errors.RayTaskError as error:
            if isinstance(error.cause, (KeyboardInterrupt, SystemExit)):
                return Cancelled()
            return Failed(str(error.cause or error).strip().splitlines()[-1])
        except errors.OutOfMemoryError:
            return Failed("the machine ran out of memory. Fix: lower execution.jobs or execution.micro_batch")
        except errors.RayError as error:
            text = str(error).strip().splitlines()
            return Failed(f"its worker was lost and so were the tries after it: {type(error).__name__}: {text[0]}")

    def drain(self, seconds: float = 10.0) -> list[Message]:
        if self._fetching is None:
            self._fetching = self._mailbox.drain.remote()
        try:
            messages: list[Message] = self._ray.get(self._fetching, timeout=seconds)
        except self._ray.exceptions.GetTimeoutError:
            return []  # asked for already; it comes with the next call
        self._fetching = None
        return messages

    def cancel(self, step: str, force: bool = False) -> None:
        for reference, name in self._running.items():
            if name == step:
                self._ray.cancel(reference, force=force, recursive=True)

    def close(self) -> None:
        if not self.connection.embedded:
            for actor in (self._mailbox, self._groups):
                with contextlib.suppress(Exception):
                    self._ray.kill(actor)
        self.connection.close()


class _Mailbox:
    """Gathers messages of all steps until the driver asks."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    def put(self, messages: list[Message]) -> None:
        self._messages += messages

    def drain(self) -> list[Message]:
        messages, self._messages = self._messages, []
        return messages


class _MailboxSink:
    """The worker's end of the mailbox. Calls of one worker arrive in order, so waiting for the last is enough."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def send(self, messages: list[Message], last: bool = False) -> None:
        reference = self._mailbox.put.remote(messages)
        if last:
            import ray

            ray.get(reference, timeout=10)


def _task(job: Job, sink: _MailboxSink) -> Done | Failed:
    return run_step(job, sink, redirect=True)
