"""Prompts as a table: written once, read by every evaluation that asks them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.tasks.config import PromptFile
from stages.data.tasks.files import task_of_file
from stages.data.tasks.prompts import Item

PROMPTS = pa.schema(
    [
        ("task", pa.string()),
        ("item", pa.string()),
        ("length", pa.int64()),
        ("budget", pa.int64()),
        ("depth", pa.float64()),
        ("k", pa.int64()),
        ("prompt", pa.list_(pa.int32())),
        ("answers", pa.list_(pa.string())),
        ("answer_ids", pa.list_(pa.int32())),
        ("counted", pa.list_(pa.bool_())),
        ("needle_end", pa.int64()),
        ("values", pa.list_(pa.string())),
        ("asked_rank", pa.int64()),
        ("offsets", pa.list_(pa.int64())),
        ("file", pa.string()),
    ]
)
"""Fields of ``Item``; ``file``: name of the prompt file that it is from, null for drawn ones."""

_LISTS = ("prompt", "answers", "answer_ids", "counted", "values", "offsets")


def to_table(items: Sequence[Item]) -> pa.Table:
    """One row per prompt, in order."""
    columns: dict[str, list[Any]] = {
        name: [getattr(item, name) for item in items] for name in PROMPTS.names if name != "file"
    }
    columns["file"] = [None if item.source is None else item.source.name for item in items]
    return pa.Table.from_pydict(columns, schema=PROMPTS)


def read_items(path: Path, files: Mapping[str, PromptFile]) -> Iterator[Item]:
    """The prompts of a file of such rows, in order, some at a time. ``files``: those that prompts may be from."""
    tasks = {name: task_of_file(name, file) for name, file in files.items()}
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group).to_pylist():
                source = row.pop("file")
                lists = {name: tuple(row[name]) for name in _LISTS}
                yield Item(**row | lists, source=None if source is None else tasks[source])
