"""Settings of the audit of one file of rows that models are tuned on. The plan fills them in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.pinned import Pin
from stages.data.summaries import root_of
from stages.data.taskaudit.config import TaskAuditConfig, TaskSource
from stages.data.tasks.config import PromptFile
from stages.stage import Config


class TuningAuditConfig(Config):
    """One file, what is looked for in it beside the held-out documents, and the contamination audit's thresholds."""

    layout: Literal["pairs", "turns"] = Field(description="texts with summaries, or conversations and preferences")
    path: str = Field(description="the file, or of pairs a folder of files")
    texts: str | None = Field(default=None, description="pairs: folder that names of texts start from")
    splits: tuple[str, ...] | None = Field(default=None, description="pairs: those that are trained on")
    pin: Pin
    tasks: tuple[TaskSource, ...] = Field(default=(), description="tasks whose texts and references are asked")
    prompts: dict[str, PromptFile] = Field(default={}, description="files of prompts that are asked, by name")
    rule: DecontaminateConfig = DecontaminateConfig()

    @property
    def root(self) -> Path:
        """Folder that names of texts start from."""
        return root_of(self.path, self.texts)

    def key_fields(self) -> dict[str, Any]:
        """Where files lie does not count, their bytes do."""
        fields = {"layout": self.layout, "pin": self.pin, "rule": self.rule.key_fields()}
        if self.layout == "pairs":
            fields["splits"] = list(self.splits or ())
        if self.tasks:
            fields["tasks"] = TaskAuditConfig(sources=self.tasks).key_fields()["sources"]
        if self.prompts:
            fields["prompts"] = {name: file.pin for name, file in self.prompts.items()}
        return fields
