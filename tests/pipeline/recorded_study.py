"""A small recorded study in a real store, made in a moment: tables, a model and a report, committed and recorded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.engine.store import Store
from stages.stage import Summary

ARMS = ("infini-delta", "local")
NEVER_MADE = "summarize/local/0"


def key(step: str) -> str:
    return hashlib.sha256(step.encode()).hexdigest()


def write_model(folder: Path) -> None:
    from model.checkpoint import save
    from model.decoder import Decoder
    from tests.model.tiny import config

    save(Decoder(config("infini-delta"), seed=0), folder / "model")


def _train(folder: Path) -> None:
    steps = range(1, 41)
    log = {"step": steps, "tokens": [64 * i for i in steps], "loss": [3 + 1 / i for i in steps]}
    pd.DataFrame(log).to_parquet(folder / "train_log.parquet")


def _evaluate(folder: Path) -> None:
    rows = [
        {"task": task, "length": length, "correct": int(length < 256)}
        for task in ("passkey", "bindings")
        for length in (64, 128, 256)
        for _ in range(4)
    ]
    pd.DataFrame(rows).to_parquet(folder / "retrieval.parquet")


def _report(folder: Path) -> None:
    empty: dict[str, Any] = {"estimate": None, "low": None, "high": None, "n": 3, "unit": ""}
    verdict = {
        "claim": "C1",
        "name": "memory-is-used",
        "verdict": "inconclusive",
        "summary": "λ = −1 ± σ: too few seeds for é or 字",
    } | empty
    pd.DataFrame([verdict]).to_parquet(folder / "verdicts.parquet")
    said = {**verdict, "label": "inconclusive", "decision": "inconclusive", "qualifier": ""}
    (folder / "report.json").write_text(json.dumps({"verdicts": [said], "numbers": {}}))
    (folder / "report.html").write_text("<html></html>")
    (folder / "figures").mkdir()
    (folder / "figures" / "retrieval-lengths.svg").write_text("<svg/>")
    (folder / "figures" / "retrieval-lengths.csv").write_text("length,estimate\n64,1.0\n")


def record(root: Path, study: str = "quickstart", *, model: bool = False) -> Store:
    """Every step but one is made; ``pretrain/infini-delta/0`` holds a model where it is asked for."""
    store, steps = Store(root, root / "cache"), {}

    def add(step: str, inputs: list[str], *write: Callable[[Path], None]) -> None:
        stage, _, rest = step.partition("/")
        arm, _, seed = rest.partition("/")
        meta = {
            "step": step,
            "stage": stage,
            "code_version": 1,
            "config": {"steps": 40},
            "inputs": {name.split("/")[0]: key(name) for name in inputs},
            "arm": arm or None,
            "seed": int(seed) if seed else None,
            "source_digest": "0",
            "seconds": 2.0,
        }
        steps[step] = {**meta, "key": key(step)}
        if write:
            attempt = store.attempt(stage, key(step))
            for part in write:
                part(attempt.directory)
            store.commit(stage, key(step), store.seal(attempt), Summary(f"made {step}", {"loss": 3.0}), meta)

    for arm in ARMS:
        with_model = (write_model,) if model and arm == "infini-delta" else ()
        add(f"pretrain/{arm}/0", [], _train, *with_model)
        add(f"evaluate/{arm}/0", [f"pretrain/{arm}/0"], _evaluate)
    add(NEVER_MADE, ["pretrain/local/0"])
    add("report", [f"evaluate/{arm}/0" for arm in ARMS], _report)
    store.record_study({"study": study, "study_key": key(study), "steps": steps})
    return store
