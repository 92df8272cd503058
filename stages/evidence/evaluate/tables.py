"""The tables of an evaluation (docs/formats.md): schemas and one writer with fixed row order and no timestamps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

PERPLEXITY = pa.schema(
    [
        ("doc_id", pa.string()),
        ("split", pa.string()),
        ("bucket_start", pa.int64()),
        ("bucket_end", pa.int64()),
        ("nll_sum", pa.float64()),
        ("tokens", pa.int64()),
        ("words", pa.int64()),
        ("bytes", pa.int64()),
    ]
)

RETRIEVAL = pa.schema(
    [
        ("task", pa.string()),
        ("item", pa.string()),
        ("length", pa.int64()),
        ("prompt_tokens", pa.int64()),
        ("depth", pa.float64()),
        ("rivals", pa.int64()),
        ("asked_rank", pa.int64()),
        ("values", pa.list_(pa.string())),
        ("expected", pa.string()),
        ("answer", pa.string()),
        ("correct", pa.int8()),
        ("in_set", pa.int8()),
        ("answer_nll", pa.float64()),
        ("distance", pa.int64()),
        ("beyond_local", pa.bool_()),
    ]
)

TASKS = pa.schema(
    [
        ("task", pa.string()),
        ("item", pa.string()),
        ("length", pa.int64()),
        ("prompt_tokens", pa.int64()),
        ("k", pa.int64()),
        ("depth", pa.float64()),
        ("values", pa.list_(pa.string())),
        ("answers", pa.list_(pa.string())),
        ("answer", pa.string()),
        ("score", pa.float64()),
        ("chance", pa.float64()),
        ("answer_nll", pa.float64()),
        ("distance", pa.int64()),
        ("beyond_local", pa.bool_()),
        ("budget", pa.int64()),
        ("offsets", pa.list_(pa.int64())),
        ("segments", pa.int64()),
    ]
)

SCHEMAS = {"perplexity": PERPLEXITY, "retrieval": RETRIEVAL, "tasks": TASKS}

GATES = pa.schema([("layer", pa.int64()), ("head", pa.int64()), ("gate", pa.float64())])


def with_knockout(schema: pa.Schema) -> pa.Schema:
    """The ablation's form of a table: one more column."""
    return schema.append(pa.field("knockout", pa.string()))


def write(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Rows in the given order, one row group, deterministic bytes."""
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, compression="zstd")
