"""The command line called in this process, from a folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.cli import app


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def faults(self) -> list[str]:
        lines = [line for line in self.err.splitlines() if not line.startswith(("[", "warning: "))]
        assert all(line.startswith("error: ") for line in lines), lines
        return [line.removeprefix("error: ") for line in lines]


Command = Callable[..., Said]


def caller(
    folder: Path, patch: pytest.MonkeyPatch, captured: Callable[[], Any], before: str = "", behind: str = ""
) -> Command:
    """Runs a command in ``folder``; the words ``before`` and ``behind`` stand around the arguments of every call."""
    patch.chdir(folder)
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.setenv("COLUMNS", "200")

    def call(*arguments: str | Path) -> Said:
        patch.setattr(sys, "argv", ["infini-study", *before.split(), *map(str, arguments), *behind.split()])
        captured()  # what the test itself said before
        with pytest.raises(SystemExit) as ended:
            app.main()
        found = captured()
        assert "Traceback" not in found.err
        return Said(int(str(ended.value.code)), found.out, found.err)

    return call
