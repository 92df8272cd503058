"""One way to spread independent work over a cluster: Ray tasks where Ray runs, a plain loop where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(
    function: Callable[..., Result], items: Sequence[Item], *shared: Any, worth_it: bool = True
) -> Iterator[tuple[int, Result]]:
    """Yield (index, ``function(item, *shared)``) in the order of ``items``, so that results never depend on timing.

    ``shared`` goes to the object store once. At most four results a CPU wait unread. ``worth_it`` False forces the
    loop: starting workers costs about a second. A StageError of a task arrives as itself.
    """
    ray = _running_ray() if worth_it and len(items) > 1 else None
    if ray is None:
        for index, item in enumerate(items):
            yield index, function(item, *shared)
        return
    remote = ray.remote(num_cpus=1, max_retries=3)(function)
    references = [ray.put(value) for value in shared]
    ahead = max(4, 4 * int(ray.cluster_resources().get("CPU", 1)))
    pending: list[Any] = []
    for index in range(len(items) + ahead):
        if index < len(items):
            pending.append(remote.remote(items[index], *references))
        if index >= ahead:
            done = index - ahead
            if done < len(items):
                yield done, _result(ray, pending[done])
                pending[done] = None


def _running_ray() -> Any:
    import sys

    ray = sys.modules.get("ray")  # a process that never imported Ray cannot be connected to one
    return ray if ray is not None and ray.is_initialized() else None


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        from stages.stage import StageError

        if isinstance(error.cause, StageError):
            raise error.cause from error
        raise
