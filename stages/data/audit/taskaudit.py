"""The ``task_audit:`` section of a study file: are the sources of evaluation tasks in the training text?

A summarization task such as BookSum asks about whole books. Whoever trained on the book, or on its reference summary,
is not tested by it. Each item of a task is looked for by its id (has a training document the same?) and by its text
(the chain of the contamination audit).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from stages.data.decontaminate.stage import DecontaminateConfig
from stages.stage import Artifact, Config, Context, Place, Stage, StageError, Summary


class TaskSource(Config):
    """The items of one task: a JSON Lines or CSV file. It counts by its digest ``pin``, not by where it lies."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="what the task is called")
    path: str = Field(description="JSONL or CSV file, relative to the study file")
    pin: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$", description="digest of the file")
    id: str | None = Field(default="id", description="column with the id of the source, as in the corpus")
    title: str | None = Field(default=None, description="column with its title")
    text: str | None = Field(default=None, description="column with the text of the source")
    summary: str | None = Field(default=None, description="column with the reference summary")

    def columns(self) -> dict[str, str]:
        """Role -> column, of the columns that are named."""
        roles = {"id": self.id, "title": self.title, "text": self.text, "summary": self.summary}
        return {role: column for role, column in roles.items() if column is not None}


class TaskAuditSettings(Config):
    """What to look for in the training documents."""

    sources: tuple[TaskSource, ...] = Field(min_length=1)


class TaskAuditConfig(TaskAuditSettings):
    """With the thresholds of the contamination audit."""

    rule: DecontaminateConfig = DecontaminateConfig()

    def key_fields(self) -> dict[str, Any]:
        fields = self.model_dump(mode="json")
        for source in fields["sources"]:
            del source["path"]
        return {**fields, "rule": self.rule.key_fields()}


def pin_sources(sources: tuple[TaskSource, ...], base_dir: Path) -> tuple[TaskSource, ...]:
    """The sources with absolute paths and digests.

    Raises StageError for a missing file, another digest than the pinned one, a missing column, two sources of one name.
    """
    pinned = []
    for number, source in enumerate(sources):
        field = f"task_audit.sources.{number}"
        path = base_dir / source.path
        if not path.is_file():
            raise StageError(
                "no such file", field=f"{field}.path", value=source.path, fix=f"put a JSONL or CSV file at {path}"
            )
        digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
        if source.pin not in (None, digest):
            raise StageError(
                f"the file now has the digest {digest}", field=f"{field}.pin", value=source.pin,
                fix="write the new digest, or restore the file",
            )  # fmt: skip
        if source.name in [other.name for other in pinned]:
            raise StageError(
                "two sources have this name", field=f"{field}.name", value=source.name, fix="name each source once"
            )
        if not {"id", "text", "summary"} & set(source.columns()):
            raise StageError(
                "nothing to look for", field=field, value=source.name, allowed="id, text, summary: at least one",
                fix="name the column that holds it",
            )  # fmt: skip
        from stages.data.audit.taskfile import first_columns

        present = first_columns(path, field)
        for role, column in source.columns().items():
            if column not in present:
                raise StageError(
                    f"{path.name} has no such column", field=f"{field}.{role}", value=column,
                    allowed=", ".join(present) or "the file is empty",
                    fix=f"name the column that holds it, or {role}: null",
                )  # fmt: skip
        pinned.append(source.model_copy(update={"path": str(path), "pin": digest}))
    return tuple(pinned)


def task_of_pairs(pairs: Any, known: tuple[TaskSource, ...]) -> tuple[TaskSource, ...]:
    """The pinned pairs of ``summarize:`` (``path``, ``pin``; None for none) as a source, unless it is known already.

    Columns the file lacks are left to the summarization to report.
    """
    if pairs is None or pairs.pin in [source.pin for source in known]:
        return ()
    from stages.data.audit.taskfile import first_columns

    present = first_columns(Path(pairs.path), "summarize.pairs")
    named: dict[str, Any] = {role: role if role in present else None for role in ("id", "title", "text", "summary")}
    name = "summarize" if "summarize" not in [source.name for source in known] else "summarize-pairs"
    source = TaskSource(name=name, path=pairs.path, pin=pairs.pin, **named)
    return (source,) if source.columns() else ()


class TaskAudit(Stage[TaskAuditConfig]):
    """Training documents in, one row per item of each task out: where its source and its summary were found."""

    name: ClassVar[str] = "taskaudit"
    code_version: ClassVar[int] = 1
    inputs = ("documents",)

    def run(self, config: TaskAuditConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """See ``stages.data.audit.taskmatch.audit_tasks``."""
        from stages.data.audit.taskmatch import audit_tasks

        return audit_tasks(config, inputs["documents"], output, context)

    def publish(self, folder: Path, place: Place) -> None:
        """One page where pages cannot lead to one another."""
        if not place.file and (folder / "audit.html").is_file():
            from stages.data.audit.single import join

            join(folder)


STAGE = TaskAudit()
