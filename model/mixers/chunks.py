"""Token recurrences in chunks of C tokens: the layout that linear and deltanet compute in.

Shapes: B batch, T tokens, S chunks of C tokens, H query heads, K key/value heads, G = H / K query heads a group. A
chunk's rows are its tokens, those of queries of a group's heads one after another: [B, S, K, G C, D].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import FeatureMap
from model.fused import features
from model.mixers.base import split_axis

CHUNK = 64
"""Tokens a chunk has at most; results do not depend on it. The work within a chunk grows with C, the number of states
falls. Forward + backward of the recurrence of one layer on one CPU core, 4 heads, ms for C = 16 / 32 / 64 / 128:
heads of 32 at T = 8,192: linear 82 / 53 / 50 / 64, deltanet 134 / 110 / 108 / 140;
heads of 128 at T = 4,096: linear 642 / 250 / 147 / 130, deltanet 592 / 340 / 267 / 288."""


def chunk_length(tokens: int) -> int:
    """C <= CHUNK that spreads ``tokens`` evenly, so that the last chunk misses fewer than S of them."""
    chunks = -(-tokens // CHUNK)
    return -(-tokens // chunks)


def by_chunk(x: Tensor, size: int) -> Tensor:
    """[B, T, heads, D] -> [B, S, C, heads, D], zeros after the last token."""
    missing = -x.shape[1] % size
    return split_axis(F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x, 1, -1, size)


def key_features(name: FeatureMap, k: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """sigma(k) [B, S, K, C, F] of k [B, T, K, d], zeros after the last token: there nothing is written."""
    phi = features(name, by_chunk(k, size), 0, -(-k.shape[1] // size), dtype)
    chunks, tokens = phi.shape[1], k.shape[1]
    if chunks * size == tokens:
        return phi
    real = torch.arange(chunks * size, device=k.device).view(chunks, 1, size, 1) < tokens
    return phi * real


def query_features(name: FeatureMap, q: Tensor, size: int, kv_heads: int, dtype: torch.dtype) -> Tensor:
    """sigma(q) [B, S, K, G C, F] of q [B, T, H, d]."""
    phi = features(name, by_chunk(q, size), 0, -(-q.shape[1] // size), dtype)
    return phi.reshape(*phi.shape[:2], kv_heads, -1, phi.shape[-1])


def rows(x: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """[B, T, K, D] -> [B, S, K, C, D] in ``dtype``, zeros after the last token."""
    return by_chunk(x.to(dtype), size).transpose(2, 3).contiguous()


def by_token(y: Tensor, tokens: int, size: int) -> Tensor:
    """[B, S, K, G C, D] -> [B, T, H, D]."""
    y = y.reshape(*y.shape[:2], -1, size, y.shape[-1])  # [B, S, H, C, D]
    return y.transpose(2, 3).flatten(1, 2)[:, :tokens]


def causal(scores: Tensor, diagonal: int = 0) -> Tensor:
    """Scores [B, S, K, G C, C], in place, with 0 where the key is later than the query (``diagonal`` -1: or the same
    token)."""
    queries, size = scores.shape[-2:]
    return scores.mul_(scores.new_ones(size, size).tril(diagonal).repeat(queries // size, 1))


def product_added(x: Tensor, a: Tensor, b: Tensor, sign: int = 1) -> Tensor:
    """x + sign a b for stacks of matrices [B, S, K, ., .], in one pass."""
    batch = x.shape[:-2]
    return torch.baddbmm(*(t.flatten(0, -3) for t in (x, a, b)), alpha=sign).view(*batch, *x.shape[-2:])
