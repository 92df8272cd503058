"""``infini-study watch``: how far a study is that runs somewhere else, on this machine or another."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import Json, Root, Set, StudyName, look
from pipeline.cli.render import line, print_json, table

if TYPE_CHECKING:
    from pipeline.cli.options import Looked
    from pipeline.engine.recorded import RecordedStep

COLUMNS = {
    "loss": "loss",
    "tokens_per_s": "tokens/s",
    "mfu": "MFU",
    "gpu_memory_gib": "GPU GiB",
    "gate_mean": "gate",
    "erase_lambda_max": "λ_max",
    "z_min": "min σ(q)z",
    "memory_norm": "|M|",
}
"""Of the training log what is shown, and how a person reads it."""


def watch(
    study: StudyName,
    set_: Set = None,
    root: Root = None,
    every: Annotated[float, typer.Option("--every", min=0.5, max=86400, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    json: Json = False,
) -> None:
    """What is being computed, by whom, and of trainings loss, speed, gates and memory health, until all is made."""
    looked = look(study, set_, root)
    made: set[str] = set()
    before = None
    while True:
        running = _running(looked, made)
        left = len(looked.study.steps) - len(made)
        if json:
            print_json("watch", {"study": looked.study.study, "left": left, "running": running})
            return
        if running != before:
            _show(looked.study.study, running, left, len(looked.study.steps))
        if once or not left:
            return
        before = running
        time.sleep(every)


def _running(looked: Looked, made: set[str]) -> list[dict[str, Any]]:
    """What is known of every step that a driver holds; ``made``: ids of steps that are, of which more are added."""
    store, steps = looked.store, [step for step in looked.study.steps.values() if step.id not in made]
    present = store.present(step.stage for step in steps)
    commits = store.lookup_many([(step.stage, step.key) for step in steps], present)
    made |= {step.id for step in steps if step.key in commits}
    begun = [step for step in steps if step.key not in commits and step.key in present[step.stage]]
    return [found for found in store.map(lambda step: _one(looked, step), begun) if found is not None]


def _one(looked: Looked, step: RecordedStep) -> dict[str, Any] | None:
    from cluster.storage import join
    from pipeline.engine.lease import current
    from stages.training.pretrain.channel import PROGRESS, told

    store = looked.store
    holder = current(store.fs, store.lease_folder(step.stage, step.key))
    if holder is None or holder.released or holder.owner.dead():
        return None
    found: dict[str, Any] = {"step": step.id, "by": str(holder.owner)}
    progress = told(join(store.work_url(step.stage, step.key), PROGRESS))
    if progress is not None and progress["rows"]:
        found |= {"at": progress["rows"][-1]["step"], "of": progress["total"]}
        for name in COLUMNS:
            values = [row[name] for row in progress["rows"] if row.get(name) is not None]
            if values:  # monitors are read now and then: the newest there is
                found[name] = values[-1]
        found["warnings"] = progress["warnings"]
    return found


def _show(study: str, running: list[dict[str, Any]], left: int, steps: int) -> None:
    if sys.stdout.isatty():
        sys.stdout.write("\x1b[2J\x1b[H")  # what was shown before gives way
    line(f"{time.strftime('%H:%M:%S')}  {study}: {steps - left} of {steps} steps made, {len(running)} being computed")
    if not running:
        return
    columns = [name for name in COLUMNS if any(name in one for one in running)]
    rows = [
        [one["step"], f"{one['at']:,}/{one['of']:,}" if "at" in one else ""]
        + [_number(name, one.get(name)) for name in columns]
        + [one["by"]]
        for one in running
    ]
    table(["step", "at", *(COLUMNS[name] for name in columns), "computed by"], rows)
    for one in running:
        for text in one.get("warnings", ()):
            line(f"warning: {one['step']}: {text}")


def _number(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if name == "mfu" else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
