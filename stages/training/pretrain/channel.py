"""How far a training run is, told through a small file in the work folder to the waiting step, where there are several
workers, and to ``infini-study watch``.

A file, because the work folder is the one place that every worker on every node and the step itself can reach, and
it is there again after any of them was killed. Rank 0 replaces it about once a second.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from cluster.storage import NotAFile, filesystem, is_local, read_json, write_atomic
from stages.stage import Context

PROGRESS = "progress.json"
ROWS = 500  # the file holds the newest rows only; a reader that looks once a second misses none


@dataclass
class Writer:
    """Rank 0's end. ``row`` is called every step and writes at most every ``interval`` seconds, to object storage a
    third as often: training waits for the write."""

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
        interval = self.interval if is_local(filesystem(self.url)[0]) else 3 * self.interval
        if time.monotonic() - self._last < interval and row["step"] != total:
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


def told(url: str) -> dict[str, Any] | None:
    """What the file at ``url`` says: {total, rows, warnings}; None while there is none that can be read."""
    try:
        value = read_json(*filesystem(url))
    except (ValueError, RecursionError, NotAFile):
        return None
    return value if _sound(value) else None


def _sound(value: Any) -> bool:
    if not (isinstance(value, dict) and _is_number(value.get("total"))):
        return False
    rows, warnings = value.get("rows"), value.get("warnings")
    return (
        isinstance(rows, list)
        and isinstance(warnings, list)
        and all(isinstance(text, str) for text in warnings)
        and all(isinstance(row, dict) and _is_number(row.get("step")) for row in rows)
        and all(number is None or _is_number(number) for row in rows for number in row.values())
    )


def _is_number(value: Any) -> bool:
    """One that a float can be made of."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


@dataclass
class Relay:
    """The step's end: passes what is new on to the context."""

    url: str
    context: Context
    _step: int = 0
    _warned: set[str] = field(default_factory=set)

    def poll(self) -> None:
        found = told(self.url)
        if found is None:
            return
        for message in found["warnings"]:
            if message not in self._warned:
                self._warned.add(message)
                self.context.warn(message)
        for row in found["rows"]:
            if row["step"] > self._step:
                self._step = row["step"]
                relay(self.context, row, found["total"])


def relay(context: Context, row: dict[str, Any], total: int) -> None:
    """One row of the training log to the context, as progress and as metrics by step."""
    step = int(row["step"])
    shown = {name: float(row[name]) for name in ("loss", "tokens_per_s") if row.get(name) is not None}
    context.progress(step, total, "steps", **shown)
    numbers = {name: float(value) for name, value in row.items() if name != "step" and value is not None}
    context.metrics(step, **numbers)
