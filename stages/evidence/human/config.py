"""Settings of the stage ``human``, as they stand in a study file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from stages.data.pinned import Pin, agreed, digest_of
from stages.stage import Config, StageError


class HumanConfig(Config):
    """The study file's ``human:`` section: what ``infini-study human import`` wrote."""

    results: str = Field(description="JSON file of human import, relative to the study file")
    pin: Pin | None = Field(default=None, description="digest of the file")

    def key_fields(self) -> dict[str, Any]:
        return {"pin": self.pin}


def pin_results(config: HumanConfig, base_dir: Path) -> HumanConfig:
    """The config with the digest of its file. Raises StageError where that is missing or not the pinned one."""
    path = base_dir / config.results
    if not path.is_file():
        fix = "infini-study human import KEY RATINGS... --out FILE writes one"
        raise StageError("no such file", field="human.results", value=config.results, fix=fix)
    digest = agreed(digest_of(path.read_bytes()), config.pin, field="human.pin")
    return config.model_copy(update={"results": str(path), "pin": digest})
