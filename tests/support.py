"""A Context and an Artifact without the engine, for tests of single stages."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster import storage
from stages.data.corpus.documents import document_files
from stages.stage import Execution


@dataclass
class LocalArtifact:
    """A plain folder that plays a committed input; its key is another for every folder."""

    directory: Path
    key: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.key = self.key or hashlib.sha256(str(self.directory).encode()).hexdigest()

    def path(self, name: str = "") -> Path:
        path = self.directory / name
        if not path.exists():
            raise FileNotFoundError(f"artifact {self.key[:12]}: no file {name!r}")
        return path

    def sizes(self, name: str = "") -> dict[str, int]:
        files = sorted(path for path in (self.directory / name).rglob("*") if path.is_file())
        return {path.relative_to(self.directory).as_posix(): path.stat().st_size for path in files}

    def json(self, name: str) -> Any:
        return json.loads(self.path(name).read_text())


def documents_of(folder: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Rows of a documents table, in its order."""
    return [row for path in document_files(folder) for row in pq.read_table(path, columns=columns).to_pylist()]


def settled(folder: Path) -> Path:
    """``folder`` with the files that references in it stand for, as a store makes them when a step is committed."""
    for name, meant in storage.references_below(folder).items():
        storage.get_file(*storage.filesystem(meant["url"]), folder / name)
        (folder / (name + storage.REFERENCE)).unlink()
        content = (folder / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (meant["size"], meant["sha256"])
    return folder


@dataclass
class LocalContext:
    """Collects what a stage reports."""

    work_url: str
    execution: Execution = field(default_factory=Execution)
    progressed: list[tuple[float, float, str, dict[str, float]]] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    measured: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def progress(self, done: float, total: float, unit: str, **numbers: float) -> None:
        self.progressed.append((done, total, unit, numbers))

    def metrics(self, step: int, **values: float) -> None:
        self.measured.append((step, values))

    def log(self, message: str) -> None:
        self.logged.append(message)

    def warn(self, message: str) -> None:
        self.warned.append(message)


@dataclass
class StoppedAt(LocalContext):
    """Ends the attempt when ``step`` has been reported."""

    step: int = 0

    def progress(self, done: float, total: float, unit: str, **numbers: float) -> None:
        super().progress(done, total, unit, **numbers)
        if done == self.step:
            raise KeyboardInterrupt


def executed(
    command: Sequence[str | Path], folder: Path, env: Mapping[str, str], timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    """A command run in ``folder`` as a process of its own, whatever its exit code."""
    return subprocess.run(
        [*map(str, command)], cwd=folder, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )
