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

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.autograd import apply
from model.mixers.base import KeyValue, Knockout, LayerState, Mixer, attend, join, lower_right, split_axis, stretches
from model.mixers.twoblock import two_blocks
from model.rope import Rope, rotate


class Further(Protocol):
    """Keys and values [B, J, K, d], with positions, that a segment attends to beside its cache and itself."""

    def behind(self, segment: int) -> KeyValue:
        """Those of the document's segment number ``segment``, oldest first."""
        ...

    def attend(self, q: Tensor, own: KeyValue, shown: KeyValue, before: KeyValue | None, segment: int) -> Tensor:
        """``two_blocks``, with them, for q [B, S, N, H, d] of the segments from number ``segment`` on."""
        ...


class XLMixer(Mixer):
    def mix(
        self, x: Tensor, state: LayerState, *, position: int, rope: Rope, knockout: Knockout, keep_state: bool
    ) -> tuple[Tensor, LayerState]:
        cos, sin = rope.table(position, x.shape[1], x.device, x.dtype)
        q, own, shown = self.seen_twice(x)
        q, own, shown = rotate(q, cos, sin), rotated(own, cos, sin), rotated(shown, cos, sin)
        y, live, cached = self.recur(q, own, shown, state.live, state.cached, position)
        return y, LayerState(live=live and live.compact(), cached=cached and cached.detach().compact())

    def seen_twice(self, x: Tensor) -> tuple[Tensor, KeyValue, KeyValue]:
        """Of x [B, T, C], without positions: queries [B, T, H, d]; keys and values [B, T, K, d] as their own segment
        sees them, and as the next one does, for which x is a constant."""
        if not (torch.is_grad_enabled() and x.requires_grad and x.shape[1] > self.segment_length):
            own = shown = KeyValue(self.keys(x), self.values(x))
        elif self.k_norm or not all(type(p) is nn.Linear and p.bias is None for p in (self.k_proj, self.v_proj)):
            own, shown = (KeyValue(self.keys(inputs), self.values(inputs)) for inputs in (x, x.detach()))
        else:
            pairs = [self._twice(x, projection.weight) for projection in (self.k_proj, self.v_proj)]
            own, shown = (KeyValue(*(self.heads_of(t) for t in tensors)) for tensors in zip(*pairs, strict=True))
        return self.queries(x), own, shown

    @staticmethod
    def _twice(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x, weight = (t.to(torch.get_autocast_dtype(device)) for t in (x, weight))
        y, shown = apply(_LinearTwice, x, weight)
        return y, shown

    def recur(
        self,
        q: Tensor,
        own: KeyValue,
        shown: KeyValue,
        live: KeyValue | None,
        cached: KeyValue | None,
        position: int,
        further: Further | None = None,
    ) -> tuple[Tensor, KeyValue | None, KeyValue | None]:
        """Outputs [B, T, H, d] of rotated queries q [B, T, H, d], the open segment and the cache after them.

        own: rotated keys and values of the same tokens; shown: theirs for the next segment. live, cached: those of the
        open segment and of the one before it, before these tokens. further: what is attended to behind the cache.
        """
        n, outputs = self.segment_length, []
        for stretch in stretches(position, q.shape[1], n):
            q_stretch, k, v, k_shown, v_shown = (stretch.of(t) for t in (q, own.k, own.v, shown.k, shown.v))
            if stretch.whole:
                blocks, shown_blocks = (
                    KeyValue(*(split_axis(t, 1, -1, n) for t in pair)) for pair in ((k, v), (k_shown, v_shown))
                )
                q_blocks = split_axis(q_stretch, 1, -1, n)
                if further is None:
                    y = two_blocks(q_blocks, blocks, shown_blocks, cached, window=None)
                else:
                    y = further.attend(q_blocks, blocks, shown_blocks, cached, (position + stretch.start) // n)
                outputs.append(y.flatten(1, 2))
                cached = KeyValue(k_shown[:, -n:], v_shown[:, -n:])
                continue
            open_segment = join(live, k, v)
            seen = join(cached, open_segment.k, open_segment.v)
            if further is not None:
                seen = join(further.behind((position + stretch.start) // n), seen.k, seen.v)
            outputs.append(attend(q_stretch, seen.k, seen.v, mask=lower_right(stretch.length, len(seen), q.device)))
            if len(open_segment) == n:
                live, cached = None, open_segment.detach()
            else:
                live = open_segment
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), live, cached


def rotated(tokens: KeyValue, cos: Tensor, sin: Tensor) -> KeyValue:
    """``tokens`` with positions (see ``rope.rotate``)."""
    return KeyValue(rotate(tokens.k, cos, sin), tokens.v)


class _LinearTwice(torch.autograd.Function):
    """x W^T twice, the second time with gradients for W only: at the cost, forward and backward, of once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)
        y = F.linear(x, weight)
        return y, y.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        own, shown = grads
        both = own if shown is None else shown if own is None else own + shown
        for_weight = None if both is None else both.flatten(0, -2).T @ x.flatten(0, -2)
        return None if own is None else own @ weight, for_weight
