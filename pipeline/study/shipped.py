"""The study files that come with infini-study, to start from: runs/ of the source tree, pipeline/runs/ of a wheel."""

from __future__ import annotations

from pathlib import Path

_PIPELINE = Path(__file__).resolve().parents[1]


def study_files() -> dict[str, Path]:
    """By name, in alphabetical order."""
    installed = _PIPELINE / "runs"
    folder = installed if installed.is_dir() else _PIPELINE.parent / "runs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
