"""Positive control: cross-segment associative recall, where the memory is the only path to the answer.

k key-value pairs stand in the first segment, filler in the middle ones, queries (keys alone) in the last; the target at
a query is its key's value. Answers are never shown, so queries tell nothing of each other, and the local arm, which
sees its own segment only, cannot do better than guess. One model per (arm, seed) is trained on a mixture of k.

A study that finds no effect must show that it could have found one: with k = 1 the memory arms must succeed where the
local arm stays at 1 / values. For k > 1, knowing the *set* of values without their binding to keys gives 1 / k.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from model.config import MixerConfig, TrunkConfig
from stages.stage import Artifact, Config, Context, Stage, Summary


class ControlSettings(Config):
    """The study file's ``control`` section: task, model and training of the small recall models.

    With the defaults both update rules reached 100% at k = 1 by step 300 for every seed tried, in 15 s of a core; a
    gate learning rate of 1e-2 leaves the delta rule at 50-99% after as many steps.
    """

    layers: int = Field(default=2, ge=1)
    dim: int = Field(default=64, ge=2)
    heads: int = Field(default=2, ge=1)
    vocabulary: int = Field(default=128, ge=8, description="half of it are values, the rest keys and one filler")
    segments: int = Field(default=3, ge=2)
    segment_length: int = Field(default=16, ge=2, description="tokens")
    pairs: tuple[int, ...] = Field(default=(1, 2, 4, 8), min_length=1, description="k, mixed evenly in training")
    steps: int = Field(default=400, ge=1)
    batch: int = Field(default=32, ge=1, description="sequences per step")
    lr: float = Field(default=4e-3, gt=0)
    gate_lr: float = Field(default=5e-2, gt=0)
    warmup_steps: int = Field(default=20, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    evaluations: int = Field(
        default=5, ge=1, description="measurements over the course of training, the last at its end"
    )
    eval_trials: int = Field(
        default=500, ge=1, description="sequences per k in each measurement, one query scored in each"
    )

    @model_validator(mode="after")
    def _fits(self) -> ControlSettings:
        most = max(self.pairs)
        if min(self.pairs) < 1 or len(set(self.pairs)) != len(self.pairs):
            raise ValueError(f"pairs = {list(self.pairs)}: allowed are distinct whole numbers >= 1")
        if 2 * most > self.segment_length:
            raise ValueError(
                f"pairs has k = {most}: {2 * most} tokens do not fit into segment_length = {self.segment_length}"
            )
        if most > self.values or most > self.keys:
            raise ValueError(f"pairs has k = {most}: vocabulary = {self.vocabulary} has only {self.keys} keys")
        if self.evaluations > self.steps:
            raise ValueError(f"evaluations = {self.evaluations}: allowed are at most steps = {self.steps}")
        TrunkConfig(dim=self.dim, layers=self.layers, heads=self.heads)
        return self

    @property
    def values(self) -> int:
        """Number of value tokens: 1 / values is a blind guess."""
        return self.vocabulary // 2

    @property
    def keys(self) -> int:
        """Number of key tokens; one more token is the filler."""
        return self.vocabulary - self.values - 1


class ControlConfig(ControlSettings):
    """One arm and seed."""

    mixer: MixerConfig
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _one_segment_length(self) -> ControlConfig:
        if self.mixer.segment_length != self.segment_length:
            raise ValueError(
                f"mixer.segment_length = {self.mixer.segment_length}: must be segment_length = {self.segment_length}"
            )
        return self


class Control(Stage[ControlConfig]):
    """No inputs."""

    name: ClassVar[str] = "control"
    code_version: ClassVar[int] = 3
    inputs = ()
    uses = ("model",)

    def run(self, config: ControlConfig, inputs: Mapping[str, Any], output: Path, context: Context) -> Summary:
        """control.parquet: accuracy per k over the course of training. Raises StageError if the loss diverges."""
        from stages.control.recall import run

        return run(config, output, context)


STAGE = Control()

__all__ = ["STAGE", "Artifact", "Control", "ControlConfig", "ControlSettings"]
