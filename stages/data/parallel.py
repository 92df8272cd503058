"""One way to spread independent work over a cluster: Ray tasks where Ray runs, a plain loop where it does not."""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

Work = TypeVar("Work")
Returned = TypeVar("Returned")

AHEAD_PER_CPU = 2  # tasks submitted before the first result is read: bounds memory, keeps every core busy


@dataclass(frozen=True)
class Hands:
    """What one item's work asks for. ``stay``: processes of this call's own that do one item after another, and so keep
    what is slow to load (a model on a GPU), and end with the call; else tasks in whichever process is free."""

    cpus: float = 1.0
    gpus: float = 0.0
    stay: bool = False


def spread(
    function: Callable[..., Returned],
    items: Iterable[Work],
    *shared: Any,
    worth_it: bool = True,
    hands: Hands | None = None,
    waiting: Callable[[], None] | None = None,
) -> Iterator[Returned]:
    """Yield ``function(item, *shared)`` in the order of ``items``, so that results never depend on timing.

    ``items`` may be lazy: it is read a few ahead. ``shared`` goes to the object store once. ``worth_it`` False forces
    the loop (starting workers costs about a second). A StageError of a task arrives as itself. ``waiting`` is called
    once a second while a result is waited for.
    """
    ray = running_ray() if worth_it else None
    if ray is None:
        for item in items:
            yield function(item, *shared)
        return
    references = [ray.put(value) for value in shared]
    hands = hands or Hands()
    if hands.stay:
        yield from _by_those_who_stay(ray, function, items, references, hands, waiting)
        return
    remote = ray.remote(num_cpus=hands.cpus, num_gpus=hands.gpus, max_retries=3)(function)
    ahead = max(2, int(AHEAD_PER_CPU * ray.cluster_resources().get("CPU", 1)))
    pending: deque[Any] = deque()
    for item in items:
        pending.append(remote.remote(item, *references))
        if len(pending) >= ahead:
            yield _result(ray, pending.popleft(), waiting)
    while pending:
        yield _result(ray, pending.popleft(), waiting)


class _Hand:
    """One process that stays."""

    def ready(self) -> None:
        """Answers when the process is there."""

    def do(self, function: Callable[..., Returned], item: Any, *shared: Any) -> Returned:
        return function(item, *shared)


def _by_those_who_stay(
    ray: Any,
    function: Callable[..., Returned],
    items: Iterable[Work],
    references: list[Any],
    hands: Hands,
    waiting: Callable[[], None] | None,
) -> Iterator[Returned]:
    """As many processes as the cluster has room for; an item goes to one that is there and idle, so that one that
    cannot be placed, because others hold its GPU, keeps nobody waiting."""
    hand = ray.remote(num_cpus=hands.cpus, num_gpus=hands.gpus, max_restarts=3, max_task_retries=3)(_Hand)
    name, each = ("GPU", hands.gpus) if hands.gpus else ("CPU", hands.cpus)
    room = max(1, int(ray.cluster_resources().get(name, 1) / each))
    coming_items = iter(items)
    first = list(itertools.islice(coming_items, room))  # no more processes than items
    left = enumerate(itertools.chain(first, coming_items))
    made = [hand.remote() for _ in first]
    coming = {one.ready.remote(): one for one in made}
    working: dict[Any, tuple[int, Any]] = {}
    done: dict[int, Any] = {}
    at, more = 0, True
    try:
        while more or working:
            found, _ = ray.wait([*coming, *working], timeout=1) if coming or working else ([], [])
            if not found and waiting is not None:
                waiting()
            for reference in found:
                number, one = working.pop(reference, (-1, None))
                if one is None:
                    one = coming.pop(reference)
                    _result(ray, reference)
                else:
                    done[number] = reference
                number, item = next(left, (-1, None))
                more = number >= 0
                if more:
                    working[one.do.remote(function, item, *references)] = (number, one)
            while at in done:
                yield _result(ray, done.pop(at))
                at += 1
            more = more and bool(made)
    finally:
        for one in made:
            ray.kill(one)


def running_ray() -> Any:
    """Ray's module where this process is connected to a cluster, else None."""
    ray = sys.modules.get("ray")  # a process that never imported Ray cannot be connected to one
    return ray if ray is not None and ray.is_initialized() else None


def _result(ray: Any, reference: Any, waiting: Callable[[], None] | None = None) -> Any:
    from stages.stage import StageError

    try:
        while waiting is not None and not ray.wait([reference], timeout=1)[0]:
            waiting()
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, StageError):
            raise error.cause from error
        raise
