"""Memorizing Transformers (arXiv:2203.08913) on a RoPE trunk: Transformer-XL, and in one layer attention to the exact
keys and values of everything before the local context, the ``top_k`` nearest per query and head.

    A = g A_mem + (1 - g) A_local,   g = sigmoid(beta), one beta per query head (sec. 3.2)
    A_mem = softmax_j(scale_h q^ . k^_j) v_j over the top_k tokens j of the store nearest to q^;  q^, k^ of length 1

A query of segment s sees locally what Transformer-XL shows it, segments s - 1 and s, and in the store the
``cache_tokens`` tokens before segment s - 1: the two never overlap, and the definition knows nothing of chunks. A
document starts with an empty store, and where it is empty the local output passes unscaled.

What is easy to get wrong, and held by tests: two softmaxes that a gate mixes, not one over both; the store is not
differentiable (its keys and values are detached: queries, scale and gate learn from a read, W_k and W_v do not); stored
keys carry no position, as in the paper: what is retrieved from far behind is outside the distances that RoPE was
trained on, and stays comparable for every later query. The search is exact, there is no approximate index: up to 65K
tokens it is a matrix product in blocks of queries, so that memory stays bounded.

Adapted: the paper normalises queries and keys of all attention and learns its scale from scratch; here retrieval alone
does, because the local attention has to stay that of the checkpoint. The paper sets the scale to 1 at the start; here
it is sqrt(d), at which cosines weigh as much as scaled dot products of vectors of unit variance do.

Shapes: B batch, T tokens, K key/value heads, G query heads of each, d head size, n stored tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.autograd import apply
from model.config import MixerConfig, TrunkConfig, retrieving_layer
from model.mixers.base import KeyValue, Knockout, LayerState, compact, join, split_axis
from model.mixers.xl import XLMixer, rotated
from model.rope import Rope, rotate

SCORES_AT_ONCE = 2**22
"""Scores held at a time by the search (16 MiB in float32): queries are cut into blocks for it."""


@dataclass(frozen=True)
class PastKeyValues:
    """Past tokens, oldest first: keys of length 1 without position, and values, each [B, K, n, d]."""

    k: Tensor
    v: Tensor

    def __len__(self) -> int:
        return self.k.shape[2]

    def detach(self) -> PastKeyValues:
        return PastKeyValues(self.k.detach(), self.v.detach())

    def last(self, n: int | None) -> PastKeyValues:
        start = 0 if n is None else max(len(self) - n, 0)
        return PastKeyValues(compact(self.k[:, :, start:]), compact(self.v[:, :, start:]))

    @property
    def elements(self) -> int:
        return self.k.numel() + self.v.numel()

    @property
    def bytes(self) -> int:
        return self.k.numel() * self.k.element_size() + self.v.numel() * self.v.element_size()


class MemorizingMixer(XLMixer):
    """The layer that retrieves holds its cache and open segment without position: their keys go to the store so."""

    holds = PastKeyValues

    def __init__(self, trunk: TrunkConfig, config: MixerConfig, layer: int = 0) -> None:
        super().__init__(trunk, config, layer)
        self.retrieves = layer == retrieving_layer(trunk, config)
        if self.retrieves:
            self.beta = nn.Parameter(torch.full((self.heads,), config.gate_init))
            self.log_scale = nn.Parameter(torch.full((self.heads,), math.log(self.d_head) / 2))

    def mix(
        self, x: Tensor, state: LayerState, *, position: int, rope: Rope, knockout: Knockout, keep_state: bool
    ) -> tuple[Tensor, LayerState]:
        if not self.retrieves:
            return super().mix(x, state, position=position, rope=rope, knockout=knockout, keep_state=keep_state)
        n, end = self.segment_length, position + x.shape[1]
        cos, sin = rope.table(position, x.shape[1], x.device, x.dtype)
        q, own, shown = self.seen_twice(x)
        live, live_start = _placed(state.live, position, rope)
        cached, start = _placed(state.cached, live_start, rope)
        y, _, _ = self.recur(
            rotate(q, cos, sin), rotated(own, cos, sin), rotated(shown, cos, sin), live, cached, position
        )
        recent = join(state.live, own.k, own.v)
        recent = join(state.cached, recent.k, recent.v)  # all tokens from ``start`` on
        before = cast(PastKeyValues | None, state.memory)
        leave, open_start = max(end // n - 1, 0) * n - start, end // n * n - start
        store = _added(before, _part(recent, 0, leave))
        unread = min(max(2 * n - position, 0), x.shape[1])  # the first two segments have nothing behind their context
        if store is not None and unread < x.shape[1]:
            first = start - (0 if before is None else len(before))
            visible = self.visible(position + unread, end) - first
            y = torch.cat(
                [y[:, :unread], self.recall(y[:, unread:], q[:, unread:], store, visible.clamp(min=0))], dim=1
            )
        cached, live = _part(recent, leave, open_start), _part(recent, open_start, len(recent))
        return y, LayerState(
            live=live and live.compact(),
            cached=cached and cached.detach().compact(),
            memory=store and store.last(self.config.cache_tokens),
        )

    def visible(self, start: int, end: int) -> Tensor:
        """Positions [2, end - start]: each query's first token in the store, and the one after its last."""
        last = (torch.arange(start, end, device="cpu") // self.segment_length - 1) * self.segment_length
        kept = self.config.cache_tokens
        return torch.stack([torch.zeros_like(last) if kept is None else last - kept, last])

    def recall(self, local: Tensor, q: Tensor, store: PastKeyValues, visible: Tensor) -> Tensor:
        """``local`` [B, T, H, d] mixed with what queries q [B, T, H, d] (without position) find in the store, of which
        each sees tokens visible[0] to visible[1] - 1."""
        with torch.autocast(q.device.type, enabled=False):
            q = F.normalize(_at_least_float32(q), dim=-1).to(store.k.dtype)
            q = split_axis(q, 2, self.kv_heads, -1).transpose(1, 2)  # [B, K, T, G, d]
            cosines, rows = apply(_Nearest, q, store.k, visible, self.config.top_k)
            cosines = _at_least_float32(cosines)
            seen = cosines > -math.inf  # fewer than top_k where the document is young
            scale = self.log_scale.exp().view(self.kv_heads, 1, -1, 1)
            scores = (cosines.masked_fill(~seen, 0) * scale).masked_fill(~seen, -math.inf)
            found = _weighted_rows(store.v, rows, scores.softmax(-1)).transpose(1, 2).flatten(2, 3)
            g = torch.sigmoid(_at_least_float32(self.beta)).unsqueeze(-1)
            return torch.lerp(local.to(g.dtype), found.to(g.dtype), g).to(local.dtype)


class _Nearest(torch.autograd.Function):
    """The ``top_k`` largest q k of each query among the keys it sees, exactly, and where they are.

    q [B, K, T, G, d], keys [B, K, n, d] and visible [2, T] as in ``recall`` -> scores [B, K, T, G, top_k] (-inf where a
    query sees fewer), rows of keys.flatten(0, 2) in the same shape. Gradients for q alone, from the rows that were
    chosen: neither the other scores nor copies of the chosen keys are kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, keys: Tensor, visible: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        (b, k, t, g, _), n = q.shape, keys.shape[2]
        top_k = min(top_k, n)
        scores = q.new_full((b, k, t, g, top_k), -math.inf)
        rows = torch.zeros((b, k, t, g, top_k), dtype=torch.long, device=q.device)
        block = max(1, SCORES_AT_ONCE // (b * k * g * n))
        for start in range(0, t, block):
            part = slice(start, min(start + block, t))
            (low, low_last), (high, high_last) = visible[:, [part.start, part.stop - 1]].tolist()
            found = q[:, :, part].flatten(2, 3) @ keys[:, :, low:high_last].transpose(-1, -2)
            found = split_axis(found, 2, -1, g)  # [B, K, t, G, high_last - low]
            lows, highs = visible[:, part].to(q.device).view(2, -1, 1, 1)
            columns = torch.arange(low, high_last, device=q.device)
            if low_last > low:
                found[..., : low_last - low].masked_fill_(columns[: low_last - low] < lows, -math.inf)
            if high_last > high:
                found[..., high - low :].masked_fill_(columns[high - low :] >= highs, -math.inf)
            best, where = largest(found, min(top_k, high_last - low))
            scores[:, :, part, :, : best.shape[-1]] = best
            rows[:, :, part, :, : best.shape[-1]] = where + low
        rows += torch.arange(0, b * k * n, n, device=q.device).view(b, k, 1, 1, 1)
        ctx.save_for_backward(keys, rows)
        ctx.mark_non_differentiable(rows)
        return scores, rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        keys, rows = ctx.saved_tensors
        return _weighted_rows(keys, rows, grads[0]), None, None, None


def largest(scores: Tensor, k: int, group: int = 8, direct: int = 512) -> tuple[Tensor, Tensor]:
    """The k largest of scores [..., n] and their indices, in no order; exact.

    The k largest lie in the k groups with the largest maxima, whatever the groups: so of n scores only maxima and
    k * ``group`` candidates are sorted. On a CPU that is 2 to 8 times faster than ``topk`` at n = 2K to 64K.
    """
    n = scores.shape[-1]
    groups = n // group
    if n <= direct or groups < k:
        top = scores.topk(k, sorted=False)
        return top.values, top.indices
    # groups of columns i, i + groups, i + 2 groups, ..: their maxima are elementwise over whole rows
    maxima = split_axis(scores[..., : group * groups], -1, group, groups).amax(-2)
    _, chosen = largest(maxima, k, group, direct)
    members = torch.arange(0, group * groups, groups, device=scores.device).unsqueeze(-1)
    candidates = (chosen.unsqueeze(-2) + members).flatten(-2)
    if n > group * groups:
        rest = torch.arange(group * groups, n, device=scores.device).expand(*candidates.shape[:-1], -1)
        candidates = torch.cat([candidates, rest], dim=-1)
    top = scores.gather(-1, candidates).topk(k, sorted=False)
    return top.values, candidates.gather(-1, top.indices)


def _weighted_rows(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """sum_j weights[..., j] table.flatten(0, 2)[rows[..., j]]: [..., d], without copies of the rows."""
    bags = F.embedding_bag(
        rows.flatten(0, -2),
        table.flatten(0, 2),
        per_sample_weights=weights.to(table.dtype).flatten(0, -2),
        mode="sum",
    )
    return split_axis(bags, 0, *rows.shape[:-1])


def _added(store: PastKeyValues | None, tokens: KeyValue | None) -> PastKeyValues | None:
    """The store with ``tokens`` behind the others."""
    if tokens is None:
        return store
    k = F.normalize(_at_least_float32(tokens.k.detach()), dim=-1).to(tokens.k.dtype).transpose(1, 2)
    v = tokens.v.detach().transpose(1, 2)
    if store is None:
        return PastKeyValues(k.contiguous(), v.contiguous())
    return PastKeyValues(torch.cat([store.k, k], dim=2), torch.cat([store.v, v], dim=2))


def _part(tokens: KeyValue, start: int, end: int) -> KeyValue | None:
    return KeyValue(tokens.k[:, start:end], tokens.v[:, start:end]) if end > start else None


def _placed(tokens: KeyValue | None, end: int, rope: Rope) -> tuple[KeyValue | None, int]:
    """``tokens``, which end before position ``end``, with positions; and the first one's position."""
    if tokens is None:
        return None, end
    start = end - len(tokens)
    return rotated(tokens, *rope.table(start, len(tokens), tokens.k.device, tokens.k.dtype)), start


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
