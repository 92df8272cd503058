"""Runs the cells of both experiments and writes the stage's tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.allocator import keep_freed_memory
from model.decoder import Decoder
from stages.evidence.calibrate import mqar, reference, schlag
from stages.evidence.calibrate.config import CalibrateConfig, MqarConfig, SchlagConfig
from stages.stage import Context, Summary

SCHLAG = pa.schema(
    [
        ("feature_map", pa.string()),
        ("feature_dim", pa.int64()),
        ("d_key", pa.int64()),
        ("associations", pa.int64()),
        ("seed", pa.int64()),
        ("loss", pa.float64()),
        ("accuracy", pa.float64()),
        ("steps", pa.int64()),
        ("solved", pa.bool_()),
    ]
)
MQAR = pa.schema(
    [
        ("arm", pa.string()),
        ("dim", pa.int64()),
        ("pairs", pa.int64()),
        ("seed", pa.int64()),
        ("accuracy", pa.float64()),
        ("trials", pa.int64()),
        ("chance", pa.float64()),
        ("guess", pa.float64()),
        ("start", pa.string()),
        ("steps", pa.int64()),
    ]
)
REFERENCE = pa.schema(
    [
        ("source", pa.string()),
        ("feature_map", pa.string()),
        ("feature_dim", pa.int64()),
        ("d_key", pa.int64()),
        ("holds", pa.int64()),
        ("fails", pa.int64()),
        ("arm", pa.string()),
        ("dim", pa.int64()),
        ("pairs", pa.int64()),
        ("accuracy", pa.float64()),
    ]
)


def run(config: CalibrateConfig, output: Path, context: Context) -> Summary:
    """schlag.parquet and mqar.parquet of the parts that are on, and reference.parquet."""
    keep_freed_memory()
    cells = (len(config.schlag.cells()) if config.schlag else 0) + (len(config.mqar.cells()) if config.mqar else 0)
    done = 0

    def progress(steps: int) -> Callable[[int, float], None]:
        """Of one cell: a run that ends early jumps to the next whole one."""
        return lambda step, loss: context.progress(round(done + step / steps, 3), cells, "runs", loss=loss)

    context.progress(0, cells, "runs")
    tables: dict[str, str] = {}
    metrics: dict[str, float] = {}
    said: list[str] = []
    rows: list[dict[str, Any]]
    if config.schlag:
        rows = []
        for feature_map, count, seed in config.schlag.cells():
            found = schlag.train(config.schlag, feature_map, count, seed, progress(config.schlag.steps))
            rows.append(
                {
                    "feature_map": feature_map,
                    "feature_dim": found.feature_dim,
                    "d_key": config.schlag.d_key,
                    "associations": count,
                    "seed": seed,
                    "loss": found.loss,
                    "accuracy": found.accuracy,
                    "steps": found.steps,
                    "solved": found.solved,
                }
            )
            done += 1
            context.log(f"{feature_map}, {count} associations, seed {seed}: {found}")
        tables["schlag"] = _write(output, "schlag", rows, SCHLAG)
        metrics |= {f"schlag.{r['feature_map']}.{r['associations']}.seed{r['seed']}.loss": r["loss"] for r in rows}
        said.append(_capacity_line(config.schlag, rows))
    if config.mqar:
        rows = []
        full: Decoder | None = None  # of the cell: the first of its arms
        for dim, pairs, seed, arm in config.mqar.cells():
            start = full if config.mqar.graft and arm != "full" else None
            steps = config.mqar.steps_of(arm)
            cell, decoder = mqar.train(config.mqar, arm, dim, pairs, seed, start, progress(steps))
            full = decoder if arm == "full" else full
            rows.append(
                {
                    "arm": arm,
                    "dim": dim,
                    "pairs": pairs,
                    "seed": seed,
                    "accuracy": cell.accuracy,
                    "trials": cell.trials,
                    "chance": 1 / pairs,
                    "guess": 1 / config.mqar.values,
                    "start": "scratch" if start is None else "full",
                    "steps": cell.steps,
                }
            )
            done += 1
            context.log(f"MQAR, {arm}, dim {dim}, {pairs} pairs, seed {seed}: {cell}")
        tables["mqar"] = _write(output, "mqar", rows, MQAR)
        metrics |= {f"mqar.{r['arm']}.dim{r['dim']}.k{r['pairs']}.seed{r['seed']}": r["accuracy"] for r in rows}
        said.append(_recall_line(config.mqar, rows))
    context.progress(cells, cells, "runs")
    tables["reference"] = _write(output, "reference", reference.rows(), REFERENCE)
    return Summary("; ".join(said), metrics, tables)


def _write(output: Path, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> str:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), output / f"{name}.parquet")
    return f"{name}.parquet"


def _capacity_line(config: SchlagConfig, rows: list[dict[str, Any]]) -> str:
    """Per feature map: numbers of associations that every seed solved, and those that some seed did not (with the
    highest loss and the steps it is of: a run that is still improving is no failure yet)."""
    parts = []
    for feature_map, counts in config.associations.items():
        said = []
        for count in counts:
            cells = [r for r in rows if (r["feature_map"], r["associations"]) == (feature_map, count)]
            if all(r["solved"] for r in cells):
                said.append(f"{count} held")
            else:
                worst = max(cells, key=lambda r: r["loss"])
                said.append(f"{count} not (loss {worst['loss']:.3f} after {worst['steps']} steps)")
        parts.append(f"{feature_map} {', '.join(said)}")
    return f"learned keys, d_key {config.d_key}: " + "; ".join(parts)


def _recall_line(config: MqarConfig, rows: list[dict[str, Any]]) -> str:
    """Per arm the accuracy over all cells, lowest to highest."""
    parts = []
    for arm in config.arms:
        found = sorted(r["accuracy"] for r in rows if r["arm"] == arm)
        low, high = f"{found[0]:.0%}", f"{found[-1]:.0%}"
        parts.append(f"{arm} {low}" if low == high else f"{arm} {low} to {high}")
    return "MQAR recall: " + ", ".join(parts)
