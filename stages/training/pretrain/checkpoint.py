"""Resume points of a training run: sharded (torch.distributed.checkpoint), complete or not there.

``<work_url>/checkpoints/step-00000100/`` holds one file per rank, DCP's ``.metadata`` and, written last by rank 0,
``state.json``: a folder without it never existed. The newest sound one is used; a damaged one is passed over, loudly.

Written in the background, a resume point is the same: tensors are copied, training goes on, and ``state.json`` follows
when every rank's file is there. Until then the one before is the newest.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import nn

from cluster.storage import filesystem, fingerprint, is_local, remove_tree, write_atomic
from stages.stage import StageError

STATE = "state.json"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without DCP's warning that a run of one process has no process group: it is meant to have none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """What failed on a rank, in place of torch's CheckpointException, which is none of the exceptions that are caught
    (BaseException)."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


@dataclass
class RunState:
    """What a resumed run needs besides tensors. step: optimiser steps done; wall_s: seconds of training so far;
    sequence_ranks: ranks that share a sequence; resized: [step, world size, ranks of a sequence] from which another
    number of ranks went on; digest: of all else here, "" in one written before there was such."""

    step: int = 0
    world_size: int = 1
    sequence_ranks: int = 1
    wall_s: float = 0.0
    rows: list[dict[str, float | int | None]] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    gates: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    resized: list[list[int]] = field(default_factory=list)
    digest: str = ""

    def own_digest(self) -> str:
        """xxh3 of the other fields."""
        fields = {name: value for name, value in asdict(self).items() if name != "digest"}
        for name in ("gates", "resized"):  # as in resume points that were written before there were such
            if fields[name] == []:
                fields.pop(name)
        return xxhash.xxh3_64(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """The resume points of one run below ``work_url``; every rank calls every method. keep: how many stay.
    background: written while training goes on, one at a time."""

    def __init__(
        self,
        work_url: str,
        rank: int,
        world_size: int,
        warn: Callable[[str], None],
        *,
        keep: int = 2,
        background: bool = False,
    ) -> None:
        self.keep, self.background = keep, background
        self._pending: tuple[Future[Any], str, RunState] | None = None
        self._group: Any = None  # of the background's collectives: those of training must not meet them
        self.url = f"{work_url.rstrip('/')}/checkpoints"
        self.fs, self.root = filesystem(self.url)
        self.local = is_local(self.fs)
        self.rank, self.world_size, self.warn = rank, world_size, warn

    def save(
        self,
        state: RunState,
        decoder: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        kept: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Write a resume point after ``state.step`` steps; it counts once ``state.json`` is there. One that is still
        being written in the background is waited for. kept: this rank's other tensors, by names of its own."""
        from torch.distributed.checkpoint import state_dict_saver

        self.finish()
        folder = f"{self.root}/step-{state.step:08d}"
        if self.rank == 0:
            if self.fs.exists(folder):  # half-written by an attempt that was killed, or damaged
                remove_tree(self.fs, folder)
            self.fs.makedirs(folder, exist_ok=True)
        if self.world_size > 1:
            dist.barrier()
        if self.background:  # what it says, it says in a thread of its own, after ``quiet``
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        alone, writer = self.world_size == 1, self._writer(folder)
        tensors = self._tensors(decoder, optimizers) | dict(kept or {})
        with quiet(), own_errors():
            if not self.background:
                state_dict_saver.save(tensors, storage_writer=writer, no_dist=alone)
                self._complete(folder, state)
                return
            if self._group is None and not alone:
                self._group = dist.new_group(backend="gloo")
            future = state_dict_saver.async_save(
                tensors, storage_writer=writer, process_group=self._group, no_dist=alone
            )
        assert isinstance(future, Future)
        self._pending = (
            future,
            folder,
            replace(state, rows=list(state.rows), samples=list(state.samples), gates=list(state.gates)),
        )

    def finish(self) -> None:
        """Wait for a resume point that is being written in the background, and have it count. Every rank calls it.

        Raises what its writing raised."""
        if self._pending is not None:
            (future, folder, state), self._pending = self._pending, None
            with own_errors():
                future.result()
            self._complete(folder, state)

    def advance(self) -> None:
        """``finish``, if it would not wait."""
        if self._pending is not None and self._pending[0].done():
            self.finish()

    def close(self) -> None:
        """``finish``, and leave the background's group. Every rank calls it."""
        self.finish()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _complete(self, folder: str, state: RunState) -> None:
        """On rank 0: the files of every rank are there."""
        if self.rank == 0:
            state.world_size = self.world_size
            state.files = {name: fingerprint(self.fs, f"{folder}/{name}") for name in self._files(folder)}
            state.digest = state.own_digest()
            write_atomic(self.fs, f"{folder}/{STATE}", json.dumps(asdict(state)).encode())
            for old in self._steps()[: -self.keep]:
                remove_tree(self.fs, f"{self.root}/{old}")

    def load(
        self,
        decoder: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        any_world_size: bool,
        sequence_ranks: int = 1,
        kept: tuple[dict[str, torch.Tensor], Callable[[str], bool]] | None = None,
    ) -> RunState:
        """Restore the newest sound resume point in place; a fresh ``RunState`` where there is none. kept: filled with
        the other tensors whose names it wants.

        Raises StageError if it was written by another world size, or with sequences shared by another number of ranks,
        and ``any_world_size`` is False: sums of gradients would be rounded otherwise, and the loss sequence would not
        be that of an uninterrupted run.
        """
        choice: list[RunState | None] = [self._newest_sound() if self.rank == 0 else None]
        if self.world_size > 1:
            dist.broadcast_object_list(choice, src=0)
        state = choice[0]
        if state is None:
            return RunState(world_size=self.world_size, sequence_ranks=sequence_ranks)
        if state.world_size != self.world_size and not any_world_size:
            raise StageError(
                f"this run began with {state.world_size} workers and stands at step {state.step}",
                field="execution.train_workers",
                value=self.world_size,
                allowed=str(state.world_size),
                fix="set it back, or set execution.allow_world_size_change",
            )
        if state.sequence_ranks != sequence_ranks and not any_world_size:
            raise StageError(
                f"this run began with {state.sequence_ranks} workers to a sequence and stands at step {state.step}",
                field="execution.sequence_parallel",
                value=sequence_ranks,
                allowed=str(state.sequence_ranks),
                fix="set it back, or set execution.allow_world_size_change",
            )
        resized = (state.world_size, state.sequence_ranks) != (self.world_size, sequence_ranks)
        if resized:  # sums of gradients are rounded otherwise from here on: said and recorded
            state.resized.append([state.step, self.world_size, sequence_ranks])
            if self.rank == 0:
                self.warn(
                    f"from step {state.step} on {self.world_size} workers train what {state.world_size} began; the "
                    "losses are not to the bit those of an unbroken run (recorded in cost.json)"
                )
        state.sequence_ranks = sequence_ranks
        from torch.distributed.checkpoint import state_dict_loader
        from torch.distributed.checkpoint.state_dict import set_state_dict

        tensors = self._tensors(decoder, optimizers, resized=resized)
        reader = self._reader(f"{self.root}/step-{state.step:08d}")
        if kept is not None:
            found, wanted = kept
            for name, stored in reader.read_metadata().state_dict_metadata.items():
                if wanted(name):
                    found[name] = torch.empty(stored.size, dtype=stored.properties.dtype)
            tensors |= found
        with quiet(), own_errors():
            state_dict_loader.load(tensors, storage_reader=reader, no_dist=self.world_size == 1)
        set_state_dict(decoder, optimizers, model_state_dict=tensors["model"], optim_state_dict=tensors["optimizer"])
        if f"rng{self.rank}" in tensors:
            torch.set_rng_state(tensors[f"rng{self.rank}"])
        return state

    def _tensors(
        self, decoder: nn.Module, optimizers: Sequence[torch.optim.Optimizer], resized: bool = False
    ) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_state_dict

        model, optim = get_state_dict(decoder, optimizers)
        tensors = {"model": model, "optimizer": optim}
        return tensors if resized else {**tensors, f"rng{self.rank}": torch.get_rng_state()}

    def _newest_sound(self) -> RunState | None:
        damaged = 0
        for name in reversed(self._steps()):
            folder = f"{self.root}/{name}"
            try:
                state = RunState(**json.loads(self.fs.cat_file(f"{folder}/{STATE}")))
                if (state.digest and state.digest != state.own_digest()) or name != f"step-{state.step:08d}":
                    raise ValueError(f"{STATE} is not what was written")
                for file, expected in state.files.items():
                    if fingerprint(self.fs, f"{folder}/{file}") != expected:
                        raise ValueError(f"{file} is not what was written")
            except FileNotFoundError as error:
                if str(error).rstrip("'").endswith(STATE):
                    continue  # was being written when the run was killed
                damaged += 1
                self.warn(f"checkpoint {name} is damaged ({error}); falling back to the one before")
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                damaged += 1
                self.warn(f"checkpoint {name} is damaged ({error}); falling back to the one before")
            else:
                return state
        if damaged:
            self.warn("no checkpoint is sound: training starts anew, from step 0")
        return None

    def _steps(self) -> list[str]:
        if not self.fs.exists(self.root):
            return []
        names = (str(path).rstrip("/").rpartition("/")[2] for path in self.fs.ls(self.root, detail=False))
        return sorted(name for name in names if name.startswith("step-"))

    def _files(self, folder: str) -> list[str]:
        names = (str(path).rpartition("/")[2] for path in self.fs.ls(folder, detail=False))
        return sorted(name for name in names if name == ".metadata" or name.endswith(".distcp"))

    def _writer(self, folder: str) -> Any:
        if self.local:
            from torch.distributed.checkpoint.filesystem import FileSystemWriter

            return FileSystemWriter(folder)
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

        return FsspecWriter(self.fs.unstrip_protocol(folder))

    def _reader(self, folder: str) -> Any:
        if self.local:
            from torch.distributed.checkpoint.filesystem import FileSystemReader

            return FileSystemReader(folder)
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

        return FsspecReader(self.fs.unstrip_protocol(folder))
