"""Token recurrences in chunks of C tokens: the layout that linear and deltanet compute in.

Shapes: B batch, T tokens, S chunks of C tokens, H query heads, K key/value heads, G = H / K queries a group. A chunk's
rows are its tokens, for queries those of the group's heads one after another: [B, S, K, G C, D].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
"""Tokens a chunk has at most; results do not depend on it. Measured, forward + backward of one layer's recurrence on
one CPU core (T = 8,192, 4 heads of 32), in ms for C = 16 / 32 / 64 / 128: see ``docs/performance.md``."""


def chunk_length(tokens: int) -> int:
    """C <= CHUNK that spreads ``tokens`` evenly, so that the last chunk misses fewer than S of them."""
    chunks = -(-tokens // CHUNK)
    return -(-tokens // chunks)


def by_chunk(x: Tensor, kv_heads: int, size: int) -> Tensor:
    """[B, T, H, D] or, of keys and values, [B, T, K, D] -> [B, S, K, G C, D], zeros after the last token."""
    batch, tokens, heads, width = x.shape
    missing = -tokens % size
    if missing:
        x = F.pad(x, (0, 0, 0, 0, 0, missing))
    x = x.reshape(batch, -1, size, kv_heads, heads // kv_heads, width)
    return x.permute(0, 1, 3, 4, 2, 5).reshape(batch, x.shape[1], kv_heads, -1, width)


def by_token(y: Tensor, tokens: int, size: int) -> Tensor:
    """The inverse of ``by_chunk``: [B, S, K, G C, D] -> [B, T, H, D]."""
    batch, chunks, kv_heads, rows, width = y.shape
    y = y.reshape(batch, chunks, kv_heads, rows // size, size, width).permute(0, 1, 4, 2, 3, 5)
    return y.reshape(batch, chunks * size, -1, width)[:, :tokens]


def causal(scores: Tensor, diagonal: int = 0) -> Tensor:
    """Scores [B, S, K, G C, C], in place, with 0 where the key is later than the query (``diagonal`` -1: or the same
    token)."""
    rows, size = scores.shape[-2:]
    return scores.mul_(scores.new_ones(size, size).tril(diagonal).repeat(rows // size, 1))


def product_added(x: Tensor, a: Tensor, b: Tensor, sign: int = 1) -> Tensor:
    """x + sign a b for stacks of matrices [B, S, K, ., .], in one pass."""
    batch = x.shape[:-2]
    return torch.baddbmm(*(t.flatten(0, -3) for t in (x, a, b)), alpha=sign).view(*batch, *x.shape[-2:])
