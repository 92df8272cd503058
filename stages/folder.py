"""What is run without a store: a plain folder that plays a committed artifact, a context that nobody follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.stage import Execution


@dataclass(frozen=True)
class FolderArtifact:
    """``stages.stage.Artifact`` on ``directory``; nothing else stands for its content."""

    directory: Path
    key: str = "0" * 64
    summary: Mapping[str, Any] = field(default_factory=dict)

    def path(self, name: str = "") -> Path:
        """The file or folder. Raises FileNotFoundError naming both."""
        path = self.directory / name
        if not path.exists():
            raise FileNotFoundError(f"{self.directory}: there is no {name or 'such folder'}")
        return path

    def sizes(self, name: str = "") -> Mapping[str, int]:
        """Bytes of every file below the folder ``name``, by its path, in order."""
        files = sorted(path for path in (self.directory / name).rglob("*") if path.is_file())
        return {path.relative_to(self.directory).as_posix(): path.stat().st_size for path in files}


@dataclass(frozen=True)
class SilentContext:
    """``stages.stage.Context`` whose reports go nowhere."""

    work_url: str
    execution: Execution = field(default_factory=Execution)

    def progress(self, done: float, total: float, unit: str, **numbers: float) -> None: ...

    def metrics(self, step: int, **values: float) -> None: ...

    def log(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...
