"""Other schedules of an arm's training: variants of the ``pretrain`` section under a name, for claim C12."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from model.arms import has_effect
from model.config import MixerConfig, RopeScaling
from stages.stage import Config
from stages.training.pretrain.config import MixtureConfig, PretrainConfig

BASELINES = ("local", "window", "full")
"""Kinds without a memory whose schedules are varied, beside those with a compressive one."""

SEPARATOR = "@"
"""Between an arm's name, in which it cannot stand, and that of its schedule."""

_POSITIONS = ("rope_theta", "rope_scaling")


def scheduled(arm: str, schedule: str) -> str:
    """The arm's name under another schedule, in step ids and tables: ``local@long``."""
    return f"{arm}{SEPARATOR}{schedule}"


class ScheduleSettings(Config):
    """One entry of the study file's ``schedules:`` section: what it names takes the place of the ``pretrain`` section's
    own; the number of steps and the batch stay as ``match`` sets them.

    ``mixture`` changes the fields that it names: other ``prompts`` and text lengths are another length mixture, and for
    an arm without a memory whole sequences of text are long-context training without memory. ``rope_theta`` and
    ``rope_scaling`` are the positional control.
    """

    arms: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="default: all of kind local, window, full and infini"
    )
    lr: float | None = Field(default=None, gt=0, description="peak learning rate of the weights")
    gate_lr: float | None = Field(default=None, gt=0, description="of the gates, of arms that have some")
    warmup_steps: int | None = Field(default=None, ge=0)
    schedule: Literal["cosine", "constant"] | None = None
    min_lr_share: float | None = Field(default=None, ge=0, le=1)
    horizon: float | None = Field(
        default=None, gt=0, le=1000, description="the cosine ends after so many times the steps"
    )
    curriculum_share: float | None = Field(default=None, ge=0, lt=1)
    mixture: MixtureConfig | None = Field(default=None, description="of the mixture, the fields that are given")
    rope_theta: float | None = Field(default=None, gt=0, description="base of the rotary frequencies")
    rope_scaling: RopeScaling | None = Field(default=None, description="linear, llama3 or yarn")

    def key_fields(self) -> dict[str, Any]:
        """What is given."""
        fields = {name: value for name, value in super().key_fields().items() if value is not None}
        if self.rope_scaling is not None:
            fields["rope_scaling"] = self.rope_scaling.given()
        return fields

    def covers(self, arm: str, mixer: MixerConfig, memory: tuple[str, ...] = ("infini",)) -> bool:
        """Is the arm trained on this schedule too? ``memory``: kinds with a compressive memory."""
        return arm in self.arms if self.arms is not None else mixer.kind in (*BASELINES, *memory)

    def apply(self, config: PretrainConfig) -> PretrainConfig:
        """``config`` on this schedule; what means nothing to its arm (gates, positions) stays as it is.

        Raises ValueError (pydantic's) where the fields do not go together.
        """
        mixer, changes = config.mixer, dict[str, Any]()
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value is None or name in ("arms", "mixture") or not _means_something(name, mixer):
                continue
            changes[name] = value
        if self.mixture is not None:
            given = {name: getattr(self.mixture, name) for name in self.mixture.model_fields_set}
            changes["mixture"] = config.mixture.model_copy(update=given)
        fields = {name: getattr(config, name) for name in PretrainConfig.model_fields}
        return PretrainConfig(**fields | changes)


def _means_something(name: str, mixer: MixerConfig) -> bool:
    if name == "gate_lr":
        return has_effect("gate_init", mixer.kind)
    if name in _POSITIONS:
        return mixer.kind not in ("linear", "deltanet")  # they have none
    return True
