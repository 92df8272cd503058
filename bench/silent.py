"""A step's context that nobody follows."""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.stage import Execution


@dataclass(frozen=True)
class SilentContext:
    """``stages.stage.Context`` whose reports go nowhere."""

    work_url: str
    execution: Execution = field(default_factory=Execution)

    def progress(self, done: float, total: float, unit: str, **numbers: float) -> None: ...

    def metrics(self, step: int, **values: float) -> None: ...

    def log(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...
