"""Second pass of tokenize: one task a shard. Which rows a shard holds follows from the documents' lengths alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.data.tokens.lots import EncodedLot
from stages.data.tokens.pack import Shape, ShardWriter

SHARD_FILE = "shard.arrow"


@dataclass(frozen=True)
class LotRows:
    """Rows ``start`` to ``end`` of the split's rows of a lot."""

    lot: EncodedLot
    start: int
    end: int


@dataclass(frozen=True)
class TokenShard:
    """One shard of a split, in order."""

    split: str
    number: int
    shape: Shape
    least_tail: float
    rows: tuple[LotRows, ...]


def rows_of(tokens: NDArray[np.int64], length: int, least_tail: float) -> NDArray[np.int64]:
    """How many rows documents of so many tokens make: their last, shorter piece counts if it has ``least_tail``."""
    tail = tokens % length
    return np.asarray(tokens // length + ((tail > 0) & (tail >= least_tail)))


def shards_of(
    split: str, lots: Sequence[EncodedLot], counts: NDArray[np.int64], shape: Shape, least_tail: float
) -> Iterator[TokenShard]:
    """The shards of a split; ``counts``: its rows in each lot."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    for number, start in enumerate(range(0, total, shape.rows_of_shard)):
        end = min(total, start + shape.rows_of_shard)
        first, last = int(np.searchsorted(ends, start, side="right")), int(np.searchsorted(ends, end, side="left"))
        rows = []
        for at in range(first, last + 1):
            before = int(ends[at] - counts[at])
            if counts[at]:
                rows.append(LotRows(lots[at], max(0, start - before), min(int(counts[at]), end - before)))
        yield TokenShard(split, number, shape, least_tail, tuple(rows))


def identity(shard: TokenShard) -> str:
    """Digest of what the shard's bytes follow from."""
    said = [(rows.lot.url.rsplit("/", 1)[-1], rows.start, rows.end) for rows in shard.rows]
    return hashlib.sha256(repr((shard.split, shard.shape, shard.least_tail, said)).encode()).hexdigest()


def write_shard(shard: TokenShard, folder: Path) -> int:
    """One task: the shard as ``SHARD_FILE``; how many rows it has."""
    with ShardWriter(folder / SHARD_FILE, shard.shape) as writer:
        for rows in shard.rows:
            _add(rows, shard, writer)
    return writer.rows


def _add(rows: LotRows, shard: TokenShard, writer: ShardWriter) -> None:
    table = rows.lot.table()
    tokens = table["tokens"].to_numpy()
    starts = np.cumsum(tokens) - tokens
    mine = np.flatnonzero(pc.equal(table["split"], shard.split).to_numpy())
    counts = rows_of(tokens[mine], shard.shape.length, shard.least_tail)
    ends = np.cumsum(counts)
    first, last = np.searchsorted(ends, [rows.start, rows.end - 1], side="right").tolist()
    chosen = mine[first : last + 1]
    described = table.select(["doc_id", "source"]).take(chosen)
    low, high = int(starts[chosen[0]]), int(starts[chosen[-1]] + tokens[chosen[-1]])
    read = rows.lot.numbers(low, high)
    names = (described[name].to_pylist() for name in ("doc_id", "source"))
    for at, doc_id, source in zip(range(first, last + 1), *names, strict=True):
        before = int(ends[at] - counts[at])
        begin = shard.shape.length * max(0, rows.start - before)
        until = min(int(tokens[mine[at]]), shard.shape.length * (min(int(ends[at]), rows.end) - before))
        place = int(starts[mine[at]]) - low
        if until > begin:
            writer.add(doc_id, source, read[place + begin : place + until], begin)
