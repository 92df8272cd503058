"""One file per arm, one contract (``base.Mixer``)."""

from __future__ import annotations

from model.config import MixerConfig, TrunkConfig
from model.mixers.base import HeadKnockout, Held, KeyValue, Knockout, LayerState, Mixer
from model.mixers.compressive import CompressiveMixer
from model.mixers.deltanet import DeltaNetMixer
from model.mixers.full import FullMixer
from model.mixers.infini import InfiniMixer
from model.mixers.landmark import LandmarkMixer, LandmarkStream
from model.mixers.linear import LinearMixer
from model.mixers.local import LocalMixer
from model.mixers.memorizing import MemorizingMixer
from model.mixers.rmt import RMTMixer, RMTStream
from model.mixers.stream import Stream
from model.mixers.window import WindowMixer
from model.mixers.xl import XLMixer

__all__ = ["STREAMS", "HeadKnockout", "Held", "KeyValue", "Knockout", "LayerState", "Mixer", "Stream", "build"]

KINDS: dict[str, type[Mixer]] = {
    "infini": InfiniMixer,
    "local": LocalMixer,
    "window": WindowMixer,
    "xl": XLMixer,
    "full": FullMixer,
    "compressive": CompressiveMixer,
    "memorizing": MemorizingMixer,
    "rmt": RMTMixer,
    "landmark": LandmarkMixer,
    "linear": LinearMixer,
    "deltanet": DeltaNetMixer,
}
STREAMS: dict[str, type[Stream]] = {"rmt": RMTStream, "landmark": LandmarkStream}
"""Kinds that pass more than the text through the layers."""


def build(trunk: TrunkConfig, config: MixerConfig, layer: int = 0) -> Mixer:
    """The mixer of ``config.kind`` for layer number ``layer`` (0-based)."""
    return KINDS[config.kind](trunk, config, layer)
