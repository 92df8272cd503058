"""Transformer-XL's recurrence (arXiv:1901.02860) on a RoPE trunk: a segment attends to itself and to the previous
segment, whose layer inputs are cached without gradient.

Keys and values of the cache are computed from the detached inputs, so W_k and W_v learn from them and the inputs do
not, as in the paper; that holds for the previous segment inside a training sequence too, all segments at once. The
positions are RoPE's instead of the paper's (q + u) k + (q + v) W R: the matched form for a Llama checkpoint. Between
chunks the state holds the cache as keys and values, which under fixed weights is the same thing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.mixers.base import KeyValue, Knockout, LayerState, Mixer, attend, join, lower_right, spans, split_axis
from model.mixers.twoblock import two_blocks
from model.rope import Rope, rotate


class XLMixer(Mixer):
    def mix(
        self, x: Tensor, state: LayerState, *, position: int, rope: Rope, knockout: Knockout, keep_state: bool
    ) -> tuple[Tensor, LayerState]:
        n = self.segment_length
        q_all, k_all, v_all = self.project(x)
        cos, sin = rope.table(position, x.shape[1], x.device, x.dtype)
        q_all, k_all = rotate(q_all, cos, sin), rotate(k_all, cos, sin)
        if torch.is_grad_enabled() and x.requires_grad and x.shape[1] > n:
            shown = x.detach()
            cached_k = rotate(self.heads_of(self.k_proj(shown)), cos, sin)
            cached_v = self.heads_of(self.v_proj(shown))
        else:
            cached_k, cached_v = k_all, v_all
        live, cached, outputs = state.live, state.cached, []
        for span in spans(position, x.shape[1], n):
            q, k, v, k_shown, v_shown = (span.of(t) for t in (q_all, k_all, v_all, cached_k, cached_v))
            if span.whole:
                own, shown_kv = (
                    KeyValue(*(split_axis(t, 1, -1, n) for t in pair)) for pair in ((k, v), (k_shown, v_shown))
                )
                y = two_blocks(split_axis(q, 1, -1, n), own, shown_kv, cached, window=None)
                outputs.append(y.flatten(1, 2))
                cached = KeyValue(k_shown[:, -n:], v_shown[:, -n:])
                continue
            open_segment = join(live, k, v)
            seen = join(cached, open_segment.k, open_segment.v)
            outputs.append(attend(q, seen.k, seen.v, mask=lower_right(span.length, len(seen), x.device)))
            if len(open_segment) == n:
                live, cached = None, open_segment.detach()
            else:
                live = open_segment
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return y, LayerState(live=live, cached=cached and cached.detach())
