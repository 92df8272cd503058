"""The command ``infini-study``, and whose ``model``, ``pipeline``, ``stages`` and ``cluster`` a process imports.

The names of the four packages are anybody's: a user's folder may hold a ``model.py``, and Ray puts the driver's folder
before all others on its workers' search path. ``claim`` has the four names found in one place and nowhere else. It is
called by the command before it imports any of them, and by each Ray worker when it starts.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

NAMES = ("cluster", "model", "pipeline", "stages")
HOME = Path(__file__).absolute().parent


class Ours:
    """A finder, first on ``sys.meta_path``, of the four packages in ``home``."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(self.home)]) if name in NAMES else None


def claim(home: Path = HOME) -> None:
    """From now on this process finds the four packages in ``home``, or beside this file where ``home`` has none.

    ``home``: where a driver has them, which another machine may not have. Raises ImportError where a package of that
    name is imported already from elsewhere.
    """
    home = home if (home / NAMES[0] / "__init__.py").is_file() else HOME
    for name in NAMES:
        loaded = sys.modules.get(name)
        folders = [Path(folder).resolve() for folder in getattr(loaded, "__path__", ())]
        if loaded is not None and (home / name).resolve() not in folders:
            raise ImportError(
                f"{loaded!r} was imported before infini-study's own package {name} in {home}. "
                "Fix: rename it, or run infini-study in a process that does not import it"
            )
    sys.meta_path[:] = [Ours(home), *(finder for finder in sys.meta_path if not isinstance(finder, Ours))]


HARNESS = {
    "HarnessModel": ("stages.evidence.standalone.harness", "StudyLM"),
    "harness_documents": ("stages.evidence.standalone.harness_tasks", "documents"),
    "harness_results": ("stages.evidence.standalone.harness_tasks", "results"),
}
"""What lm-evaluation-harness asks this module for, by an entry point and in the files of tasks."""


def __getattr__(name: str) -> Any:
    if name not in HARNESS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    claim()
    module, attribute = HARNESS[name]
    return getattr(importlib.import_module(module), attribute)


def main() -> None:
    """Entry point of the command; see ``pipeline.cli.app.main`` for the exit codes."""
    try:
        claim()
    except ImportError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    try:
        from pipeline.cli.app import main as command
    except KeyboardInterrupt:  # the imports take a moment
        raise SystemExit(130) from None
    command()


if __name__ == "__main__":
    main()
