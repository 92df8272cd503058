"""A plain folder that plays a committed artifact, for what is run without a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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
