"""Attention to a segment and the one before it, all segments at once: for sliding window and Transformer-XL."""

from __future__ import annotations

import torch
from torch import Tensor

from model.mixers.base import KeyValue, attend, join, lower_right


def two_blocks(q: Tensor, own: KeyValue, shown: KeyValue, before: KeyValue | None, *, window: int | None) -> Tensor:
    """q [B, S, N, H, d] -> [B, S, N, H, d]: segment s attends to segment s - 1 and, causally, to itself.

    own: keys and values [B, S, N, K, d] as a segment sees itself; shown: the same tokens as the next segment sees
    them (detached for Transformer-XL, the same tensors for the window). before: up to N tokens before the first
    segment, [B, n, K, d], None at the start of documents. window: how many tokens a query sees, itself included;
    None for all of both blocks.
    """
    segments, n = q.shape[1:3]
    first = join(before, own.k[:, 0], own.v[:, 0])
    mask = lower_right(n, len(first), q.device, window=window)
    outputs = [attend(q[:, 0], first.k, first.v, mask=mask).unsqueeze(1)]
    if segments > 1:
        k = torch.cat([shown.k[:, :-1], own.k[:, 1:]], dim=2)
        v = torch.cat([shown.v[:, :-1], own.v[:, 1:]], dim=2)
        outputs.append(attend(q[:, 1:], k, v, mask=lower_right(n, 2 * n, q.device, window=window)))
    return torch.cat(outputs, dim=1)
