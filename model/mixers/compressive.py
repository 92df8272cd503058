"""Compressive Transformers (arXiv:1911.05507) on a RoPE trunk: Transformer-XL whose cache, when it is given up, is
compressed c:1 into a queue that queries go on seeing.

A query of segment s attends in one softmax to the newest ``compressed_tokens`` slots of the queue, which end where its
cache begins; to segment s - 1; and to its own segment (sec. 3.1). A slot is a strided convolution of c layer inputs,

    cm_j = sum_(i < c) U_i h_(j c + i)   (f_c in the paper, of its forms the one it reports the best results with),

and gives keys and values through the layer's own W_k and W_v. The convolution learns from the attention it loses, and
from nothing else (sec. 3.2, algorithm 2): with everything but U constant, the queries of segment s attend by content,
without positions, to segment s - 1 and to its compression,

    L = mean (attn(q_s, h_(s-1)) - attn(q_s, f_c(h_(s-1))))^2   over batch, tokens, heads and channels.

What is easy to get wrong, and held by tests: the auxiliary loss reaches U and nothing else; the language model's loss
reaches everything but U, and no layer input through a slot; a token is never seen both in the cache and in a slot.

Each c tokens are compressed as soon as they are there, those of all segments at once, and shown two segments later: of
a token that has a slot, only keys and values have to be kept, and those of the newest slots wait in the state.

Adapted: RoPE instead of the paper's relative positions, which number slots on as if they were tokens. Here a slot
stands where the last of its c tokens stood, so that a distance means the same for slots and tokens. (The middle of the
c is no whole position; the shift is the same for all slots.) Inputs are the normed ones of a pre-norm trunk. U is drawn
at random as in the paper, so a checkpoint grafted under this mixer has to learn it first.

Shapes: B batch, T tokens, S segments of N tokens, H query heads, K key/value heads, d head size, C model size, J slots.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import MixerConfig, TrunkConfig
from model.mixers.base import KeyValue, Knockout, LayerState, attend, compact, join, lower_right, split_axis
from model.mixers.xl import XLMixer, rotated
from model.rope import Rope, rotate


@dataclass(frozen=True)
class Queue:
    """Keys (with position) and values of slots, oldest first, [B, J, K, d], those not shown yet among them, and the
    inputs [B, r, C] of the r < c tokens that wait for others."""

    k: Tensor
    v: Tensor
    waiting: Tensor

    def detach(self) -> Queue:
        return Queue(self.k.detach(), self.v.detach(), self.waiting.detach())

    @property
    def elements(self) -> int:
        return sum(t.numel() for t in (self.k, self.v, self.waiting))

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.k, self.v, self.waiting))


class CompressiveMixer(XLMixer):
    holds = Queue

    def __init__(self, trunk: TrunkConfig, config: MixerConfig, layer: int = 0) -> None:
        super().__init__(trunk, config, layer)
        self.compress = nn.Linear(config.compression * trunk.dim, trunk.dim, bias=False)  # the convolution, stride c

    def mix(
        self, x: Tensor, state: LayerState, *, position: int, rope: Rope, knockout: Knockout, keep_state: bool
    ) -> tuple[Tensor, LayerState]:
        c, end = self.config.compression, position + x.shape[1]
        cos, sin = rope.table(position, x.shape[1], x.device, x.dtype)
        q, own, shown = self.seen_twice(x)
        before = cast(Queue | None, state.memory)
        inputs, slots = x.detach(), KeyValue(own.k[:, :0], own.v[:, :0])
        if before is not None:
            inputs, slots = torch.cat([before.waiting, inputs], dim=1), KeyValue(before.k, before.v)
        first, new, auxiliary = position // c - len(slots), inputs.shape[1] // c, None
        if new:
            compressed = self.compress(inputs[:, : new * c].reshape(len(x), new, -1))
            auxiliary = self.reconstruction(q, own, compressed, position)
            fixed = compressed.detach()  # the language model's loss trains W_k and W_v on it, not the compression
            last = slice((-1 - position) % c, None, c)  # the last token of every slot completed now is one of x
            slots = join(slots, rotate(self.keys(fixed), cos[last], sin[last]), self.values(fixed))
        shown_slots = self.config.compressed_tokens or self.segment_length
        queue = Slots(slots, first, self.segment_length // c, shown_slots)
        q, own, shown = rotate(q, cos, sin), rotated(own, cos, sin), rotated(shown, cos, sin)
        y, live, cached = self.recur(q, own, shown, state.live, state.cached, position, queue)
        kept = queue.part(queue.bounds(end // self.segment_length)[0], first + len(slots))
        memory = Queue(*(compact(t.detach()) for t in (kept.k, kept.v, inputs[:, new * c :])))
        cached = cached and cached.detach().compact()
        return y, LayerState(live=live and live.compact(), cached=cached, memory=memory, auxiliary=auxiliary)

    def reconstruction(self, q: Tensor, own: KeyValue, compressed: Tensor, position: int) -> Tensor | None:
        """The attention-reconstruction loss times its weight, a scalar; None where nothing is trained, or no segment
        of this call follows a whole one.

        q [B, T, H, d], own [B, T, K, d]: without positions; compressed [B, J, C]: the slots completed by this call.
        """
        n, c = self.segment_length, self.config.compression
        start = -position % n
        segments = max(q.shape[1] - start, 0) // n
        if not (self.training and torch.is_grad_enabled() and segments > 1 and self.config.reconstruction_weight):
            return None
        followed = slice(start, start + (segments - 1) * n)
        queries = split_axis(q.detach()[:, start + n : start + segments * n], 1, -1, n)
        with torch.no_grad():
            wanted = attend(queries, *(split_axis(t[:, followed], 1, -1, n) for t in (own.k, own.v)))
        skipped = (position + start) // c - position // c
        compressed = compressed[:, skipped : skipped + (segments - 1) * (n // c)]
        k, v = self.keys(compressed, frozen=True), self.values(compressed, frozen=True)
        k, v = (split_axis(t, 1, segments - 1, -1) for t in (k, v))
        found = attend(queries, k, v)
        with torch.autocast(q.device.type, enabled=False):
            at_least = torch.promote_types(found.dtype, torch.float32)
            return F.mse_loss(found.to(at_least), wanted.to(at_least)) * self.config.reconstruction_weight


@dataclass(frozen=True)
class Slots:
    """The queue while a chunk is mixed: ``tokens`` [B, J, K, d], of which the first is the document's slot ``first``;
    ``per_segment`` slots a segment, of which a query sees the newest ``shown``."""

    tokens: KeyValue
    first: int
    per_segment: int
    shown: int

    def bounds(self, segment: int) -> tuple[int, int]:
        """First slot that ``segment`` sees, and the one after its last: where its cache begins."""
        end = max(segment - 1, 0) * self.per_segment
        return max(end - self.shown, 0), end

    def part(self, start: int, end: int) -> KeyValue:
        """Slots ``start`` to ``end`` - 1 of the document."""
        at = slice(start - self.first, end - self.first)
        return KeyValue(self.tokens.k[:, at], self.tokens.v[:, at])

    def behind(self, segment: int) -> KeyValue:
        return self.part(*self.bounds(segment))

    def attend(self, q: Tensor, own: KeyValue, shown: KeyValue, before: KeyValue | None, segment: int) -> Tensor:
        """``two_blocks`` with the slots behind them: q [B, S, N, H, d] of segments from number ``segment`` on.

        In up to four groups of segments that see alike: a document's first, which has no cache, its second, which has
        no slots, those that do not see ``shown`` slots yet, and all others.
        """
        stop = segment + q.shape[1]
        full = -(-self.shown // self.per_segment) + 1
        edges = [segment, *(edge for edge in (1, 2, full) if segment < edge < stop), stop]
        groups = list(itertools.pairwise(sorted(set(edges))))
        sizes = [b - a for a, b in groups]
        # split, not slices: the gradients of slices are zero-filled tensors of full size
        queries, keys, values = (torch.split(t, sizes, 1) for t in (q, own.k, own.v))
        before_k, before_v = (None, None) if before is None else (before.k, before.v)
        cached_keys, cached_values = self._cached(shown.k, before_k, sizes), self._cached(shown.v, before_v, sizes)
        outputs = []
        for group, (first, end) in enumerate(groups):
            k, v = keys[group], values[group]
            if first == 0:
                outputs.append(attend(queries[group], k, v, causal=True))
                continue
            size = self._count(end - 1)
            slots = self.part(self.bounds(first)[0], self.bounds(end - 1)[1])
            k = self._behind(slots.k, size, first, cached_keys[group], k)
            v = self._behind(slots.v, size, first, cached_values[group], v)
            mask = lower_right(q.shape[2], k.shape[2], q.device)
            if self._count(first) < size:
                numbers = torch.arange(first, end, device=q.device).view(-1, 1, 1)
                real = torch.arange(k.shape[2], device=q.device) >= size - (numbers - 1) * self.per_segment
                mask = (mask & real).expand(len(q), -1, -1, -1).flatten(0, 1).unsqueeze(1)
            outputs.append(attend(queries[group], k, v, mask=mask))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _cached(self, shown: Tensor, before: Tensor | None, sizes: list[int]) -> tuple[Tensor, ...]:
        """Each group's segments as their successors see them, [B, S, N, K, d], moved on by one: ``before`` [B, N, K, d]
        comes first. A document's first segment is a group of its own and has nothing (an empty tensor)."""
        kept = torch.split(shown, [sum(sizes) - 1, 1], 1)[0]
        if before is None:
            return torch.split(kept, [0, *sizes[1:]], 1)
        return torch.split(torch.cat([before.unsqueeze(1), kept], dim=1), sizes, 1)

    def _count(self, segment: int) -> int:
        start, end = self.bounds(segment)
        return end - start

    def _behind(self, slots: Tensor, size: int, first: int, cached: Tensor, own: Tensor) -> Tensor:
        """What segments from number ``first`` on see, [B, S, size + 2 N, K, d]: a window of ``slots`` (before the first
        slots of the document, zeros), the segment before, and themselves."""
        if not size:
            return torch.cat([cached, own], dim=2)
        slots = F.pad(slots, (0, 0, 0, 0, size - self._count(first), 0))
        return torch.cat([slots.unfold(1, size, self.per_segment).movedim(-1, 2), cached, own], dim=2)
