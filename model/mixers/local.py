"""Attention inside each segment and nothing else: infini with g = 0 throughout, and trained so.

Also the frame that infini fills: a chunk is cut at segment borders, whole segments are attended to all at once, and
an unfinished one is held as live keys and values until its last token arrives. Positions restart in each segment
(RoPE is relative, so this equals absolute positions) and rotation is applied here, after the memory's view of Q, K.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from model.memory import MemoryState
from model.mixers.base import KeyValue, Knockout, LayerState, Mixer, attend, join, lower_right, split_axis, stretches
from model.rope import Rope, rotate


class Features(NamedTuple):
    """sigma of the queries that read and of the keys that are written, [B, S', heads, N, F]."""

    q: Tensor
    k: Tensor


class LocalMixer(Mixer):
    def mix(
        self, x: Tensor, state: LayerState, *, position: int, rope: Rope, knockout: Knockout, keep_state: bool
    ) -> tuple[Tensor, LayerState]:
        n = self.segment_length
        q_all, k_all, v_all = self.project(x)
        live, outputs = state.live, []
        memory = cast(MemoryState | None, state.memory)
        for stretch in stretches(position, x.shape[1], n):
            q, k, v = (stretch.of(t) for t in (q_all, k_all, v_all))
            if stretch.whole:
                q, k, v = (split_axis(t, 1, -1, n) for t in (q, k, v))
                cos, sin = rope.table(0, n, x.device, x.dtype)
                more = keep_state or stretch.start + stretch.length < x.shape[1]
                q_local, k_local, phi = self.rotated(q, k, cos, sin, memory, write_last=more)
                local = attend(q_local, k_local, v, causal=True)
                y, memory = self.combine(
                    local,
                    split_axis(stretch.of(x), 1, -1, n),
                    q,
                    KeyValue(k, v),
                    memory,
                    knockout,
                    phi=phi,
                    number=(position + stretch.start) // n,
                    write_last=more,
                )
                outputs.append(y.flatten(1, 2))
                continue
            live = join(live, k, v)
            cos, sin = rope.table(0, len(live), x.device, x.dtype)
            mask = lower_right(stretch.length, len(live), x.device)
            q_local = rotate(q, cos[-stretch.length :], sin[-stretch.length :])
            local = attend(q_local, rotate(live.k, cos, sin), live.v, mask=mask)
            complete = len(live) == n
            segment = KeyValue(live.k.unsqueeze(1), live.v.unsqueeze(1)) if complete else None
            y, memory = self.combine(
                local.unsqueeze(1),
                stretch.of(x).unsqueeze(1),
                q.unsqueeze(1),
                segment,
                memory,
                knockout,
                number=(position + stretch.start) // n,
                write_last=True,
            )
            outputs.append(y.squeeze(1))
            live = None if complete or not keep_state else live.compact()
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return y, LayerState(live=live, memory=memory)

    def rotated(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, memory: MemoryState | None, *, write_last: bool
    ) -> tuple[Tensor, Tensor, Features | None]:
        """q and k of whole segments by position; an arm that wants features of them too can make them here."""
        return rotate(q, cos, sin), rotate(k, cos, sin), None

    def combine(
        self,
        local: Tensor,
        x: Tensor,
        q: Tensor,
        segments: KeyValue | None,
        memory: MemoryState | None,
        knockout: Knockout,
        *,
        number: int,
        write_last: bool,
        phi: Features | None = None,
    ) -> tuple[Tensor, MemoryState | None]:
        """What becomes of the local output [B, S, n, H, d]: here, nothing.

        x [B, S, n, C]: the layer's inputs. q [B, S, n, H, d] without positions. number: of the first of the S segments,
        counted from the document's start. segments: keys and values [B, S, N, K, d] of completed segments, None
        while the segment is open. memory: before the first of them. ``write_last`` false: the memory after the last
        segment is not needed. phi: what ``rotated`` made of q and k.
        """
        return local, None
