"""Transformer-XL's recurrence (arXiv:1901.02860) on a RoPE trunk: a segment attends to itself and to the previous
segment, whose layer inputs are cached without gradient.

    h~_s = [SG(h_(s-1)), h_s],   q = h_s W_q,  k, v = h~_s W_k, h~_s W_v   (sec. 3.2)

What is easy to get wrong, and held by tests: the stop-gradient stands on the cached *inputs*, so W_k and W_v learn from
the cached tokens and the layers below do not; the previous segment is cached so inside a training sequence too, where
all segments are computed at once. Adapted: positions are RoPE's instead of the paper's (q + u) k + (q + v) W R, the
matched form for a Llama checkpoint, which has no u, v, R. The inputs cached here are the layer's normed ones (pre-norm
trunk), and between chunks the state holds their keys and values, which under fixed weights is the same thing; a chunk's
loss does not reach W_k, W_v through the cache of the chunk before.
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
        q, k, v = self.project(x)
        cos, sin = rope.table(position, x.shape[1], x.device, x.dtype)
        q, own = rotate(q, cos, sin), KeyValue(rotate(k, cos, sin), v)
        y, live, cached = self.recur(q, own, self.shown(x, own, cos, sin), state.live, state.cached, position)
        return y, LayerState(live=live, cached=cached and cached.detach())

    def shown(self, x: Tensor, own: KeyValue, cos: Tensor, sin: Tensor) -> KeyValue:
        """Rotated keys and values [B, T, K, d] of x [B, T, C] as the next segment sees them: the values of ``own``, with
        gradients for W_k and W_v alone."""
        if not (torch.is_grad_enabled() and x.requires_grad and x.shape[1] > self.segment_length):
            return own
        cached = x.detach()
        return KeyValue(rotate(self.heads_of(self.k_proj(cached)), cos, sin), self.heads_of(self.v_proj(cached)))

    def recur(
        self,
        q: Tensor,
        own: KeyValue,
        shown: KeyValue,
        live: KeyValue | None,
        cached: KeyValue | None,
        position: int,
    ) -> tuple[Tensor, KeyValue | None, KeyValue | None]:
        """Outputs [B, T, H, d] of rotated queries q [B, T, H, d], the open segment and the cache after them.

        own: rotated keys and values of the same tokens; shown: theirs for the next segment. live, cached: those of the
        open segment and of the one before it, before these tokens.
        """
        n, outputs = self.segment_length, []
        for span in spans(position, q.shape[1], n):
            q_span, k, v, k_shown, v_shown = (span.of(t) for t in (q, own.k, own.v, shown.k, shown.v))
            if span.whole:
                blocks, shown_blocks = (
                    KeyValue(*(split_axis(t, 1, -1, n) for t in pair)) for pair in ((k, v), (k_shown, v_shown))
                )
                y = two_blocks(split_axis(q_span, 1, -1, n), blocks, shown_blocks, cached, window=None)
                outputs.append(y.flatten(1, 2))
                cached = KeyValue(k_shown[:, -n:], v_shown[:, -n:])
                continue
            open_segment = join(live, k, v)
            seen = join(cached, open_segment.k, open_segment.v)
            outputs.append(attend(q_span, seen.k, seen.v, mask=lower_right(span.length, len(seen), q.device)))
            if len(open_segment) == n:
                live, cached = None, open_segment.detach()
            else:
                live = open_segment
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), live, cached
