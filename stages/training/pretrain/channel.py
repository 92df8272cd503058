"""How far a training run is, told from its workers to the waiting step through a small file in the work folder.

A file, because the work folder is the one place that every worker on every node and the step itself can reach, and
it is there again after any of them was killed. Rank 0 replaces it about once a second; the step reads it.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from cluster.storage import filesystem, write_atomic
from stages.stage import Context

ROWS = 500  # the file holds the newest rows only; a reader that looks once a second misses none


@dataclass
class Writer:
    """Rank 0's end. ``row`` is called every step and writes at most every ``interval`` seconds."""

    url: str
    interval: float = 1.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    total: int = 0
    _last: float = 0.0

    def row(self, row: dict[str, Any], total: int) -> bool:
        """Note ``row``; True if the file was written."""
        self.rows = [*self.rows[-ROWS + 1 :], row]
        self.total = total
        if time.monotonic() - self._last < self.interval and row["step"] != total:
            return False
        self.flush()
        return True

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        self.flush()

    def flush(self) -> None:
        fs, path = filesystem(self.url)
        data = json.dumps({"total": self.total, "rows": self.rows, "warnings": self.warnings}).encode()
        write_atomic(fs, path, data)
        self._last = time.monotonic()


@dataclass
class Relay:
    """The step's end: passes what is new on to the context."""

    url: str
    context: Context
    _step: int = 0
    _warned: set[str] = field(default_factory=set)

    def poll(self) -> None:
        fs, path = filesystem(self.url)
        try:
            told = json.loads(fs.cat_file(path))
        except (FileNotFoundError, ValueError):
            return
        for message in told["warnings"]:
            if message not in self._warned:
                self._warned.add(message)
                self.context.warn(message)
        for row in told["rows"]:
            if row["step"] > self._step:
                self._step = row["step"]
                relay(self.context, row, told["total"])


def relay(context: Context, row: dict[str, Any], total: int) -> None:
    """One row of the training log to the context, as progress and as metrics by step."""
    step = int(row["step"])
    shown = {name: float(row[name]) for name in ("loss", "tokens_per_s") if row.get(name) is not None}
    context.progress(step, total, "steps", **shown)
    numbers = {name: float(value) for name, value in row.items() if name != "step" and value is not None}
    context.metrics(step, **numbers)
