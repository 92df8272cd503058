"""Causal attention over everything: the reference that grows with the context."""

from __future__ import annotations

from torch import Tensor

from model.mixers.base import Knockout, LayerState, Mixer, attend, join, lower_right
from model.rope import Rope, rotate


class FullMixer(Mixer):
    def mix(
        self, x: Tensor, state: LayerState, *, position: int, rope: Rope, knockout: Knockout, keep_state: bool
    ) -> tuple[Tensor, LayerState]:
        length = x.shape[1]
        q, k, v = self.project(x)
        cos, sin = rope.table(position, length, x.device, x.dtype)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        seen = join(state.cached, k, v)
        if len(seen) == length:
            y = attend(q, k, v, causal=True)
        else:
            y = attend(q, seen.k, seen.v, mask=None if length == 1 else lower_right(length, len(seen), x.device))
        return y, LayerState(cached=seen)
