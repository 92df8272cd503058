"""control.parquet, of base and arms alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.evidence.control.config import RecallTask
from stages.evidence.control.training import Score

NAME = "control.parquet"
COLUMNS = pa.schema(
    [
        ("step", pa.int64()),
        ("k", pa.int64()),
        ("segments", pa.int64()),
        ("between", pa.string()),
        ("knockout", pa.string()),
        ("hits", pa.int64()),
        ("trials", pa.int64()),
        ("accuracy", pa.float64()),
        ("chance", pa.float64()),
        ("guess", pa.float64()),
        ("loss", pa.float64()),
        ("base_accuracy", pa.float64()),
    ]
)


def row(
    task: RecallTask, score: Score, *, step: int, k: int, segments: int, between: str = "filler", knockout: str = "none"
) -> dict[str, Any]:
    """One cell. chance: 1 / k, knowing the set of values without their binding; guess: 1 / values, knowing nothing."""
    return {
        "step": step,
        "k": k,
        "segments": segments,
        "between": between,
        "knockout": knockout,
        "hits": score.hits,
        "trials": score.trials,
        "accuracy": score.accuracy,
        "chance": 1 / k,
        "guess": 1 / task.values,
        "loss": score.loss,
    }


def write(output: Path, rows: list[dict[str, Any]], base_accuracy: float) -> dict[str, str]:
    """Write the table; the summary's ``tables``. base_accuracy: the base's at the hardest k it was trained on."""
    rows = [{**cells, "base_accuracy": base_accuracy} for cells in rows]
    pq.write_table(pa.Table.from_pylist(rows, COLUMNS), output / NAME)
    return {"recall": NAME}
