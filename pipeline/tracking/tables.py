"""The beginning of a Parquet table, as MLflow shows tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CELL = 500  # characters of a text cell


def beginning(path: Path, most: int) -> tuple[int, dict[str, list[Any]]]:
    """How many rows the table has, and the cells of its first ``most`` by column."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    batch = next(file.iter_batches(batch_size=most), None)
    columns = {name: [] for name in file.schema_arrow.names} if batch is None else batch.to_pydict()
    return file.metadata.num_rows, {name: [_cell(value) for value in values] for name, values in columns.items()}


def _cell(value: Any) -> Any:
    """A table cell as the UI can show it: six digits of a number, the beginning of a text."""
    if isinstance(value, str):
        return value if len(value) <= CELL else value[: CELL - 3] + "..."
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value if value is None or isinstance(value, bool | int | float) else str(value)[:CELL]
