"""Settings of the stage ``human``, as they stand in a study file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from stages.data.pinned import Pin, pin_file
from stages.stage import Config


class HumanConfig(Config):
    """The study file's ``human:`` section: what ``infini-study human import`` wrote."""

    results: str = Field(description="JSON file of human import, relative to the study file")
    pin: Pin | None = Field(default=None, description="digest of the file")

    def key_fields(self) -> dict[str, Any]:
        return {"pin": self.pin}


def pin_results(config: HumanConfig, base_dir: Path) -> HumanConfig:
    """The config with the digest of its file. Raises StageError where that is missing or not the pinned one."""
    path, digest = pin_file(
        config.results, base_dir, config.pin, field="human", kind="results (of infini-study human import)"
    )
    return config.model_copy(update={"results": path, "pin": digest})
