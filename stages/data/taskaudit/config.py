"""Settings of the task audit, as they stand in a study file, and what they pin."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.pinned import Pin
from stages.stage import Config


class TaskSource(Config):
    """The items of one task: a JSON Lines or CSV file. It counts by its digest ``pin``, not by where it lies."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="what the task is called")
    path: str = Field(description="JSONL or CSV file, relative to the study file")
    pin: Pin | None = Field(default=None, description="digest of the file")
    id: str | None = Field(default="id", description="column with the id of the source, as in the corpus")
    title: str | None = Field(default=None, description="column with its title")
    text: str | None = Field(default=None, description="column with the text of the source")
    summary: str | None = Field(default=None, description="column with the reference summary")
    layout: Literal["columns", "pairs"] = Field(
        default="columns", description="pairs: whatever stages/data/summaries.py reads, which knows its columns"
    )
    texts: str | None = Field(default=None, description="pairs: folder that names of texts start from")
    splits: tuple[str, ...] | None = Field(default=None, description="pairs: of the rows' column split; none: all")

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
            del source["path"], source["texts"]
            if source["layout"] == "columns":  # an option that is not used moves no key
                del source["layout"], source["splits"]
        return {**fields, "rule": self.rule.key_fields()}
