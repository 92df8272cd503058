"""What only the report reads, added to a synthetic study: calibration, and audit pages."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.engine.artifact import StoredArtifact
from pipeline.engine.store import Store
from stages.stage import Summary
from tests.stages.synthetic import Synthetic
from tests.support import LocalArtifact

HOLDS = {"elu1": (64, 40, 60), "dpfp1": (128, 100, 120), "dpfp2": (256, 240, 260)}
RECIPE: dict[str, Any] = {
    "base": {
        "init": "scratch",
        "per_seed": True,
        "steps": 450,
        "batch_tokens": 2048,
        "sequence_length": 64,
        "lr": 4e-3,
        "schedule": "cosine",
        "mixture": {"prompts": [{"until": 0.5, "share": 1.0, "length": 64}]},
    },
    "pretrain": {
        "steps": 300,
        "batch_sequences": 16,
        "sequence_length": 128,
        "lr": 2e-3,
        "gate_lr": 1e-2,
        "schedule": "cosine",
        "weight_decay": 0.1,
        "mixture": {
            "prompts": [{"until": 0.33, "share": 1.0, "length": 64}, {"until": 1.0, "share": 0.5, "length": 128}],
            "sources": {"books": 3.0},
        },
    },
}


def calibrate(study: Synthetic) -> Synthetic:
    """The published points come out as published; of MQAR only full attention solves the narrow cells."""
    schlag = [
        (name, dim, 64, n, seed, 0.001 if n <= holds else 0.3, 0.999 if n <= holds else 0.6 - 0.02 * seed, n <= holds)
        for name, (dim, holds, _) in HOLDS.items()
        for n in (20, 40, 60, 80, 100, 120, 240, 260)
        for seed in study.seeds
    ]
    columns = ["feature_map", "feature_dim", "d_key", "associations", "seed", "loss", "accuracy", "solved"]
    mqar = [
        (arm, dim, pairs, seed, 1.0 if arm == "full" or dim >= 4 * pairs else 0.4 + 0.01 * seed, 3000, 900)
        for arm in ("full", "infini-linear", "infini-delta")
        for dim in (16, 32, 64)
        for pairs in (4, 8)
        for seed in study.seeds
    ]
    reference = [("Schlag et al. 2021", name, float(holds), float(fails)) for name, (_, holds, fails) in HOLDS.items()]
    study.add(
        "calibrate",
        {
            "schlag.parquet": pd.DataFrame(schlag, columns=columns),
            "mqar.parquet": pd.DataFrame(mqar, columns=["arm", "dim", "pairs", "seed", "accuracy", "trials", "steps"]),
            "reference.parquet": pd.DataFrame(reference, columns=["source", "feature_map", "holds", "fails"]),
        },
    )
    return study


def with_pages(inputs: dict[str, LocalArtifact]) -> dict[str, LocalArtifact]:
    """The audit's pages beside its tables."""
    if "decontaminate" in inputs:
        folder = inputs["decontaminate"].path()
        (folder / "audit.html").write_text('<a href="evidence/001.html">page 1</a>')
        (folder / "evidence").mkdir(exist_ok=True)
        (folder / "evidence" / "001.html").write_text('<a href="../audit.html">Audit</a>')
    return inputs


def committed(root: Path, inputs: dict[str, LocalArtifact]) -> dict[str, StoredArtifact]:
    """The artifacts in a store below ``root``, where the command line finds them by key and step."""
    store, made = Store(root), {}
    for step, artifact in inputs.items():
        stage = step.split("/", maxsplit=1)[0]
        attempt = store.attempt(stage, artifact.key)
        shutil.copytree(artifact.path(), attempt.directory, dirs_exist_ok=True)
        meta = {"step": step, "inputs": {}, "config": {}}
        commit = store.commit(stage, artifact.key, store.seal(attempt), Summary("made for a test"), meta)
        made[step] = store.artifact(commit)
    return made
