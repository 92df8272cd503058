"""Scores of predictions that stand in a file, by RULER's rules or those of the task of this name.

RULER's post-processing and ``string_match_all`` (``string_match_part`` for questions), arXiv:2404.06654: a substring in
any case of letters. It counts 12 where 12,345 was said; the F1 of the set beside it does not.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from stages.data.jsonlines import filled, parsed
from stages.data.tasks.registry import RULER, task_of
from stages.data.tasks.scoring import all_in, any_in, everything, set_f1

KINDS = ("niah", "variable_tracking", "common_words_extraction", "freq_words_extraction", "qa")
"""What RULER itself calls its kinds of task."""

FIELDS = ("task", "pred", "outputs")


@dataclass(frozen=True)
class Scored:
    """One row: its line of the file (from 1), ``score`` and ``f1`` from 0 to 1."""

    line: int
    task: str
    score: float
    f1: float


@dataclass(frozen=True)
class Broken:
    """One row that cannot be scored, and why."""

    line: int
    task: str
    reason: str


@dataclass(frozen=True)
class Mean:
    """All scored rows of a task. ``ruler``: the mean as RULER prints it, in percent with two digits; ``error``,
    ``f1_error``: standard errors over rows, None for a single one; ``broken``: rows that are in no mean."""

    n: int
    mean: float
    error: float | None
    ruler: float
    f1: float
    f1_error: float | None
    broken: int


def score_lines(lines: Iterable[str]) -> tuple[list[Scored], list[Broken]]:
    """Every line of a JSON Lines file but the empty ones, in order; read with ``surrogateescape``, so that a line which
    is not UTF-8 is one broken row."""
    rows, broken = [], []
    for number, text in filled(lines):
        task = ""
        try:
            if any("\udc80" <= character <= "\udcff" for character in text):  # bytes that were no UTF-8
                raise ValueError("not UTF-8 text")
            row = parsed(text, halves=True)
            task = str(row.get("task", ""))
            rows.append(_scored(number, row))
        except ValueError as error:
            broken.append(Broken(number, task, str(error)))
    return rows, broken


def means(rows: Sequence[Scored], broken: Sequence[Broken] = ()) -> dict[str, Mean]:
    """Per task, in order of appearance."""
    found = {}
    for task in dict.fromkeys(row.task for row in rows):
        of = [row for row in rows if row.task == task]
        scores, f1 = [row.score for row in of], [row.f1 for row in of]
        lost = sum(one.task == task for one in broken)
        percent = round(sum(scores) / len(scores) * 100, 2)
        found[task] = Mean(len(of), fmean(scores), _error(scores), percent, fmean(f1), _error(f1), lost)
    return found


def _error(values: Sequence[float]) -> float | None:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _scored(line: int, row: dict[str, Any]) -> Scored:
    for name in FIELDS:
        if name not in row:
            raise ValueError(f"no field {name!r} (allowed: {', '.join(FIELDS)})")
    task, said, outputs = row["task"], row["pred"], row["outputs"]
    if not isinstance(task, str):
        raise ValueError(f"task = {reprlib.repr(task)}: allowed is a name")
    if not isinstance(said, str):
        raise ValueError(f"pred = {reprlib.repr(said)}: allowed is a text")
    if not isinstance(outputs, list) or not outputs or not all(isinstance(one, str) and one for one in outputs):
        raise ValueError(f"outputs = {reprlib.repr(outputs)}: allowed is a list of at least one text")
    read, score, alternatives = rules_of(task)
    return Scored(line, task, score(read(said), outputs), set_f1(everything(said), outputs, alternatives=alternatives))


def rules_of(task: str) -> tuple[Callable[[str], str], Callable[[str, Sequence[str]], float], bool]:
    """How a prediction of a task is read and scored, and whether its outputs are alternatives: RULER's own rules for
    its thirteen, also under names such as ``qa_squad``, ``ruler_vt`` or ``variable_tracking``, else those of the task.
    Raises ValueError for a task that there is not."""
    name = task.removeprefix("ruler_")
    if any(name == record.name for record in RULER) or name in KINDS or name.startswith(("niah_", "qa_")):
        alternatives = name == "qa" or name.startswith("qa_")
        return everything, any_in if alternatives else all_in, alternatives
    record = task_of(task)
    return record.read, record.score, False
