"""Rotary position embedding (arXiv:2104.09864) in the half-split layout of Hugging Face's Llama."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


class Rope:
    """cos and sin of position x frequency, computed in float64 so that position 10^6 is as exact as position 1."""

    def __init__(self, head_dim: int, theta: float) -> None:
        self.frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        # One table serves all layers of a pass; a handful covers training and a decode step.
        self._table = lru_cache(maxsize=4)(self._compute)

    def table(self, start: int, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos, sin [length, d/2] of positions start .. start + length - 1, in ``dtype`` but float32 at least."""
        return self._table(start, length, device, torch.promote_types(dtype, torch.float32))

    def _compute(self, start: int, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angles = torch.arange(start, start + length, dtype=torch.float64).outer(self.frequencies)
        return angles.cos().to(device, dtype), angles.sin().to(device, dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [..., T, H, d] by position; cos, sin [T, d/2]. Same dtype as x."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
