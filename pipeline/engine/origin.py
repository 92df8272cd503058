"""Which code runs here: the version and the commit that are recorded with every artifact.

The folder that holds this package is either the project's source tree or an installation. Git is asked only of a
source tree that is a repository itself: an environment often lies inside somebody else's.
"""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

NAME = "infini-study"
ROOT = Path(__file__).resolve().parents[2]
COMMIT = "pipeline/engine/commit.txt"  # in a wheel: the commit it was built from


def version(root: Path = ROOT) -> str | None:
    """Of the source tree or installation ``root``; None for packages that were only copied there."""
    source = _source(root)
    if source is not None:
        return str(source["version"])
    return next((found.version for found in _distributions(root)), None)


def git_commit(root: Path = ROOT) -> str | None:
    """The commit of the source tree ``root``, with ``-dirty`` if files differ; of an installation the one it was made
    from, where pip (PEP 610) or the wheel says so; else None."""
    return _of_tree(root) if _source(root) is not None else _of_installation(root)


def _source(root: Path) -> dict[str, Any] | None:
    """The ``project`` table of this project's pyproject.toml in ``root``."""
    try:
        project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        return None
    return project if project.get("name") == NAME else None


def _distributions(root: Path) -> Iterable[metadata.Distribution]:
    return metadata.distributions(name=NAME, path=[str(root)])  # this one, not another on the search path


def _of_tree(root: Path) -> str | None:
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return None
    return _git(root, "describe", "--always", "--dirty", "--abbrev=40", "--match=")


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _of_installation(root: Path) -> str | None:
    for found in _distributions(root):
        try:
            origin = json.loads(found.read_text("direct_url.json") or "{}")
        except ValueError:
            origin = {}
        commit = origin.get("vcs_info", {}).get("commit_id")
        if isinstance(commit, str):
            return commit
    try:
        return (root / COMMIT).read_text().strip() or None
    except OSError:
        return None
