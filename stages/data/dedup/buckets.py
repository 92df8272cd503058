"""Documents that share a bucket of a band, kept in files: in a corpus with many repeats they are most of what is found.

What a band found is appended to two files as it comes; it is sorted by task into two others, and handed out mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.data.dedup.candidates import Groups

AT_ONCE = 2**18  # groups looked at together
FILES = ("members", "lengths")


class Buckets:
    """Groups of documents by rank, in files of ``folder``; ``documents`` [N]: which of N are in any of them."""

    def __init__(self, folder: Path, documents: int) -> None:
        self.documents = np.zeros(documents, bool)
        self._folder = folder
        self._pieces: list[tuple[int, int]] = []  # members and groups of each

    def add(self, found: Groups) -> None:
        """Behind those that are there."""
        self.documents[found.members] = True
        for name, numbers in zip(FILES, found, strict=True):
            with self._place(name).open("ab") as file:
                file.write(np.ascontiguousarray(numbers, np.int32).data)
        for start in range(0, len(found.lengths), AT_ONCE):
            lengths = found.lengths[start : start + AT_ONCE]
            self._pieces.append((int(lengths.sum(dtype=np.int64)), len(lengths)))

    def by_task(self, task_of: Callable[[NDArray[np.int32]], NDArray[np.int64]], tasks: int) -> Iterator[Groups]:
        """For each of ``tasks`` its groups, of which there are some, in the order in which they came. ``task_of``: of
        documents by rank; those of a group have the same."""
        sizes = np.zeros((2, tasks), np.int64)
        for _, lengths, task in self._each(task_of):
            sizes[0] += np.bincount(task, lengths, tasks).astype(np.int64)
            sizes[1] += np.bincount(task, minlength=tasks)
        ends = np.cumsum(sizes, axis=1)
        at = ends - sizes
        sorted_by_task = [
            np.memmap(self._place(f"{name}-by-task"), np.int32, "w+", shape=(int(total),))
            for name, total in zip(FILES, ends[:, -1], strict=True)
        ]
        for members, lengths, task in self._each(task_of):
            for which, (numbers, its) in enumerate(((members, np.repeat(task, lengths)), (lengths, task))):
                order = np.argsort(its, kind="stable")
                present, counts = np.unique(its, return_counts=True)
                first = 0
                for one, count in zip(present.tolist(), counts.tolist(), strict=True):
                    start = int(at[which, one])
                    sorted_by_task[which][start : start + count] = numbers[order[first : first + count]]
                    at[which, one] += count
                    first += count
        for one in range(tasks):
            places = zip(sorted_by_task, ends[:, one] - sizes[:, one], ends[:, one], strict=True)
            yield Groups(*(np.asarray(numbers[start:end]) for numbers, start, end in places))

    def _each(
        self, task_of: Callable[[NDArray[np.int32]], NDArray[np.int64]]
    ) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]]:
        """(members, lengths, task of each group) of some groups at a time."""
        done = [0, 0]
        for piece in self._pieces:
            members, lengths = (
                np.fromfile(self._place(name), np.int32, count, offset=4 * before)
                for name, count, before in zip(FILES, piece, done, strict=True)
            )
            done = [before + count for before, count in zip(done, piece, strict=True)]
            yield members, lengths, task_of(members[np.cumsum(lengths) - lengths])

    def _place(self, name: str) -> Path:
        return self._folder / f"buckets-{name}.int32"
