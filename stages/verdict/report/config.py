"""What the report needs to know beside the artifacts."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from model.config import MixerConfig, TrunkConfig
from stages.stage import Config
from stages.training.pretrain.schedule import ScheduleSettings
from stages.verdict.claims.config import ClaimsConfig


class ReportConfig(Config):
    """One report. ``title`` heads the page (default: the study's name)."""

    study: str
    description: str = ""
    title: str = ""
    arms: dict[str, MixerConfig] = Field(min_length=1)
    trunk: TrunkConfig
    seeds: tuple[int, ...] = Field(min_length=1)
    claims: ClaimsConfig = ClaimsConfig()
    control_arms: dict[str, MixerConfig] = Field(default={}, description="arms of the positive control, by name")
    recipe: dict[str, Any] = Field(
        default={}, description="the sections base and pretrain, and what is matched, for the table of the recipe"
    )
    schedules: dict[str, ScheduleSettings] = Field(
        default={}, description="other schedules by name, each with the arms that were trained on it too"
    )

    def key_fields(self) -> dict[str, Any]:
        """Schedules only where there are some."""
        fields = super().key_fields()
        if not self.schedules:
            fields.pop("schedules")
        return fields
