"""The passes over all tokens that Infini-attention adds to local attention, with their gradients written by hand.

    features        sigma(x) of some segments, laid out head by head
    segment_sums    Phi^T V and the sum of Phi, per segment
    transition      A = I - Phi^T D^-1 Phi, D = diag(Phi z + eps), per segment (delta rule)
    recall          A = g A_mem + (1 - g) A_dot, A_mem = Phi_q M / (Phi_q z + eps)

On a CPU every pass over [B, T, C] is memory traffic, and autograd adds many: copies into the layout of each product,
zero-filled gradients for every slice, intermediate results kept. The plain forms are in ``memory.py``; the tests hold
these equal to them, gradients too.

Shapes: B batch, S segments of N tokens, H query heads, K key/value heads, G = H / K, d head size, F feature size, E
value size. Tensors of tokens arrive as the projections deliver them, [B, S, N, heads, d]; products need [.., N, F] per
head: every function here changes the layout in a pass that is needed anyway.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.config import FeatureMap
from model.memory import MemoryState, feature_map


def features(name: FeatureMap, x: Tensor, first: int, last: int, dtype: torch.dtype) -> Tensor:
    """sigma of the segments first .. last - 1 of x [B, S, N, H, d]: [B, last - first, H, N, F] in ``dtype``."""
    if name == "elu1":
        return cast(Tensor, _Elu1.apply(x, first, last, dtype))  # type: ignore[no-untyped-call]
    part = x if (first, last) == (0, x.shape[1]) else x[:, first:last]
    return feature_map(name, part.transpose(2, 3).to(dtype))


def segment_sums(phi_k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Phi^T V [B, S, K, F, E] and the sum of Phi over tokens [B, S, K, F], of phi_k [B, S, K, N, F] and
    v [B, S', K, N, E]; segments of v from S on are not written."""
    return cast(tuple[Tensor, Tensor], _SegmentSums.apply(phi_k, v))  # type: ignore[no-untyped-call]


def transition(phi_k: Tensor, z: Tensor, eps: float) -> Tensor:
    """I - Phi^T D^-1 Phi [B, S, K, F, F] of phi_k [B, S, K, N, F], D = diag(Phi z + eps), z [B, S, K, F]."""
    return cast(Tensor, _Transition.apply(phi_k, z, eps))  # type: ignore[no-untyped-call]


def recall(local: Tensor, phi_q: Tensor, states: MemoryState, g: Tensor, eps: float, *, literal: bool) -> Tensor:
    """g A_mem + (1 - g) local, in the dtype of ``local`` [B, S, N, H, E].

    phi_q [B, S', H, N, F] and ``states`` (M [B, S', K, F, E]): of the last S' <= S segments; the S - S' before them
    have nothing to read and stay as they are, or with ``literal`` are scaled by 1 - g. g: [H, 1] (per head), [H, E]
    (per channel) or [B, S, N, H, 1] (per token).
    """
    return cast(Tensor, _Recall.apply(local, phi_q, states.M, states.z, g, eps, literal))  # type: ignore[no-untyped-call]


class _Elu1(torch.autograd.Function):
    """sigma(x) = ELU(x) + 1 = exp(min(x, 0)) + max(x, 0), so sigma'(x) = min(sigma(x), 1).

    In this form exp(-20) stays 2e-9; expm1(-20) + 1 in float32 is 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: int, last: int, dtype: torch.dtype) -> Tensor:
        part = x[:, first:last].transpose(2, 3)
        phi = torch.empty(part.shape, dtype=dtype, device=x.device)
        if x.dtype == dtype:
            torch.clamp(part, max=0, out=phi)
        else:
            phi.copy_(part).clamp_(max=0)
        phi.exp_().add_(part.clamp(min=0))
        ctx.save_for_backward(phi)
        ctx.x = x.shape, x.dtype, first, last
        return phi

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (phi,) = ctx.saved_tensors
        shape, dtype, first, last = ctx.x
        dx = torch.empty(shape, dtype=dtype, device=phi.device)
        dx[:, :first] = 0
        dx[:, last:] = 0
        torch.mul(grads[0], phi.clamp(max=1), out=dx[:, first:last].transpose(2, 3))
        return dx, None, None, None


class _SegmentSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, phi: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        segments = phi.shape[1]
        values = v[:, :segments].to(phi.dtype).contiguous()
        ctx.save_for_backward(phi, values)
        ctx.v = v.shape, v.dtype
        return phi.transpose(-1, -2) @ values, phi.sum(-2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        phi, values = ctx.saved_tensors
        shape, dtype = ctx.v
        d_sums, d_total = grads
        d_phi = torch.baddbmm(
            d_total.flatten(0, 2).unsqueeze(1).expand(-1, phi.shape[-2], -1),
            values.flatten(0, 2),
            d_sums.flatten(0, 2).transpose(1, 2),
        ).view_as(phi)
        written = phi @ d_sums
        if shape[1] == phi.shape[1]:
            return d_phi, written.to(dtype)
        d_v = torch.empty(shape, dtype=dtype, device=phi.device)
        d_v[:, : phi.shape[1]] = written
        d_v[:, phi.shape[1] :] = 0
        return d_phi, d_v


class _Transition(torch.autograd.Function):
    """Phi^T R Phi with R = D^-1 is symmetric in Phi: its gradient needs one product with Phi, not two."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, z: Tensor, eps: float) -> Tensor:
        r = (phi @ z.unsqueeze(-1)).add_(eps).reciprocal_()
        a = (phi.transpose(-1, -2) @ (phi * r)).neg_()
        a.diagonal(dim1=-2, dim2=-1).add_(1)
        ctx.save_for_backward(phi, z, r)
        return a

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        phi, z, r = ctx.saved_tensors
        d_erase = -(grads[0] + grads[0].transpose(-1, -2))
        d_phi = phi @ d_erase
        d_r = (d_phi * phi).sum(-1, keepdim=True).mul_(0.5)
        d_den = d_r.mul_(r).mul_(r).neg_()
        d_z = (phi.transpose(-1, -2) @ d_den).squeeze(-1)
        d_phi.mul_(r).addcmul_(d_den, z.unsqueeze(-2))
        return d_phi, d_z, None


class _Recall(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, local: Tensor, phi: Tensor, M: Tensor, z: Tensor, g: Tensor, eps: float, literal: bool
    ) -> Tensor:
        unread = local.shape[1] - phi.shape[1]
        grouped = _by_memory(phi, M)
        r = (grouped @ z.unsqueeze(-1)).add_(eps).reciprocal_()
        found = (grouped @ M).mul_(r).view(*phi.shape[:-1], M.shape[-1])
        y = torch.empty_like(local)
        if unread:
            y[:, :unread] = local[:, :unread] * (1 - _of(g, 0, unread)) if literal else local[:, :unread]
        read, gate = local[:, unread:], _of(g, unread, local.shape[1])
        if local.dtype == found.dtype == g.dtype:
            torch.lerp(read, found.transpose(2, 3), gate, out=y[:, unread:])
        else:
            y[:, unread:] = torch.lerp(read.to(found.dtype), found.transpose(2, 3), gate.to(found.dtype))
        ctx.save_for_backward(local, phi, M, z, g, r, found)
        ctx.literal = literal
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        local, phi, M, z, g, r, found = ctx.saved_tensors
        dy, dtype = grads[0], found.dtype
        unread, segments = local.shape[1] - phi.shape[1], local.shape[1]
        d_local = torch.empty_like(local)
        # dA_mem is g dy; along E it meets A_mem itself, once for g and once for the divisor
        gate = _of(g, unread, segments).to(dtype)
        d_found = dy[:, unread:].transpose(2, 3).to(dtype, memory_format=torch.contiguous_format, copy=True)
        by_head = gate.transpose(-3, -2) if gate.ndim == 5 else gate.unsqueeze(-2)  # [.., H, N or 1, 1 or E]
        met = d_found * found
        if by_head.shape[-1] == 1:
            met = met.sum(-1, keepdim=True)
            divided = met * by_head
        else:
            divided = (met * by_head).sum(-1, keepdim=True)
        d_g = None
        if ctx.needs_input_grad[4]:  # d_local lends its memory to an intermediate result
            d_g = _gate_gradient(met, dy, local, g, unread, d_local, literal=ctx.literal)
        if unread:
            first = dy[:, :unread]
            d_local[:, :unread] = first * (1 - _of(g, 0, unread)) if ctx.literal else first
        torch.mul(dy[:, unread:], 1 - gate, out=d_local[:, unread:])

        d_found = _by_memory(d_found.mul_(by_head * r.view_as(divided)), M)
        d_den = _by_memory(divided, M).mul(r).neg_()
        grouped = _by_memory(phi, M)
        d_phi = (d_found @ M.transpose(-1, -2)).addcmul_(d_den, z.unsqueeze(-2))
        d_M = grouped.transpose(-1, -2) @ d_found
        d_z = (grouped.transpose(-1, -2) @ d_den).squeeze(-1)
        return d_local, d_phi.view_as(phi), d_M, d_z, d_g, None, None


def _gate_gradient(
    met: Tensor, dy: Tensor, local: Tensor, g: Tensor, unread: int, scratch: Tensor, *, literal: bool
) -> Tensor:
    """sum of dy (A_mem - A_dot) over what shares a gate. met: dy A_mem [B, S', H, N, 1 or E]; scratch: overwritten."""
    start = 0 if literal else unread
    pairs = dy[:, start:], local[:, start:]
    lost = torch.mul(*pairs, out=scratch[:, start:]) if local.dtype == met.dtype else pairs[0].to(met.dtype) * pairs[1]
    if g.shape[-1] == 1:
        lost = lost.sum(-1, keepdim=True)
    if g.ndim == 2:
        return (met.sum((0, 1, 3)) - lost.sum((0, 1, 2))).to(g.dtype)
    d_g = torch.zeros_like(g, dtype=met.dtype)
    d_g[:, unread:] = met.transpose(2, 3)
    d_g[:, start:] -= lost
    return d_g.to(g.dtype)


def _by_memory(x: Tensor, M: Tensor) -> Tensor:
    """[B, S, H, N, n] -> [B, S, K, G N, n]: the heads that share a memory, one after the other; a view."""
    return x.reshape(*M.shape[:3], -1, x.shape[-1])


def _of(g: Tensor, first: int, last: int) -> Tensor:
    """The gate of segments first .. last - 1."""
    return g[:, first:last] if g.ndim == 5 else g
