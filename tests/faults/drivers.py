"""Starting drivers (``driver.py``) from tests, and reading what they say."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.engine.artifact import StoredArtifact
from pipeline.engine.store import Store
from tests.faults import Faults

REPOSITORY = Path(__file__).parents[2]


def driver(
    root: str | Path,
    faults: Faults,
    *options: str,
    address: str = "inline",
    env: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """A driver of the toy study, or with ``study=FILE`` of that one, in a process of its own. ``before``: words that
    come before the command."""
    command = [*before, sys.executable, "-m", "tests.faults.driver", str(root), str(faults.directory), address]
    return subprocess.Popen(
        [*command, *options],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )


def result(process: subprocess.Popen[str], timeout: float = 120) -> dict[str, Any]:
    """What the driver printed when it ended, and its ``errors`` (stderr)."""
    output, errors = process.communicate(timeout=timeout)
    assert output, errors[-4000:]
    return {**json.loads(output), "errors": errors}


def sound(store: Store) -> dict[str, str]:
    """Digest of every step's committed files, after each file was read and compared with its manifest."""
    commits = list(store.commits())
    damages = [line for commit in commits for line in store.verify(commit)]
    assert damages == []
    return {commit.step: commit.digest for commit in commits}


def contents(store: Store) -> dict[str, str]:
    """By step, a digest of all that must be equal in two runs: its files, of a training all but how fast it was. The
    report, which prints such rates, is left out. Every file was compared with its manifest."""
    sound(store)
    return {commit.step: content(store.artifact(commit)) for commit in store.commits() if commit.stage != "report"}


def content(artifact: StoredArtifact) -> str:
    """That digest of one artifact."""
    parts = []
    for name, entry in artifact.manifest.items():
        if name == "train_log.parquet":
            table = pq.read_table(artifact.path(name))
            rates = {"tokens_per_s", "mfu"} & set(table.column_names)
            parts.append(f"{name} {table.drop_columns(sorted(rates)).to_pylist()}")
        elif name != "cost.json":
            parts.append(f"{name} {entry.sha256}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
