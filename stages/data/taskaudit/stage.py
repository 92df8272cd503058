"""The ``task_audit:`` section of a study file: are the sources of evaluation tasks in the training text?

A summarization task such as BookSum asks about whole books. Whoever trained on the book, or on its reference summary,
is not tested by it. Each item of a task is looked for by its id (has a training document the same?) and by its text
(the chain of the contamination audit).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from stages.data.taskaudit.config import TaskAuditConfig
from stages.stage import Artifact, Context, Place, Stage, Summary


class TaskAudit(Stage[TaskAuditConfig]):
    """Training documents in, one row per item of each task out: where its source and its summary were found."""

    name: ClassVar[str] = "taskaudit"
    code_version: ClassVar[int] = 3
    inputs = ("documents",)

    def run(self, config: TaskAuditConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """See ``stages.data.taskaudit.match.audit_tasks``."""
        from stages.data.taskaudit.match import audit_tasks

        return audit_tasks(config, inputs["documents"], output, context)

    def publish(self, folder: Path, place: Place) -> None:
        """One page where pages cannot lead to one another."""
        if not place.file and (folder / "audit.html").is_file():
            from stages.data.audit.single import join

            join(folder)


STAGE = TaskAudit()
