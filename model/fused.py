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


def recall(
    local: Tensor, q: Tensor, states: MemoryState, g: Tensor, name: FeatureMap, eps: float, *, literal: bool
) -> Tensor:
    """g A_mem + (1 - g) local, in the dtype of ``local`` [B, S, N, H, E]; q [B, S, N, H, d], features in M's dtype.

    ``states`` (M [B, S', K, F, E]): of the last S' <= S segments; the S - S' before them have nothing to read and stay
    as they are, or with ``literal`` are scaled by 1 - g. g: [H, 1] (per head), [H, E] (per channel) or [B, S, N, H, 1]
    (per token).
    """
    M, z = states.M, states.z
    elu1 = name == "elu1"
    x = q if elu1 else features(name, q, q.shape[1] - M.shape[1], q.shape[1], M.dtype)
    return cast(Tensor, _Recall.apply(local, x, M, z, g, elu1, eps, literal))  # type: ignore[no-untyped-call]


BLOCK = 2**19
"""Numbers per tensor that ``recall`` works on at a time on a CPU: its dozen passes then stay in the core's cache."""


class _Elu1(torch.autograd.Function):
    """sigma(x) = ELU(x) + 1 = exp(min(x, 0)) + max(x, 0), so sigma'(x) = min(sigma(x), 1).

    In this form exp(-20) stays 2e-9; expm1(-20) + 1 in float32 is 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: int, last: int, dtype: torch.dtype) -> Tensor:
        phi = _elu1(x[:, first:last], dtype)
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
    """x: q [B, S, N, H, d] where ``elu1``, else its features [B, S', H, N, F]. Block by block of segments, and again in
    the backward pass, which keeps nothing but the arguments."""

    @staticmethod
    def forward(
        ctx: Any, local: Tensor, x: Tensor, M: Tensor, z: Tensor, g: Tensor, elu1: bool, eps: float, literal: bool
    ) -> Tensor:
        y, unread = torch.empty_like(local), local.shape[1] - M.shape[1]
        if unread:
            first = local[:, :unread]
            y[:, :unread] = first * (1 - _of(g, 0, unread)) if literal else first
        for i, j in _blocks(local, M.shape[1]):
            _, _, found = _read(x, M, z, elu1, eps, i, j)
            read, gate = local[:, unread + i : unread + j], _of(g, unread + i, unread + j)
            if local.dtype == found.dtype == g.dtype:
                torch.lerp(read, found.transpose(2, 3), gate, out=y[:, unread + i : unread + j])
            else:
                mixed = torch.lerp(read.to(found.dtype), found.transpose(2, 3), gate.to(found.dtype))
                y[:, unread + i : unread + j] = mixed
        ctx.save_for_backward(local, x, M, z, g)
        ctx.options = elu1, eps, literal
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        local, x, M, z, g = ctx.saved_tensors
        elu1, eps, literal = ctx.options
        dy, dtype, unread = grads[0], M.dtype, local.shape[1] - M.shape[1]
        d_local, d_x, d_M, d_z = (torch.empty_like(t) for t in (local, x, M, z))
        d_g = torch.zeros_like(g, dtype=dtype)
        if unread:
            first = dy[:, :unread]
            d_local[:, :unread] = first * (1 - _of(g, 0, unread)) if literal else first
            if literal:
                _add_gate(d_g, -(first.to(dtype) * local[:, :unread].to(dtype)), 0, unread)
            if elu1:
                d_x[:, :unread] = 0
        for i, j in _blocks(local, M.shape[1]):
            at = slice(unread + i, unread + j)
            phi, r, found = _read(x, M, z, elu1, eps, i, j)
            gate = _of(g, unread + i, unread + j).to(dtype)
            by_head = gate.transpose(-3, -2) if gate.ndim == 5 else gate.unsqueeze(-2)  # [.., H, N or 1, 1 or E]
            # dA_mem is g dy; along E it meets A_mem itself, once for g and once for the divisor
            d_found = dy[:, at].transpose(2, 3).to(dtype, memory_format=torch.contiguous_format, copy=True)
            met = d_found * found
            if by_head.shape[-1] == 1:
                met = met.sum(-1, keepdim=True)
                divided = met * by_head
            else:
                divided = (met * by_head).sum(-1, keepdim=True)
            _add_gate(d_g, met.transpose(2, 3), unread + i, unread + j)
            _add_gate(d_g, -(dy[:, at].to(dtype) * local[:, at].to(dtype)), unread + i, unread + j)
            torch.mul(dy[:, at], 1 - gate, out=d_local[:, at])

            states = M[:, i:j]
            d_found = _by_memory(d_found.mul_(by_head * r.view_as(divided)), states)
            d_den = _by_memory(divided, states).mul(r).neg_()
            grouped = _by_memory(phi, states)
            d_phi = (d_found @ states.transpose(-1, -2)).addcmul_(d_den, z[:, i:j].unsqueeze(-2)).view_as(phi)
            d_M[:, i:j] = grouped.transpose(-1, -2) @ d_found
            d_z[:, i:j] = (grouped.transpose(-1, -2) @ d_den).squeeze(-1)
            if elu1:
                torch.mul(d_phi, phi.clamp_(max=1), out=d_x[:, at].transpose(2, 3))
            else:
                d_x[:, i:j] = d_phi
        return d_local, d_x, d_M, d_z, d_g.to(g.dtype), None, None, None


def _read(x: Tensor, M: Tensor, z: Tensor, elu1: bool, eps: float, i: int, j: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features [B, s, H, N, F] of the queries that read states i .. j - 1, 1 / (sigma(q) z + eps) by memory
    [B, s, K, G N, 1], and A_mem [B, s, H, N, E]."""
    unread = x.shape[1] - M.shape[1]  # 0 where x are features
    phi = _elu1(x[:, unread + i : unread + j], M.dtype) if elu1 else x[:, i:j]
    states = M[:, i:j]
    grouped = _by_memory(phi, states)
    r = (grouped @ z[:, i:j].unsqueeze(-1)).add_(eps).reciprocal_()
    found = (grouped @ states).mul_(r)
    return phi, r, found.view(*phi.shape[:-1], M.shape[-1])


def _elu1(x: Tensor, dtype: torch.dtype) -> Tensor:
    """sigma of x [B, S, N, H, d], [B, S, H, N, d]."""
    part = x.transpose(2, 3)
    phi = torch.empty(part.shape, dtype=dtype, device=x.device)
    if x.dtype == dtype:
        torch.clamp(part, max=0, out=phi)
    else:
        phi.copy_(part).clamp_(max=0)
    return phi.exp_().add_(part.clamp(min=0))


def _add_gate(d_g: Tensor, products: Tensor, first: int, last: int) -> None:
    """Add products [B, s, N, H, 1 or E] of segments first .. last - 1 to the gradient of the gate they share."""
    if d_g.shape[-1] == 1:
        products = products.sum(-1, keepdim=True)
    if d_g.ndim == 5:
        d_g[:, first:last] += products
    else:
        d_g += products.sum((0, 1, 2))


def _blocks(local: Tensor, segments: int) -> list[tuple[int, int]]:
    """Ranges of segments whose tensors have about ``BLOCK`` numbers; all in one where that is not a CPU's."""
    size = segments if local.is_cuda else max(1, BLOCK // (local[:, :1].numel() or 1))
    return [(i, min(i + size, segments)) for i in range(0, segments, size)]


def _by_memory(x: Tensor, M: Tensor) -> Tensor:
    """[B, S, H, N, n] -> [B, S, K, G N, n]: the heads that share a memory, one after the other; a view."""
    return x.reshape(*M.shape[:3], -1, x.shape[-1])


def _of(g: Tensor, first: int, last: int) -> Tensor:
    """The gate of segments first .. last - 1."""
    return g[:, first:last] if g.ndim == 5 else g
