"""Several ranks on this machine: gloo processes that run a function of this package's tests and give back what it
returns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """``function(*args)`` on every rank of a gloo group of ``size`` processes; what each returned, in order."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_one, (size, folder, function, args), nprocs=size, start_method="spawn")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _one(rank: int, size: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    try:
        torch.save(function(*args), f"{folder}/{rank}.pt")
        dist.barrier()  # gloo's threads give up their tensors a little after the last collective; see process_group
    finally:
        dist.destroy_process_group()
