"""Which sequence is trained when: a function of (seed, global step) alone.

Rows are numbered through all shards of the train split; a row of L tokens gives L / sequence_length windows.

``SampleOrder`` shuffles windows: each epoch of a group of them is one seeded permutation; with stated shares, sources
are dealt in blocks that hold each source's exact quota. ``DocumentOrder`` shuffles documents and keeps the windows of
each in order: lane b of the batch reads one document after the other, so that a memory can be carried from step to
step. Nothing depends on world size, on micro-batches or on what was read before, so a resumed run, and every arm of a
seed, sees the same global batches.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.stage import StageError

BLOCK = 1024  # positions over which stated source shares are met exactly (to one sequence)
Ids = NDArray[np.int64]


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """An own random stream for each (seed, purpose, numbers); streams of different purposes never meet."""
    tag = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:4], "big")
    return np.random.default_rng([seed, tag, *numbers])


class TokenRows:
    """The rows of one split, memory-mapped: tokens int32 [L], loss mask uint8 [L]; of each row its source and whether
    a document begins with it."""

    def __init__(self, directory: Path) -> None:
        """``directory``: a split as ``datasets`` saves it (Arrow IPC streams, numbered shards)."""
        self.tokens: list[NDArray[np.int32]] = []
        self.masks: list[NDArray[np.uint8]] = []
        names: dict[str, int] = {}
        codes: list[NDArray[np.int32]] = []
        first: list[NDArray[np.bool_]] = []
        files = sorted(directory.glob("*.arrow"))
        if not files:
            raise StageError(f"no Arrow shards in {directory.name!r} of the tokens artifact", fix="run tokenize again")
        for file in files:
            table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all().unify_dictionaries()
            for batch in table.to_batches():
                length = batch.schema.field("tokens").type.list_size
                self.tokens.append(batch.column("tokens").flatten().to_numpy().reshape(-1, length))
                self.masks.append(batch.column("loss_mask").flatten().to_numpy().reshape(-1, length))
                source = batch.column("source").dictionary_encode()
                code = [names.setdefault(name, len(names)) for name in source.dictionary.to_pylist()]
                codes.append(np.array(code, np.int32)[source.indices.to_numpy()])
                first.append(batch.column("offset").to_numpy() == 0)
        self.names = list(names)
        """Source names; ``codes`` [rows] says which one a row has."""
        self.codes = np.concatenate(codes)
        self.first = np.concatenate(first)
        """bool [rows]: the row begins a document (rows of one document follow each other)."""
        self._starts = np.cumsum([0, *(len(t) for t in self.tokens)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def sources(self) -> NDArray[np.object_]:
        """Source name of each row."""
        return np.array(self.names, dtype=object)[self.codes]

    @property
    def length(self) -> int:
        """L, tokens of a row."""
        return int(self.tokens[0].shape[1])

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Row ``index``: (tokens [L], loss mask [L]), views into the shard."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        place = index - int(self._starts[shard])
        return self.tokens[shard][place], self.masks[shard][place]


class Windows:
    """Rows cut into ``rows.length // length`` windows; those without a single target token are left out."""

    def __init__(self, rows: TokenRows, length: int) -> None:
        """Raises StageError if a row is not a whole number of windows, or no window has a target."""
        if rows.length % length:
            raise StageError(
                "tokens come in rows that are not a whole number of training sequences",
                field="sequence_length",
                value=length,
                allowed=f"a divisor of the rows' {rows.length} tokens",
                fix="change it or tokenize.sequence_length",
            )
        self.rows, self.length, self.parts = rows, length, rows.length // length
        usable = [m.reshape(-1, length)[:, 1:].any(axis=1) for m in rows.masks]
        self.ids: Ids = np.flatnonzero(np.concatenate(usable)).astype(np.int64)
        if not len(self.ids):
            raise StageError("the train split has no sequence with a target token", fix="give a larger corpus")

    def groups(self, shares: Mapping[str, float]) -> tuple[list[Ids], list[float]]:
        """Window ids per source and their normalised shares; one group of all where ``shares`` is empty."""
        if not shares:
            return [self.ids], [1.0]
        codes = self.rows.codes[self.ids // self.parts]
        known = sorted(self.rows.names[code] for code in np.unique(codes))
        for name in shares:
            if name not in known:
                raise StageError(
                    "no training sequences of this source",
                    field=f"mixture.sources.{name}",
                    value=shares[name],
                    allowed=f"sources {', '.join(known)}",
                )
        total = sum(shares.values())
        ordered = sorted(shares)
        picked = [self.ids[codes == self.rows.names.index(name)] for name in ordered]
        return picked, [shares[name] / total for name in ordered]

    def begins(self, ids: Ids) -> NDArray[np.bool_]:
        """Which of the windows ``ids`` are the first of their documents."""
        first: NDArray[np.bool_] = (ids % self.parts == 0) & self.rows.first[ids // self.parts]
        return first

    def batch(self, ids: Sequence[int] | Ids) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Tokens int64 [B, length] and the mask of target tokens [B, length] of the windows ``ids``."""
        tokens = np.empty((len(ids), self.length), np.int64)
        mask = np.empty((len(ids), self.length), np.bool_)
        for i, window in enumerate(ids):
            row_tokens, row_mask = self.rows.row(int(window) // self.parts)
            part = slice((int(window) % self.parts) * self.length, (int(window) % self.parts + 1) * self.length)
            tokens[i], mask[i] = row_tokens[part], row_mask[part]
        return tokens, mask


def lengths_of(windows: Windows, ids: Ids) -> tuple[Ids, Ids]:
    """The documents among the ascending window ``ids``: (place in ``ids`` of each one's first window, number of its
    windows). A window left out for want of targets ends its document."""
    starts = np.flatnonzero(windows.begins(ids) | (np.diff(ids, prepend=ids[:1] - 2) != 1))
    return starts, np.diff(starts, append=len(ids))


@dataclass
class SampleOrder:
    """Position in the global sequence of samples -> window id, without state.

    groups: window ids per source; shares: what part of the positions each source has; seed: the run's.
    """

    groups: Sequence[Ids]
    shares: Sequence[float]
    seed: int
    _epochs: dict[int, tuple[int, Ids]] = field(default_factory=dict, repr=False)
    _block: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        exact = np.asarray(self.shares) * BLOCK
        quota = np.floor(exact).astype(np.int64)
        largest = np.argsort(-(exact - quota), kind="stable")[: BLOCK - int(quota.sum())]
        quota[largest] += 1
        self._quota = quota

    def ids(self, start: int, count: int) -> Ids:
        """Window ids of positions ``start`` .. ``start + count - 1``."""
        return np.array([self._at(position) for position in range(start, start + count)], np.int64)

    def _at(self, position: int) -> int:
        block, place = divmod(position, BLOCK)
        if self._block is None or self._block[0] != block:
            pattern = generator(self.seed, "sources", block).permutation(
                np.repeat(np.arange(len(self._quota)), self._quota)
            )
            rank = np.zeros(BLOCK, np.int64)
            for source in range(len(self._quota)):
                rank[pattern == source] = np.arange(self._quota[source])
            self._block = (block, pattern, rank)
        source = int(self._block[1][place])
        occurrence = block * int(self._quota[source]) + int(self._block[2][place])
        epoch, index = divmod(occurrence, len(self.groups[source]))
        cached = self._epochs.get(source)
        if cached is None or cached[0] != epoch:
            cached = (epoch, generator(self.seed, "epoch", source, epoch).permutation(self.groups[source]))
            self._epochs[source] = cached
        return int(cached[1][index])


class DocumentOrder:
    """Step -> the window each lane reads, a function of (seed, number of lanes, step).

    A lane reads a document's windows in order, one a step, then takes another document: of the source that is furthest
    behind its share (counted in windows dealt), the next in that source's seeded permutation of documents. Whole
    documents are dealt, in order of lanes where several are free, so in an epoch of a source each document is read
    once, by one lane. A step is found by dealing on from the last one asked for, or from the start: some microseconds
    a document.
    """

    def __init__(self, windows: Windows, groups: Sequence[Ids], shares: Sequence[float], seed: int, lanes: int) -> None:
        """groups: ascending window ids per source; shares: what part of the windows each source has."""
        self._groups, self._shares, self._seed, self.lanes = groups, np.asarray(shares), seed, lanes
        self._documents = [lengths_of(windows, ids) for ids in groups]
        self._restart()

    def _restart(self) -> None:
        self._step = 0
        self._free = [(0, lane) for lane in range(self.lanes)]  # (step, lane): a heap, and a sorted list is one
        self._reading = [(0, 0, 0)] * self.lanes  # source, place of the document's first window, step of it
        self._dealt = np.zeros(len(self._groups), np.int64)  # windows
        self._taken = [0] * len(self._groups)  # documents
        self._epochs: dict[int, tuple[int, Ids]] = {}

    def at(self, step: int) -> tuple[Ids, NDArray[np.int64]]:
        """(window ids [lanes], windows of the same document that the lane read in the steps before [lanes])."""
        if step < self._step:
            self._restart()
        self._step = step
        while self._free[0][0] <= step:
            began, lane = self._free[0]
            source = int(np.argmax(self._shares * (self._dealt.sum() + 1) - self._dealt))
            start, count = self._next(source)
            self._dealt[source] += count
            self._reading[lane] = (source, start, began)
            heapq.heapreplace(self._free, (began + count, lane))
        ids = [int(self._groups[source][start + step - began]) for source, start, began in self._reading]
        return np.array(ids, np.int64), np.array([step - began for _, _, began in self._reading], np.int64)

    def _next(self, source: int) -> tuple[int, int]:
        starts, counts = self._documents[source]
        epoch, index = divmod(self._taken[source], len(starts))
        cached = self._epochs.get(source)
        if cached is None or cached[0] != epoch:
            cached = (epoch, generator(self._seed, "documents", source, epoch).permutation(len(starts)))
            self._epochs[source] = cached
        self._taken[source] += 1
        document = int(cached[1][index])
        return int(starts[document]), int(counts[document])


def digest(ids: Ids) -> str:
    """sha256 of the row ids of a global batch, in order (little-endian int64)."""
    return hashlib.sha256(np.ascontiguousarray(ids, "<i8").tobytes()).hexdigest()
