"""The command that scores predictions of any model: score."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Json
from pipeline.cli.render import line, note, print_json, table
from pipeline.errors import StudyError

COLUMNS = ["task", "rows", "score", "RULER", "F1", "broken"]


def score(
    predictions: Annotated[
        Path, typer.Argument(help="JSON Lines: one object a line with task, pred (what was said) and outputs (a list).")
    ],
    json: Json = False,
) -> None:
    """Predictions of any model on the tasks: RULER's own scores, the F1 of the set beside them, standard errors.

    A row that cannot be scored is named, counted and left out of the means, and the exit code is then 1.
    """
    from pipeline.plugins import load_plugins
    from stages.data.tasks.predictions import means, score_lines

    load_plugins()
    field = f"PREDICTIONS = {str(predictions)!r}"
    try:
        with predictions.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            rows, broken = score_lines(file)
    except OSError as error:
        raise StudyError(f"{field}: {error.strerror or error}. Fix: name a JSON Lines file") from error
    if not rows:
        first = f"line {broken[0].line}: {broken[0].reason}" if broken else "it is empty"
        raise StudyError(f"{field}: no row can be scored, {first}. Fix: give task, pred and outputs on each line")
    found = means(rows, broken)
    if json:
        print_json(
            "score",
            {
                "rows": [asdict(row) for row in rows],
                "tasks": {task: asdict(one) for task, one in found.items()},
                "broken": [asdict(one) for one in broken],
            },
        )
    else:
        cells = [
            [
                task,
                str(one.n),
                _with_error(one.mean, one.error),
                f"{one.ruler:.2f}",
                _with_error(one.f1, one.f1_error),
                str(one.broken),
            ]
            for task, one in found.items()
        ]
        table(COLUMNS, cells)
        line("score and F1 with standard errors over rows; RULER: as it prints them, in percent")
    for one in broken:
        note(f"{predictions}: line {one.line} is not scored: {one.reason}")
    if broken:
        raise typer.Exit(1)


def _with_error(mean: float, error: float | None) -> str:
    return f"{mean:.4f}" + ("" if error is None else f" ± {error:.4f}")
