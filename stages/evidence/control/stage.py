"""Positive control: cross-segment associative recall, where the memory is the only path to the answer.

k key-value pairs stand in the first segment, queries (keys alone) in the last, filler or other pairs between; the
target at a query is its key's value. Answers are never shown, so queries tell nothing of each other.

It is the paper's recipe in miniature. ``control-base`` trains full attention from scratch on two segments until it can
recall; ``control`` grafts each arm's mixer onto that base of the same seed and goes on training over more segments than
attention within segments spans. A study that finds no effect must show that it could have found one: full attention is
the ceiling, local attention the floor, and knowing the *set* of values without their binding to keys gives 1 / k.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, get_args

from model.arms import variants
from model.config import FeatureMap, MixerConfig
from stages.evidence.control.config import ControlBaseConfig, ControlConfig, ControlSettings
from stages.stage import Artifact, Context, Stage, Summary

CONTROL_ARMS = {
    name: variants()[name]["kind"] for name in ("full", "local", "window", "deltanet", "infini-linear", "infini-delta")
}
"""Arms of the control and their kinds: the ceiling, two floors, a memory with learned writes, the paper's two."""
COMPETITORS = {*ControlSettings().competitors}
"""Those that a study may leave out."""
FEATURE_ROWS = {f"infini-linear-{name}": name for name in get_args(FeatureMap) if name != "elu1"}
"""Arms that ``feature_maps`` adds, and their feature maps."""


def control_arms(settings: ControlSettings, study: Mapping[str, MixerConfig]) -> dict[str, MixerConfig]:
    """The arms of the control by name: ``CONTROL_ARMS``, without competitors that the settings leave out, a row
    per feature map, and the study's own infini arms with the options they have there (one of the same name takes its
    place). Segments are the control's."""
    length = settings.segment_length
    left_out = COMPETITORS - {*settings.competitors}
    arms = {
        name: MixerConfig(segment_length=length, **variants()[name]) for name in CONTROL_ARMS if name not in left_out
    }
    linear = arms["infini-linear"]
    arms |= {row: replace(linear, feature_map=of) for row, of in FEATURE_ROWS.items() if of in settings.feature_maps}
    own = {name: mixer for name, mixer in study.items() if mixer.kind == "infini"}
    return arms | {name: replace(mixer, segment_length=length) for name, mixer in own.items()}


def deciding(arms: Mapping[str, MixerConfig], study: Container[str]) -> list[str]:
    """Of the ``arms`` of the control those with a compressive memory on which a claim hangs, the paper's and the
    ``study``'s own: not the rows of ``feature_maps``."""
    infini = [name for name, mixer in arms.items() if mixer.kind == "infini"]
    return [name for name in infini if name in study or name not in FEATURE_ROWS]


class ControlBase(Stage[ControlBaseConfig]):
    """No inputs. Outputs: the model, its accuracy per k over the course of training."""

    name: ClassVar[str] = "control-base"
    code_version: ClassVar[int] = 1
    inputs = ()

    def run(self, config: ControlBaseConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """model/, control.parquet. Raises StageError if the loss diverges; a base that has not learned to recall is
        a warning here and in every arm, and a number in their tables."""
        from stages.evidence.control.base import run

        return run(config, output, context)


class Control(Stage[ControlConfig]):
    """Input: the ``base`` of the seed. Output: control.parquet."""

    name: ClassVar[str] = "control"
    code_version: ClassVar[int] = 4
    inputs = ("base",)

    def run(self, config: ControlConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """control.parquet: accuracy per k over the course of training; at its end per knock-out and distance too.
        Raises StageError if the loss diverges."""
        from stages.evidence.control.arm import run

        return run(config, inputs["base"], output, context)


BASE = ControlBase()
STAGE = Control()

__all__ = [
    "BASE",
    "CONTROL_ARMS",
    "STAGE",
    "Control",
    "ControlBase",
    "ControlConfig",
    "ControlSettings",
    "control_arms",
    "deciding",
]
