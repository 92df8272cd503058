"""The notice that a worker's machine is about to be taken away: SIGTERM (Slurm, Kubernetes, torchrun, a cloud's agent),
or Ray's, of a node that is drained. Training then writes a resume point after the step it is at, and stops."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Preempted(Exception):
    """Stopped at a notice, with a resume point that the next attempt goes on from."""

    def __init__(self, step: int) -> None:
        super().__init__(f"preempted: a resume point was written after step {step}, where the next attempt goes on")
        self.step, self.preempted = step, True

    def __reduce__(self) -> tuple[Any, ...]:
        return (Preempted, (self.step,))


@contextlib.contextmanager
def awaited() -> Iterator[Callable[[], bool]]:
    """While the block lasts, SIGTERM is a notice; what it yields says whether one came. Afterwards, if training stopped
    at it, SIGTERM has its usual effect on this process."""
    came = threading.Event()
    in_main = threading.current_thread() is threading.main_thread()
    before = _handle(lambda *_: came.set(), in_main)
    stopped = False
    try:
        yield lambda: came.is_set() or _drained()
    except Preempted:
        stopped = came.is_set()
        raise
    finally:
        _handle(before, in_main)
        if stopped and in_main:
            signal.raise_signal(signal.SIGTERM)


def _handle(handler: Any, in_main: bool) -> Any:
    """Let ``handler`` take SIGTERM; the one before. Python sets handlers in the main thread alone, which in a worker of
    Ray Train is the actor's."""
    handler = signal.SIG_DFL if handler is None else handler
    if in_main:
        return signal.signal(signal.SIGTERM, handler)
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    holder: list[Any] = []
    _IN_MAIN.append(lambda: holder.append(signal.signal(signal.SIGTERM, handler)))
    ray.get(ray.get_runtime_context().current_actor.execute.remote(_in_main))
    return holder[0]


_IN_MAIN: list[Callable[[], None]] = []
"""What the actor's main thread is to do next."""


def _in_main() -> None:
    _IN_MAIN.pop()()


def _drained() -> bool:
    """Does Ray Train know of a drain of one of its nodes? Asks nobody: its worker was told, or was not."""
    train = sys.modules.get("ray.train")
    if train is None or threading.current_thread() is threading.main_thread():
        return False
    try:
        return train.get_preemption_info() is not None
    except RuntimeError:  # not in a worker of Ray Train
        return False
