"""The command ``infini-study``, and whose ``model``, ``pipeline``, ``stages`` and ``cluster`` a process imports.

The names of the four packages are anybody's: a user's folder may hold a ``model.py``, and Ray puts the driver's folder
before all others on its workers' search path. ``claim`` has the four names found beside this file and nowhere else. It
is called by the command before it imports any of them, and by each Ray worker when it starts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

NAMES = ("cluster", "model", "pipeline", "stages")
HOME = Path(__file__).absolute().parent


class Ours:
    """A finder, first on ``sys.meta_path``, of the four packages beside this file."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(HOME)]) if name in NAMES else None


def claim() -> None:
    """From now on this process finds the four packages here. Raises ImportError where it has another's already."""
    for name in NAMES:
        loaded = sys.modules.get(name)
        folders = [Path(folder).resolve() for folder in getattr(loaded, "__path__", ())]
        if loaded is not None and (HOME / name).resolve() not in folders:
            raise ImportError(
                f"{loaded!r} was imported before infini-study's own package {name} in {HOME}. "
                "Fix: rename it, or run infini-study in a process that does not import it"
            )
    if Ours not in sys.meta_path:
        sys.meta_path.insert(0, Ours)


def main() -> None:
    """Entry point of the command; see ``pipeline.cli.app.main`` for the exit codes."""
    try:
        claim()
    except ImportError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    from pipeline.cli.app import main as command

    command()


if __name__ == "__main__":
    main()
