"""Rotary position embedding (arXiv:2104.09864) in the half-split layout of Hugging Face's Llama."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from model.autograd import apply, traced_as
from model.config import RopeScaling
from model.plain import plain_rotate


class Rope:
    """cos and sin of position x frequency, computed in float64 so that position 10^6 is as exact as position 1."""

    def __init__(self, head_dim: int, theta: float, scaling: RopeScaling | None = None) -> None:
        self.frequencies, self.attention_factor = frequencies(head_dim, theta, scaling)
        self.limit = None if scaling is None else scaling.limit
        self._tables: dict[tuple[int, int, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @staticmethod
    def none(head_dim: int) -> Rope:
        """No rotation, whatever the position: of layers without RoPE."""
        rope = Rope(head_dim, 1.0)
        rope.frequencies = torch.zeros_like(rope.frequencies)
        return rope

    def table(self, start: int, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos, sin [length, d/2] of positions start .. start + length - 1, in ``dtype`` but float32 at least; both
        times the attention factor, which is 1 but for yarn and longrope."""
        if torch.compiler.is_compiling():  # it would trace a graph for every table that is kept
            return self._compute(start, length, device, torch.promote_types(dtype, torch.float32), device)
        key = (start, length, device, torch.promote_types(dtype, torch.float32))
        if key not in self._tables:
            while len(self._tables) > 3:  # one table serves all layers of a pass; old ones go first
                del self._tables[next(iter(self._tables))]
            self._tables[key] = self._compute(*key)
        return self._tables[key]

    def _compute(
        self, start: int, length: int, device: torch.device, dtype: torch.dtype, on: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        # on the CPU whatever the default device is: that may be "meta" while a checkpoint is being loaded
        positions = torch.arange(start, start + length, dtype=torch.float64, device=on)
        angles = positions.outer(self.frequencies.to(on))
        cos, sin = angles.cos() * self.attention_factor, angles.sin() * self.attention_factor
        return cos.to(device, dtype), sin.to(device, dtype)


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> tuple[Tensor, float]:
    """Radians per token [d/2], float64, fastest first, and the factor of cos and sin.

    Scaled as ``transformers`` does (linear: arXiv:2306.15595; yarn: arXiv:2309.00071, sec. 3; llama3: the release of
    Llama 3.1; longrope: arXiv:2402.13753), but in float64, and as it is for text within ``scaling.limit``.
    """
    plain = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
    if scaling is None or scaling.type == "dynamic":
        return plain, 1.0
    context = scaling.original_max_position_embeddings
    if scaling.type == "longrope":
        assert context is not None and scaling.short_factor is not None  # checked by the config
        attention = math.sqrt(1 + math.log(scaling.factor) / math.log(context))
        divisors = torch.tensor(scaling.short_factor, dtype=torch.float64, device="cpu")
        return plain / divisors, scaling.attention_factor or attention
    slowed = plain / scaling.factor
    if scaling.type == "linear":
        return slowed, 1.0
    assert context is not None  # checked by the config
    if scaling.type == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        assert low is not None and high is not None  # checked by the config
        turns = context * plain / (2 * math.pi)  # within the original context
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        return torch.lerp(slowed, plain, keep), 1.0

    def dimension(turns: float) -> float:
        """The dimension (of d/2, as a real number) that makes so many turns within the original context."""
        return head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = dimension(scaling.beta_fast or 32), dimension(scaling.beta_slow or 1)
    if scaling.truncate is not False:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    ramp = torch.arange(head_dim // 2, dtype=torch.float64, device="cpu") - first
    change = (ramp / (last - first if last != first else 0.001)).clamp(0, 1)
    return torch.lerp(plain, slowed, change), _yarn_attention(scaling)


def _yarn_attention(scaling: RopeScaling) -> float:
    """The stated attention factor, or 0.1 m ln(factor) + 1 (sec. 3.4), of two mscales their ratio."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def strength(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling.factor) + 1

    if scaling.mscale and scaling.mscale_all_dim:
        return strength(scaling.mscale) / strength(scaling.mscale_all_dim)
    return strength(1)


@traced_as(plain_rotate)
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [..., T, H, d] by position; cos, sin [T, d/2]. Same dtype as x."""
    y: Tensor = apply(_Rotate, x, cos.unsqueeze(-2), sin.unsqueeze(-2))
    return y


class _Rotate(torch.autograd.Function):
    """A rotation's gradient is the rotation back. Left to autograd, each half costs a zero-filled tensor of full size
    in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin, torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return turn(grads[0], cos, -sin, torch.empty_like(grads[0])), None, None


def turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> Tensor:
    """Into ``out``: x [..., T, H, d] rotated by cos, sin [T, 1, d/2], computed in the wider dtype of both."""
    a, b = x.chunk(2, dim=-1)
    exact = torch.promote_types(x.dtype, cos.dtype)
    y = out if out.dtype == exact else torch.empty_like(out, dtype=exact)
    low, high = y.chunk(2, dim=-1)
    torch.mul(a, cos, out=low).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=high).addcmul_(a, sin)
    return out if y is out else out.copy_(y)
