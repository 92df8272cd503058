"""Landmark attention (arXiv:2305.16300): blocks of text end in a landmark token, and attention to a landmark is
attention to its block.

A query of block b attends to the regular tokens of its own block and to the landmarks of earlier blocks in one softmax;
the weight of each landmark is then spread over its block's regular tokens by a softmax of their own (grouped softmax,
eqs. 1-3). With s the scaled scores, this is one softmax over regular tokens with the scores

    s_ij                                                  for j in the query's own block,
    s_ij + s_i,landmark(j) - logsumexp_(j' in block of j) s_ij'     for j in earlier blocks.

Training lets a query see all earlier blocks of the sequence. Outside of it (``Module.eval``) it sees its own block, the
``segment_length // block_tokens`` blocks before it (at least one: the local context), and the ``top_blocks`` blocks
before those whose landmarks score highest, per query and head. Those keep their distance if they lie within
``top_blocks`` blocks of the local context; all that lie farther are placed one block beyond that (the paper's stingy
positions), so that no distance is ever larger than ``segment_length + top_blocks`` blocks or so, however long the text.
Where nothing lies farther, both forms are the same function.

Keys are kept without position and rotated when read. All keys and values are kept: the state grows with the text, what
a query works on does not, landmarks aside. The landmark stands in the stream behind every ``block_tokens`` tokens of
text, one vector for all; no logits are made there.

Shapes: B batch, T queries, K key/value heads, G query heads of each, d head size, L = block_tokens + 1 block size,
S blocks of queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.mixers.base import KeyValue, Knockout, LayerState, Mixer, join, split_axis, stretches
from model.mixers.stream import Layers, Stream, Trunk
from model.rope import Rope, rotate

AT_ONCE = 2**22
"""Numbers in the largest tensor that queries are cut into pieces for (16 MiB in float32)."""


@dataclass(frozen=True)
class Blocks:
    """All complete blocks as they are read: keys rotated by their place in the block. landmarks [B, J, K, d]; k, v
    [B, K, J, (L - 1) d], a head's block in one piece, so that what queries retrieve is copied row by row."""

    landmarks: Tensor
    k: Tensor
    v: Tensor


class LandmarkMixer(Mixer):
    def __init__(self, trunk: TrunkConfig, config: MixerConfig, layer: int = 0) -> None:
        super().__init__(trunk, config, layer)
        self.size = config.block_tokens + 1
        self.near = max(1, config.segment_length // config.block_tokens)

    def mix(
        self, x: Tensor, state: LayerState, *, position: int, rope: Rope, knockout: Knockout, keep_state: bool
    ) -> tuple[Tensor, LayerState]:
        q, k, v = self.project(x)
        seen = join(state.live, k, v)
        seen = join(state.cached, seen.k, seen.v)
        q = split_axis(q, 2, self.kv_heads, -1)  # [B, T, K, G, d]
        y = (self.grouped if self.training else self.retrieved)(q, seen, position, rope).flatten(2, 3)
        # what the next query has in its local context is live, all before it is the store
        cut = max(0, len(seen) // self.size - self.near) * self.size
        store = KeyValue(seen.k[:, :cut], seen.v[:, :cut]) if cut else None
        return y, LayerState(live=KeyValue(seen.k[:, cut:], seen.v[:, cut:]), cached=store)

    def grouped(self, q: Tensor, seen: KeyValue, position: int, rope: Rope) -> Tensor:
        """The training form: q [B, T, K, G, d] over all of ``seen``, [B, T, K, G, d]."""
        q = _rotate_queries(q, *rope.table(position, q.shape[1], q.device, q.dtype))
        k = rotate(seen.k, *rope.table(0, len(seen), q.device, q.dtype))
        blocks = -(-len(seen) // self.size)
        k, v = (_pad(t, blocks * self.size - len(seen)) for t in (k, seen.v))
        rows = max(1, AT_ONCE // (q.shape[0] * q.shape[2] * q.shape[3] * k.shape[1]))
        parts = []
        for start in range(0, q.shape[1], rows):
            piece = q[:, start : start + rows]
            end = -(-(position + start + piece.shape[1]) // self.size) * self.size
            args = (piece, k[:, :end], v[:, :end], position + start)
            if torch.is_grad_enabled():  # its T x T weights are made again in the backward pass, not kept
                parts.append(checkpoint(self._grouped, *args, use_reentrant=False))
            else:
                parts.append(self._grouped(*args))
        return torch.cat(parts, dim=1)

    def _grouped(self, q: Tensor, k: Tensor, v: Tensor, position: int) -> Tensor:
        """Queries at ``position`` .. over whole blocks k, v [B, S L, K, d], the last of them perhaps unfinished."""
        k, v = (split_axis(t, 1, -1, self.size) for t in (k, v))
        scores = _scaled(torch.einsum("bnkgd,bjlkd->bkgnjl", q, k), q)
        at = torch.arange(position, position + q.shape[1], device=q.device).unsqueeze(1)
        ahead = torch.arange(k.shape[1], device=q.device) - at // self.size  # [n, S], 0: the query's own block
        before_it = torch.arange(self.size - 1, device=q.device) <= at % self.size  # [n, L - 1]
        logits = _through_landmarks(scores, own=ahead == 0)
        logits = logits.masked_fill(~_visible(ahead <= 0, ahead == 0, before_it), -torch.inf)
        weights = logits.flatten(-2).softmax(-1).to(v.dtype)
        return torch.einsum("bkgnj,bjkd->bnkgd", weights, v[:, :, :-1].flatten(1, 2))

    def retrieved(self, q: Tensor, seen: KeyValue, position: int, rope: Rope) -> Tensor:
        """The form outside of training: local context and retrieved blocks, [B, T, K, G, d] for q of that shape."""
        whole = len(seen) // self.size
        table = rope.table(0, self.size, q.device, q.dtype)
        k, v = (split_axis(t[:, : whole * self.size], 1, whole, self.size) for t in (seen.k, seen.v))
        k = rotate(k, *table)
        packed = (t[:, :, :-1].permute(0, 3, 1, 2, 4).flatten(-2).contiguous() for t in (k, v))
        store = Blocks(k[:, :, -1], *packed)
        per_query = max((self.near + 1) * self.size, 2 * self.config.top_blocks * self.size * self.d_head)
        rows = max(1, AT_ONCE // (q.shape[0] * q.shape[2] * q.shape[3] * per_query * self.size))
        parts = []
        for stretch in stretches(position, q.shape[1], self.size):
            first, offset = divmod(position + stretch.start, self.size)
            blocks = split_axis(stretch.of(q), 1, -1, self.size if stretch.whole else stretch.length)
            for start in range(0, blocks.shape[1], rows):
                piece = blocks[:, start : start + rows]
                y = self._retrieved(piece, seen, store, first + start, offset, rope)
                parts.append(y.flatten(1, 2))
        return torch.cat(parts, dim=1)

    def _retrieved(self, q: Tensor, seen: KeyValue, store: Blocks, first: int, offset: int, rope: Rope) -> Tensor:
        """q [B, S, n, K, G, d]: S blocks from block ``first`` on, n queries from ``offset`` on in each."""
        segments, n, near = q.shape[1], q.shape[2], self.near
        low = max(0, first - near)
        blocks = first + segments - low  # of the keys that are local to any of the queries
        k, v = (t[:, low * self.size : (first + segments) * self.size] for t in (seen.k, seen.v))
        k = rotate(k, *rope.table(0, k.shape[1], q.device, q.dtype))
        k, v = (split_axis(_pad(t, blocks * self.size - t.shape[1]), 1, -1, self.size) for t in (k, v))
        cos, sin = rope.table(0, (max(blocks, near + self.config.top_blocks + 2)) * self.size, q.device, q.dtype)
        place = torch.arange(segments, device=q.device).unsqueeze(1) + (first - low)  # [S, 1], of the own block
        inside = torch.arange(offset, offset + n, device=q.device)
        at = place * self.size + inside
        scores = _scaled(torch.einsum("bsnkgd,bjlkd->bskgnjl", _rotate_queries(q, cos[at], sin[at]), k), q)
        ahead = (torch.arange(blocks, device=q.device) - place).unsqueeze(1)  # [S, 1, blocks]
        before_it = torch.arange(self.size - 1, device=q.device) <= inside.unsqueeze(1)  # [n, L - 1]
        seen_blocks = (ahead <= 0) & (ahead >= -near)
        logits = _through_landmarks(scores, own=(ahead == 0).unsqueeze(1).unsqueeze(1))
        visible = _visible(seen_blocks, ahead == 0, before_it).unsqueeze(1).unsqueeze(1)
        logits = logits.masked_fill(~visible, -torch.inf).flatten(-2)
        v = v[:, :, :-1].flatten(1, 2)
        if first + segments - 1 <= near:
            return torch.einsum("bskgnj,bjkd->bsnkgd", logits.softmax(-1).to(v.dtype), v)
        far, values = self._far(q, store, first, inside, cos, sin)
        weights = torch.cat([logits, far.flatten(-2)], dim=-1).softmax(-1).to(v.dtype)
        local, distant = torch.split(weights, [logits.shape[-1], far.shape[-2] * far.shape[-1]], -1)
        y = (distant.unsqueeze(-2) @ values.flatten(-3, -2)).squeeze(-2)  # [B, S, K, G, n, d]
        return torch.einsum("bskgnj,bjkd->bsnkgd", local, v) + y.permute(0, 1, 4, 2, 3, 5)

    def _far(
        self, q: Tensor, store: Blocks, first: int, inside: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, S, K, G, n, t, L - 1] and values [..., d] of the t best blocks beyond the local context."""
        top, near, device = self.config.top_blocks, self.near, q.device
        base = torch.arange(q.shape[1], device=device) + (first - near)  # [S]: blocks before this one are far
        count = int(first + q.shape[1] - 1 - near)
        # a query as it stands to blocks at distance 1 .. top, and to all beyond: [B, S, n, K, G, top + 1, d]
        steps = torch.arange(near + 1, near + top + 2, device=device)
        at = inside.unsqueeze(1) + steps * self.size
        variants = _rotate_each(q, cos[at], sin[at])
        distance = base.unsqueeze(1) - torch.arange(count, device=device)  # [S, J]
        landmarks = store.landmarks[:, :count]
        scores = torch.einsum("bsnkgd,bjkd->bskgnj", variants[..., -1, :], landmarks)
        # the blocks just before the local context keep their distance: J of them stand behind ``top`` unused columns
        close = base.unsqueeze(1) - torch.arange(1, top + 1, device=device)  # [S, top]
        kept = torch.einsum("bsnkgtd,bstkd->bskgnt", variants[..., :-1, :], landmarks[:, close.clamp(0, count - 1)])
        columns = (close + top).clamp(min=0)[:, None, None, None].expand_as(kept)
        scores = torch.cat([kept.new_zeros(*scores.shape[:-1], top), scores], -1).scatter(-1, columns, kept)[..., top:]
        scores = _scaled(scores, q).masked_fill((distance < 1)[:, None, None, None], -torch.inf)
        which = _ranks(scores).topk(min(top, count), dim=-1).indices
        best = scores.gather(-1, which)
        slot = (distance.clamp(1, top + 1) - 1)[:, None, None, None].expand_as(scores).gather(-1, which)
        variants = variants.permute(0, 1, 3, 4, 2, 5, 6)  # [B, S, K, G, n, top + 1, d]
        asked = variants.gather(-2, slot.unsqueeze(-1).expand(*slot.shape, self.d_head))
        rows = torch.arange(len(q) * self.kv_heads, device=device).view(len(q), 1, self.kv_heads, 1, 1, 1)
        rows = (rows * store.k.shape[2] + which).flatten()
        shape = (*which.shape, self.size - 1, self.d_head)
        k, v = (t.flatten(0, 2).index_select(0, rows).view(shape) for t in (store.k, store.v))
        within = _scaled((k @ asked.unsqueeze(-1)).squeeze(-1), q)
        return within + (best - within.logsumexp(-1)).unsqueeze(-1), v


class LandmarkStream(Stream):
    """Puts the landmark behind every ``block_tokens`` tokens of text."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.landmark = nn.Parameter(torch.empty(1, config.trunk.dim))

    def forward(
        self,
        x: Tensor,
        layers: Layers | None,
        carried: Tensor | None,
        position: int,
        trunk: Trunk,
        *,
        keep_state: bool,
    ) -> tuple[Tensor, Layers, Tensor | None]:
        block, length = self.config.mixer.block_tokens, x.shape[1]
        text = torch.arange(position, position + length, device=x.device)
        start = position + position // block
        place = text + text // block - start
        end = position + length + (position + length) // block
        stream = self.landmark.to(x.dtype).expand(len(x), end - start, -1).index_copy(1, place, x)
        y, after = trunk(stream, layers, start, keep_state=keep_state)
        return y.index_select(1, place), after, None


def _ranks(scores: Tensor) -> Tensor:
    """What blocks are ranked by, float64: their scores [..., J] to 1/4096, and of equal ones the later block first.

    Landmarks enter the first layer as one and the same vector, so their scores there are equal but for rounding, which
    would make the choice depend on how the text was cut into chunks."""
    later = torch.arange(scores.shape[-1], device=scores.device, dtype=torch.float64) * 2**-32
    return (scores.double() * 4096).round() + later


def _through_landmarks(scores: Tensor, own: Tensor) -> Tensor:
    """Logits [..., J, L - 1] of the regular tokens from scores [..., J, L], the landmark last in each block; ``own``
    [..., J] where the block is the query's own."""
    within, landmark = scores[..., :-1], scores[..., -1]
    shift = (landmark - within.logsumexp(-1)).masked_fill(own, 0)
    return within + shift.unsqueeze(-1)


def _visible(blocks: Tensor, own: Tensor, before_it: Tensor) -> Tensor:
    """[..., n, J, L - 1]: regular tokens of ``blocks`` [..., n, J], in the ``own`` one those up to the query itself
    (``before_it`` [n, L - 1])."""
    return blocks.unsqueeze(-1) & (~own.unsqueeze(-1) | before_it.unsqueeze(-2))


def _scaled(scores: Tensor, q: Tensor) -> Tensor:
    """Over sqrt(d), in float32 at least."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32)) / math.sqrt(q.shape[-1])


def _rotate_queries(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """q [..., n, K, G, d] at its positions; cos, sin [..., n, d/2]."""
    return split_axis(rotate(q.flatten(-3, -2), cos, sin), -2, q.shape[-3], q.shape[-2])


def _rotate_each(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """q [..., n, K, G, d] at t positions each, [..., n, K, G, t, d]; cos, sin [n, t, d/2]."""
    copies = q.unsqueeze(-2).expand(*q.shape[:-1], cos.shape[-2], q.shape[-1])
    heads = copies.flatten(-4, -3).movedim(-2, -3)  # [..., n, t, K G, d]
    return split_axis(rotate(heads, cos, sin).movedim(-3, -2), -3, q.shape[-3], q.shape[-2])


def _pad(x: Tensor, after: int) -> Tensor:
    """Zeros behind the tokens of x [B, T, K, d]."""
    return nn.functional.pad(x, (0, 0, 0, 0, 0, after))
