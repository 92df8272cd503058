"""Examples of their own lengths, on disk and as global batches.

An example is one row, or rows that are trained together (the chosen and the rejected answer). A row's targets are
marked: the tokens to be learned. Batches are padded behind their rows, where causality hides the pads.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.storage import filesystem, write_atomic
from stages.training.pretrain.data import Ids, generator
from stages.training.pretrain.mixture import Batch
from stages.training.tuning.config import padded_to


@dataclass(frozen=True)
class Row:
    """tokens int32 [n]; targets bool [n]."""

    tokens: NDArray[np.int32]
    targets: NDArray[np.bool_]

    @classmethod
    def of(cls, parts: Sequence[tuple[Sequence[int], bool]]) -> Row:
        """From stretches of tokens, each with whether it is a target."""
        tokens = np.concatenate([np.asarray(ids, np.int32) for ids, _ in parts])
        targets = np.concatenate([np.full(len(ids), target, np.bool_) for ids, target in parts])
        return cls(tokens, targets)

    def __len__(self) -> int:
        return len(self.tokens)


Example = tuple[Row, ...]


def write_examples(url: str, examples: Sequence[Example]) -> None:
    """One Parquet file at ``url``, one row a row: ``example``, ``tokens``, ``targets``."""
    rows = [(number, row) for number, example in enumerate(examples) for row in example]
    table = pa.table(
        {
            "example": pa.array([number for number, _ in rows], pa.int64()),
            "tokens": pa.array([row.tokens for _, row in rows], pa.large_list(pa.int32())),
            "targets": pa.array([row.targets for _, row in rows], pa.large_list(pa.bool_())),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomic(*filesystem(url), buffer.getvalue())


def read_examples(url: str) -> list[Example]:
    """What ``write_examples`` wrote."""
    fs, path = filesystem(url)
    table = pq.read_table(io.BytesIO(fs.cat_file(path)))
    examples: list[list[Row]] = []
    for number, tokens, targets in zip(*(table[name] for name in ("example", "tokens", "targets")), strict=True):
        if number.as_py() == len(examples):
            examples.append([])
        examples[-1].append(Row(tokens.values.to_numpy(), targets.values.to_numpy(zero_copy_only=False)))
    return [tuple(rows) for rows in examples]


class ExampleBatches:
    """step -> ``count`` examples; every epoch is a seeded permutation of them, whatever was read before."""

    def __init__(self, examples: Sequence[Example], count: int, seed: int) -> None:
        self.examples, self.count, self.seed = examples, count, seed
        self._epoch: tuple[int, Ids] | None = None

    def __getitem__(self, step: int) -> Batch:
        chosen = self.chosen(step)
        return padded([row for i in chosen for row in self.examples[i]], self.row_ids(chosen))

    def chosen(self, step: int) -> list[int]:
        """Numbers of the examples of ``step``."""
        return [self._at(position) for position in range(step * self.count, (step + 1) * self.count)]

    def row_ids(self, chosen: Sequence[int]) -> Ids:
        """Numbers of their rows; every example has as many."""
        each = len(self.examples[0])
        return np.array([i * each + row for i in chosen for row in range(each)], np.int64)

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, len(self.examples))
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, generator(self.seed, "examples", epoch).permutation(len(self.examples)))
        return int(self._epoch[1][place])


def padded(rows: Sequence[Row], ids: Ids) -> Batch:
    """A batch of answers [B, T], T the longest row's tokens rounded up."""
    width = padded_to(max(map(len, rows)))
    tokens, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.bool_)
    for place, row in enumerate(rows):
        tokens[place, : len(row)], mask[place, : len(row)] = row.tokens, row.targets
    mask[:, 0] = False
    return Batch(tokens, mask, np.ones(len(rows), np.bool_), ids, np.zeros(len(rows), np.int64))
