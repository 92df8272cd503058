"""One file per arm, one contract (``base.Mixer``)."""

from __future__ import annotations

from model.config import MixerConfig, TrunkConfig
from model.mixers.base import KeyValue, Knockout, LayerState, Mixer
from model.mixers.full import FullMixer
from model.mixers.infini import InfiniMixer
from model.mixers.local import LocalMixer
from model.mixers.window import WindowMixer
from model.mixers.xl import XLMixer

__all__ = ["KeyValue", "Knockout", "LayerState", "Mixer", "build"]

KINDS: dict[str, type[Mixer]] = {
    "infini": InfiniMixer,
    "local": LocalMixer,
    "window": WindowMixer,
    "xl": XLMixer,
    "full": FullMixer,
}


def build(trunk: TrunkConfig, config: MixerConfig) -> Mixer:
    """The mixer of ``config.kind``."""
    return KINDS[config.kind](trunk, config)
