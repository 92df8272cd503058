"""One file per arm, one contract (``base.Mixer``)."""

from __future__ import annotations

from model.arms import arm_of, named
from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.mixers.base import HeadKnockout, Held, KeyValue, Knockout, LayerState, Mixer
from model.mixers.stream import Stream

__all__ = ["HeadKnockout", "Held", "KeyValue", "Knockout", "LayerState", "Mixer", "Stream", "build", "build_stream"]


def build(trunk: TrunkConfig, config: MixerConfig, layer: int = 0) -> Mixer:
    """The mixer of ``config.kind`` for layer number ``layer`` (0-based)."""
    mixer: Mixer = named(arm_of(config.kind).mixer)(trunk, config, layer)
    return mixer


def build_stream(config: ModelConfig) -> Stream:
    """What passes through the layers of ``config.mixer.kind``: the text, or more."""
    stream: Stream = named(arm_of(config.mixer.kind).stream)(config)
    return stream
