"""States of single documents: put together into a batch's, and as named tensors that a file can hold.

Training that carries memories from sequence to sequence (``pretrain.carry_memory``) keeps one of each row of its batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from model.decoder import Decoder, DecoderState
from model.mixers.base import KeyValue, LayerState

POSITION, CARRIED = "position", "carried"


def together(states: Sequence[DecoderState]) -> DecoderState:
    """One state of a batch: that of the first state's documents, then the second's. Of each all layers hold the same
    kinds of tensors, of one size but for the batch. Its position is the first one's."""
    return cast(DecoderState, _together(states))


def _together(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, tuple):
        return tuple(_together(part) for part in zip(*parts, strict=True))
    if not dataclasses.is_dataclass(first) or isinstance(first, type):
        return first
    names = [field.name for field in dataclasses.fields(first)]
    return type(first)(**{name: _together([getattr(part, name) for part in parts]) for name in names})


def to_tensors(state: DecoderState) -> dict[str, Tensor]:
    """``layers.0.memory.M`` and so on -> the tensors that ``state`` is made of; its position is one too."""
    found = {POSITION: torch.tensor(state.position)}
    if state.carried is not None:
        found[CARRIED] = state.carried
    for number, layer in enumerate(state.layers):
        for part in ("live", "cached", "memory"):
            held = getattr(layer, part)
            for field in () if held is None else dataclasses.fields(held):
                found[f"layers.{number}.{part}.{field.name}"] = getattr(held, field.name)
    return found


def from_tensors(decoder: Decoder, tensors: Mapping[str, Tensor]) -> DecoderState:
    """Inverse of ``to_tensors``, of a state of ``decoder``."""
    layers = []
    for number, mixer in enumerate(decoder.mixers()):
        held: dict[str, Any] = {}
        for part, kind in (("live", KeyValue), ("cached", KeyValue), ("memory", mixer.holds)):
            start = f"layers.{number}.{part}."
            parts = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
            if parts:
                held[part] = cast(Any, kind)(**parts)
        layers.append(LayerState(**held))
    return DecoderState(tuple(layers), int(tensors[POSITION]), tensors.get(CARRIED))
