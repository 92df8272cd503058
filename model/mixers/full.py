"""Causal attention over everything: the reference that grows with the context. On a trunk with a sliding window it is
what the base is, attention to the window."""

from __future__ import annotations

from torch import Tensor

from model.config import MixerConfig, TrunkConfig
from model.mixers.base import Knockout, LayerState, Mixer, attend, join, lower_right
from model.mixers.window import banded
from model.rope import Rope, rotate


class FullMixer(Mixer):
    def __init__(self, trunk: TrunkConfig, config: MixerConfig, layer: int = 0) -> None:
        super().__init__(trunk, config, layer)
        self.window = trunk.sliding_window

    def mix(
        self, x: Tensor, state: LayerState, *, position: int, rope: Rope, knockout: Knockout, keep_state: bool
    ) -> tuple[Tensor, LayerState]:
        if self.window is not None:
            return banded(self, x, state, self.window, position=position, rope=rope, keep_state=keep_state)
        return self.causal(x, state, position=position, rope=rope)

    def causal(self, x: Tensor, state: LayerState, *, position: int, rope: Rope) -> tuple[Tensor, LayerState]:
        """Over ``state.cached`` and x [B, T, C]. Raises ValueError beyond the tokens that ``rope`` is known for."""
        length = x.shape[1]
        if rope.limit is not None and position + length > rope.limit:
            raise ValueError(
                f"full attention over {position + length} tokens: the base's RoPE is another one beyond "
                f"trunk.rope_scaling.original_max_position_embeddings = {rope.limit} (allowed: at most so many tokens)"
            )
        q, k, v = self.project(x)
        cos, sin = rope.table(position, length, x.device, x.dtype)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        seen = join(state.cached, k, v)
        if len(seen) == length:
            y = attend(q, k, v, causal=True)
        else:
            y = attend(q, seen.k, seen.v, mask=None if length == 1 else lower_right(length, len(seen), x.device))
        return y, LayerState(cached=seen)
