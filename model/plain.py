"""What ``fused.py`` and ``rope.py`` compute, in plain torch: the reference of their tests, and what ``torch.compile``
traces. A compiler fuses these passes better than a hand does, and stops at hand-written steps in place.

Shapes as in ``fused.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import FeatureMap
from model.memory import MemoryState, feature_map


def plain_features(name: FeatureMap, x: Tensor, first: int, last: int, dtype: torch.dtype) -> Tensor:
    part = x if (first, last) == (0, x.shape[1]) else x[:, first:last]
    return feature_map(name, part.transpose(2, 3).to(dtype))


def plain_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., T, H, d]; cos, sin [T, d/2]."""
    (a, b), cos, sin = x.chunk(2, dim=-1), cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def plain_rotated_features(
    name: FeatureMap, x: Tensor, cos: Tensor, sin: Tensor, first: int, last: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return plain_rotate(x, cos, sin), plain_features(name, x, first, last, dtype)


def plain_segment_sums(phi_k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return phi_k.transpose(-1, -2) @ v[:, : phi_k.shape[1]].to(phi_k.dtype), phi_k.sum(-2)


def plain_transition(phi_k: Tensor, z: Tensor, eps: float) -> Tensor:
    p = phi_k * (phi_k @ z.unsqueeze(-1) + eps).reciprocal()
    return torch.eye(phi_k.shape[-1], dtype=phi_k.dtype, device=phi_k.device) - phi_k.transpose(-1, -2) @ p


def plain_recall(local: Tensor, phi_q: Tensor, states: MemoryState, g: Tensor, eps: float, *, literal: bool) -> Tensor:
    M, unread = states.M, local.shape[1] - states.M.shape[1]
    grouped = phi_q.reshape(*M.shape[:3], -1, phi_q.shape[-1])
    found = (grouped @ M) * (grouped @ states.z.unsqueeze(-1) + eps).reciprocal()
    found = found.view(*phi_q.shape[:-1], M.shape[-1]).transpose(2, 3)
    before, reads = local[:, :unread], local[:, unread:]
    gates = (g[:, :unread], g[:, unread:]) if g.ndim == 5 else (g, g)
    mixed = (gates[1] * found + (1 - gates[1]) * reads).to(local.dtype)
    if not unread:
        return mixed
    return torch.cat([(before * (1 - gates[0])).to(local.dtype) if literal else before, mixed], dim=1)


def plain_recall_in_place(
    local: Tensor, q: Tensor, states: MemoryState, g: Tensor, name: FeatureMap, eps: float, *, literal: bool
) -> Tensor:
    phi_q = plain_features(name, q, q.shape[1] - states.M.shape[1], q.shape[1], states.M.dtype)
    return plain_recall(local, phi_q, states, g, eps, literal=literal)
