"""Which code runs here: the version and the commit that are recorded with every artifact.

The folder that holds this package is either the project's source tree or an installation. Git is asked only of a
source tree that is a repository itself: an environment often lies inside somebody else's.
"""

from __future__ import annotations

import json
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

NAME = "infini-study"
ROOT = Path(__file__).resolve().parents[2]


def version() -> str | None:
    """Of the installed distribution; None where the packages are only on the search path."""
    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        return None


def git_commit(root: Path = ROOT) -> str | None:
    """The commit of the source tree ``root``, with ``-dirty`` if files differ; the one an installation was made from
    where it says so (PEP 610); else None."""
    return _of_tree(root) if _is_source(root) else _of_installation(root)


def _is_source(root: Path) -> bool:
    try:
        return bool(tomllib.loads((root / "pyproject.toml").read_text())["project"]["name"] == NAME)
    except (OSError, ValueError, KeyError):
        return False


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
    for found in metadata.distributions(name=NAME, path=[str(root)]):  # this one, not another on the search path
        try:
            origin = json.loads(found.read_text("direct_url.json") or "{}")
        except ValueError:
            return None
        commit = origin.get("vcs_info", {}).get("commit_id")
        return commit if isinstance(commit, str) else None
    return None
