"""One way to spread independent work over a cluster: Ray tasks where Ray runs, a plain loop where it does not."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD_PER_CPU = 2  # tasks submitted before the first result is read: bounds memory, keeps every core busy


def spread(
    function: Callable[..., Result], items: Iterable[Item], *shared: Any, worth_it: bool = True
) -> Iterator[Result]:
    """Yield ``function(item, *shared)`` in the order of ``items``, so that results never depend on timing.

    ``items`` may be lazy: it is read a few ahead. ``shared`` goes to the object store once. ``worth_it`` False forces
    the loop (starting workers costs about a second). A StageError of a task arrives as itself.
    """
    ray = running_ray() if worth_it else None
    if ray is None:
        for item in items:
            yield function(item, *shared)
        return
    remote = ray.remote(num_cpus=1, max_retries=3)(function)
    references = [ray.put(value) for value in shared]
    ahead = max(2, int(AHEAD_PER_CPU * ray.cluster_resources().get("CPU", 1)))
    pending: deque[Any] = deque()
    for item in items:
        pending.append(remote.remote(item, *references))
        if len(pending) >= ahead:
            yield _result(ray, pending.popleft())
    while pending:
        yield _result(ray, pending.popleft())


def running_ray() -> Any:
    """Ray's module where this process is connected to a cluster, else None."""
    ray = sys.modules.get("ray")  # a process that never imported Ray cannot be connected to one
    return ray if ray is not None and ray.is_initialized() else None


def _result(ray: Any, reference: Any) -> Any:
    from stages.stage import StageError

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, StageError):
            raise error.cause from error
        raise
