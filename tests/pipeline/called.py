"""The command line called in this process, from a folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import app


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Said]


def caller(folder: Path, patch: pytest.MonkeyPatch, captured: Callable[[], Any]) -> Command:
    patch.chdir(folder)
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> Said:
        patch.setattr(sys, "argv", ["infini-study", *arguments])
        captured()
        with pytest.raises(SystemExit) as ended:
            app.main()
        found = captured()
        assert "Traceback" not in found.err
        return Said(int(str(ended.value.code)), found.out, found.err)

    return call
