"""What the executor tells of a run; MLflow is told by ``pipeline.tracking``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.engine.artifact import StoredArtifact
    from pipeline.engine.control import Commit
    from pipeline.engine.plan import Plan, Step


class Tracker:
    """The calls the executor makes; this base does nothing with them."""

    def begin(self, plan: Plan, reused: Mapping[str, Commit]) -> None:
        """A run of the study starts."""

    def step_started(self, step: Step) -> None:
        """A step is being computed."""

    def metrics(self, step: str, at: int, values: Mapping[str, float], when: float) -> None:
        """Numbers of a running step at training step ``at``; ``when`` in seconds since the epoch."""

    def step_finished(self, step: Step, commit: Commit, artifact: StoredArtifact, seconds: float) -> None:
        """A step is committed."""

    def step_failed(self, step: str, message: str, status: str) -> None:
        """A step ended without an artifact; ``status`` is FAILED or KILLED."""

    def finish(self, status: str) -> list[str]:
        """The run of the study is over (FINISHED, FAILED, KILLED). Returns what went wrong with the tracking."""
        return []
