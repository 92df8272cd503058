"""Rotary position embedding (arXiv:2104.09864) in the half-split layout of Hugging Face's Llama."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Rope:
    """cos and sin of position x frequency, computed in float64 so that position 10^6 is as exact as position 1."""

    def __init__(self, head_dim: int, theta: float) -> None:
        self.frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        self._tables: dict[tuple[int, int, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def table(self, start: int, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos, sin [length, d/2] of positions start .. start + length - 1, in ``dtype`` but float32 at least."""
        key = (start, length, device, torch.promote_types(dtype, torch.float32))
        if key not in self._tables:
            while len(self._tables) > 3:  # one table serves all layers of a pass; old ones go first
                del self._tables[next(iter(self._tables))]
            self._tables[key] = self._compute(*key)
        return self._tables[key]

    def _compute(self, start: int, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angles = torch.arange(start, start + length, dtype=torch.float64).outer(self.frequencies)
        return angles.cos().to(device, dtype), angles.sin().to(device, dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [..., T, H, d] by position; cos, sin [T, d/2]. Same dtype as x."""
    y: Tensor = _Rotate.apply(x, cos.unsqueeze(-2), sin.unsqueeze(-2))  # type: ignore[no-untyped-call]
    return y


class _Rotate(torch.autograd.Function):
    """A rotation's gradient is the rotation back. Left to autograd, each half costs a zero-filled tensor of full size
    in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    y = torch.empty_like(x, dtype=torch.promote_types(x.dtype, cos.dtype))
    low, high = y.chunk(2, dim=-1)
    torch.mul(a, cos, out=low).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=high).addcmul_(a, sin)
    return y.to(x.dtype)
