"""Sliding-window attention: each token sees the last ``segment_length`` tokens, itself included.

Blocks of one window attend to themselves and the block before under a band mask, so the cost is linear in T and no
loop runs over blocks. Blocks start where the chunk starts: the band is the same wherever they lie.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.mixers.base import KeyValue, Knockout, LayerState, Mixer, attend, join, lower_right, split_axis
from model.mixers.twoblock import two_blocks
from model.ranks import Ranks, shifted, tied
from model.rope import Rope, rotate


class WindowMixer(Mixer):
    def mix(
        self, x: Tensor, state: LayerState, *, position: int, rope: Rope, knockout: Knockout, keep_state: bool
    ) -> tuple[Tensor, LayerState]:
        return banded(self, x, state, self.segment_length, position=position, rope=rope, keep_state=keep_state)


def banded(
    mixer: Mixer, x: Tensor, state: LayerState, n: int, *, position: int, rope: Rope, keep_state: bool
) -> tuple[Tensor, LayerState]:
    """Outputs [B, T, H, d] of ``mixer``'s heads for x [B, T, C], each token's over the last ``n``, and the state."""
    length = x.shape[1]
    q, k, v = mixer.project(x)
    cos, sin = rope.table(position, length, x.device, x.dtype)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    body = length // n * n
    outputs, past = [], state.live
    if mixer.ranks is not None and n > 1:
        q, past = _from_ranks(mixer.ranks, q, k, v, n - 1)
    if body:
        blocks = KeyValue(*(split_axis(t[:, :body], 1, -1, n) for t in (k, v)))
        y = two_blocks(split_axis(q[:, :body], 1, -1, n), blocks, blocks, past, window=n)
        outputs.append(y.flatten(1, 2))
        past = KeyValue(k[:, body - n : body], v[:, body - n : body])
    if body < length:
        seen = join(past, k[:, body:], v[:, body:])
        mask = lower_right(length - body, len(seen), x.device, window=n)
        outputs.append(attend(q[:, body:], seen.k, seen.v, mask=mask))
        past = seen
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    if past is None or not keep_state:
        return y, LayerState()
    return y, LayerState(live=past.last(n - 1).compact())


def _from_ranks(ranks: Ranks, q: Tensor, k: Tensor, v: Tensor, n: int) -> tuple[Tensor, KeyValue | None]:
    """The last n rotated keys and values of the rank before (None on the first), and q."""
    halo = shifted(ranks, torch.stack([k[:, -n:], v[:, -n:]]))
    return tied(q, halo), KeyValue(halo[0], halo[1]) if ranks.rank else None
