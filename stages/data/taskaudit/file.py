"""Items of a task from a JSON Lines or CSV file, or from pairs of texts and summaries."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.data.jsonlines import objects
from stages.data.pinned import read_unchanged
from stages.data.taskaudit.config import TaskSource
from stages.stage import StageError


@dataclass(frozen=True)
class TaskItem:
    """One item: its task, the line or row it stands in (from 1), and what the file says of it ("" where nothing)."""

    task: str
    number: int
    id: str
    title: str
    text: str
    summary: str


def first_columns(path: Path, field: str) -> list[str]:
    """Names of the columns, by the first row; none for an empty file. Raises StageError for what is no table."""
    return sorted(next((row for _, row in _rows(path, field)), {}))


def items(source: TaskSource) -> list[TaskItem]:
    """All items in order. Raises StageError for other bytes than the pinned ones."""
    path = Path(source.path)
    if source.layout == "pairs":
        return _pairs(source)
    read_unchanged(path, source.pin, field=f"task_audit: {source.name}")
    columns = source.columns()
    found = []
    for number, row in _rows(path, f"task_audit: {source.name}"):
        values = {role: _cell(row.get(columns[role])) if role in columns else "" for role in _ROLES}
        values["id"] = re.sub(r"^(\d+)\.0$", r"\1", values["id"].strip())  # what spreadsheets make of a whole number
        found.append(TaskItem(source.name, number, **values))
    return found


def _pairs(source: TaskSource) -> list[TaskItem]:
    from stages.data import summaries
    from stages.data.pinned import unchanged

    root = summaries.root_of(source.path, source.texts)
    field = f"task_audit: {source.name}"
    path = summaries.located(source.path, field)
    unchanged(summaries.digest(path, root, field), source.pin, field=field)
    found = summaries.read(path, root, field, source.splits)
    return [TaskItem(source.name, pair.row, pair.book, pair.title, pair.text, pair.summary) for pair in found]


_ROLES = ("id", "title", "text", "summary")


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def _rows(path: Path, field: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="" if path.suffix == ".csv" else None) as file:
            if path.suffix == ".csv":
                csv.field_size_limit(2**31 - 1)  # of what holds whole books; the library's own limit is 131,072
                yield from enumerate(csv.DictReader(file), 1)
                return
            yield from objects(file)
    except (ValueError, csv.Error) as error:  # errors of Unicode and JSON are ValueErrors
        raise StageError(
            f"cannot be read: {error}",
            field=f"{field}.path",
            value=str(path),
            allowed="JSON Lines or CSV, UTF-8",
            fix="mend the file",
        ) from error
