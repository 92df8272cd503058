"""The compressive memory of one segment: feature maps, the two update rules, the read (arXiv:2404.07143, eqs. 3-5).

This is the sequential reference: one segment at a time, exactly as the equations stand. Training uses the
segment-parallel form in ``scan.py``, which the tests hold equal to this one to 1e-10 in float64.

Shapes: B batch, H heads (of keys and values), N tokens, d key size, F feature size, E value size. Memory and
normaliser are float32 (float64 for float64 inputs) whatever the model's dtype: at a million tokens a bfloat16 z is
off by 14%, a float16 z has overflowed long before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from model.autograd import apply
from model.config import FeatureMap, Rule


@dataclass(frozen=True)
class MemoryState:
    """What a head remembers: ``M`` [B, H, F, E] and ``z`` [B, H, F], the sum of all keys' features.

    ``scan.py`` also holds one state per segment in it, with a segment axis after B.
    """

    M: Tensor
    z: Tensor

    def detach(self) -> MemoryState:
        return MemoryState(self.M.detach(), self.z.detach())

    def roll(self) -> MemoryState:
        """The memory of the neighbour in the batch (the ``swap`` knock-out)."""
        return MemoryState(self.M.roll(1, 0), self.z.roll(1, 0))

    @property
    def elements(self) -> int:
        return self.M.numel() + self.z.numel()

    @property
    def bytes(self) -> int:
        return self.M.numel() * self.M.element_size() + self.z.numel() * self.z.element_size()


def feature_map(name: FeatureMap, x: Tensor) -> Tensor:
    """sigma(x): [..., d] -> [..., F], non-negative, in float32 at least.

    elu1 is ELU + 1 (Katharopoulos et al., 2020), dpfp1..3 the deterministic parameter-free projection of
    Schlag et al. (2021): with r = [relu(x), relu(-x)], the products r_i r_(i - j) for j = 1..nu. softmax is taken over
    the features (Shen et al., 2018: efficient attention): every token then writes and reads with the same total weight
    1, and a key can address few features sharply where elu1 spreads at least exp(x) over each.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if name == "elu1":
        return x.clamp(max=0).exp() + x.clamp(min=0)  # ELU + 1, but exp(-20) stays 2e-9 in float32
    if name == "relu":
        return F.relu(x)
    if name in ("dpfp1", "dpfp2", "dpfp3"):
        r = torch.cat([F.relu(x), F.relu(-x)], dim=-1)
        return torch.cat([r * r.roll(j, -1) for j in range(1, int(name[-1]) + 1)], dim=-1)
    if name == "softmax":
        return x.softmax(-1)
    raise ValueError(f"feature_map = {name!r}: allowed are elu1, relu, dpfp1, dpfp2, dpfp3, softmax")


def empty(
    batch: int,
    heads: int,
    features: int,
    values: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> MemoryState:
    """M_0 = 0, z_0 = 0."""
    return MemoryState(
        torch.zeros(batch, heads, features, values, device=device, dtype=dtype),
        torch.zeros(batch, heads, features, device=device, dtype=dtype),
    )


def read(state: MemoryState, phi_q: Tensor, eps: float) -> Tensor:
    """A_mem = sigma(Q) M / (sigma(Q) z + eps): [..., N, F] -> [..., N, E]. An empty memory reads as 0."""
    return (phi_q @ state.M) * (phi_q @ state.z.unsqueeze(-1) + eps).reciprocal()


def write(state: MemoryState, phi_k: Tensor, v: Tensor, rule: Rule, eps: float) -> MemoryState:
    """The memory after one segment's keys ``phi_k`` [..., N, F] and values ``v`` [..., N, E].

    linear: M + sigma(K)^T V. delta: M + sigma(K)^T (V - A_mem(K)), so that a binding the memory already returns
    exactly is not written again. z grows by the sum of sigma(K) in both.
    """
    v = v.to(state.M.dtype)
    if rule == "delta":
        v = v - read(state, phi_k, eps)
    return MemoryState(state.M + phi_k.transpose(-1, -2) @ v, state.z + phi_k.sum(-2))


def stored(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """x rounded to ``dtype``, in its own dtype (None: x). The gradient passes as if there were no rounding."""
    return x if dtype is None else cast(Tensor, apply(_Rounded, x, dtype))


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
