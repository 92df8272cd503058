"""The passes over all tokens that Infini-attention adds to local attention, with their gradients written by hand.

    features           sigma(x) of some segments, laid out head by head
    rotated_features   the same beside x rotated by position, in one visit of x
    segment_sums       Phi^T V and the sum of Phi, per segment
    transition         A = I - Phi^T D^-1 Phi, D = diag(Phi z + eps), per segment (delta rule)
    recall             A = g A_mem + (1 - g) A_dot, A_mem = Phi_q M / (Phi_q z + eps)

On a CPU every pass over [B, T, C] is memory traffic, and autograd adds many: copies into the layout of each product,
zero-filled gradients for every slice, intermediate results kept, gradients of one tensor from two sides added up. Here
segments are worked on in blocks that stay in the core's cache, and gradients that meet are made in one place. The plain
forms are in ``plain.py``; the tests hold these equal to them, gradients too, and ``torch.compile`` is given those.

Shapes: B batch, S segments of N tokens, H query heads, K key/value heads, G = H / K, d head size, F feature size, E
value size. Tensors of tokens arrive as the projections deliver them, [B, S, N, heads, d]; products need [.., N, F] per
head: every function here changes the layout in a pass that is needed anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.autograd import apply, traced_as
from model.config import FeatureMap
from model.gpu import on_gpu
from model.memory import MemoryState
from model.plain import (
    plain_features,
    plain_recall,
    plain_recall_in_place,
    plain_rotated_features,
    plain_segment_sums,
    plain_transition,
)
from model.rope import rotate, turn

BLOCK = 2**19
"""Numbers per tensor worked on at a time on a CPU: what a dozen passes touch then stays in the core's cache."""


@traced_as(plain_features)
def features(name: FeatureMap, x: Tensor, first: int, last: int, dtype: torch.dtype) -> Tensor:
    """sigma of the segments first .. last - 1 of x [B, S, N, H, d]: [B, last - first, H, N, F] in ``dtype``."""
    if name != "elu1":
        return plain_features(name, x, first, last, dtype)
    return cast(Tensor, apply(_Elu1, x, first, last, dtype))


@traced_as(plain_rotated_features)
def rotated_features(
    name: FeatureMap, x: Tensor, cos: Tensor, sin: Tensor, first: int, last: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """``rotate(x, cos, sin)`` of x [B, S, N, H, d] and cos, sin [N, d/2], and ``features`` of x."""
    if name != "elu1":
        return rotate(x, cos, sin), plain_features(name, x, first, last, dtype)
    both = apply(_Rotated, x, cos.unsqueeze(-2), sin.unsqueeze(-2), first, last, dtype)
    return cast(tuple[Tensor, Tensor], both)


@traced_as(plain_segment_sums)
def segment_sums(phi_k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Phi^T V [B, S, K, F, E] and the sum of Phi over tokens [B, S, K, F], of phi_k [B, S, K, N, F] and
    v [B, S', K, N, E]; segments of v from S on are not written."""
    return cast(tuple[Tensor, Tensor], apply(_SegmentSums, phi_k, v))


@traced_as(plain_transition)
def transition(phi_k: Tensor, z: Tensor, eps: float) -> Tensor:
    """I - Phi^T D^-1 Phi [B, S, K, F, F] of phi_k [B, S, K, N, F], D = diag(Phi z + eps), z [B, S, K, F]."""
    return cast(Tensor, apply(_Transition, phi_k, z, eps))


@traced_as(plain_recall)
def recall(local: Tensor, phi_q: Tensor, states: MemoryState, g: Tensor, eps: float, *, literal: bool) -> Tensor:
    """g A_mem + (1 - g) local, in the dtype of ``local`` [B, S, N, H, E].

    phi_q [B, S', H, N, F] and ``states`` (M [B, S', K, F, E]), of one dtype: of the last S' <= S segments; the S - S'
    before them have nothing to read and stay as they are, or with ``literal`` are scaled by 1 - g. g: [H, 1] (per
    head), [H, E] (per channel) or [B, S, N, H, 1] (per token).
    """
    return cast(Tensor, apply(_Recall, local, phi_q, states.M, states.z, g, eps, literal))


@traced_as(plain_recall_in_place)
def recall_in_place(
    local: Tensor, q: Tensor, states: MemoryState, g: Tensor, name: FeatureMap, eps: float, *, literal: bool
) -> Tensor:
    """``recall`` written into ``local``, without gradients; the features of q [B, S, N, H, d] are made block by block
    and never held at once."""
    segments = states.M.shape[1]
    unread = q.shape[1] - segments

    def phi_of(i: int, j: int) -> Tensor:
        return features(name, q, unread + i, unread + j, states.M.dtype)

    blocks = _ranges(segments, q[:, :1].numel(), whole=on_gpu(q))
    return _mixed(local, phi_of, blocks, states, g, eps, local, literal=literal)


class _Elu1(torch.autograd.Function):
    """sigma(x) = ELU(x) + 1 = exp(min(x, 0)) + max(x, 0), so sigma'(x) = min(sigma(x), 1).

    In this form exp(-20) stays 2e-9; expm1(-20) + 1 in float32 is 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: int, last: int, dtype: torch.dtype) -> Tensor:
        phi = _heads_first(x, first, last, dtype)
        for i, j in _blocks(phi):
            _elu1(x[:, first + i : first + j], phi[:, i:j])
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
        for i, j in _blocks(phi):
            slope = phi[:, i:j].clamp(max=1)
            torch.mul(grads[0][:, i:j], slope, out=dx[:, first + i : first + j].transpose(2, 3))
        return dx, None, None, None


class _Rotated(torch.autograd.Function):
    """x rotated, and sigma(x) as in ``_Elu1``. Both gradients of x are made in one place, without a sum of two."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, first: int, last: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        y, phi = torch.empty_like(x), _heads_first(x, first, last, dtype)
        for i, j in _blocks(x):
            turn(x[:, i:j], cos, sin, y[:, i:j])
            if i < last and first < j:
                a, b = max(i, first), min(j, last)
                _elu1(x[:, a:b], phi[:, a - first : b - first])
        ctx.save_for_backward(phi, cos, sin)
        ctx.range = first, last
        return y, phi

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        phi, cos, sin = ctx.saved_tensors
        first, last = ctx.range
        dy, d_phi = grads
        dx, back = torch.empty_like(dy), -sin
        for i, j in _blocks(dy):
            turn(dy[:, i:j], cos, back, dx[:, i:j])
            if i < last and first < j:
                a, b = max(i, first), min(j, last)
                at = slice(a - first, b - first)
                dx[:, a:b].transpose(2, 3).addcmul_(*_of_dtype(dx.dtype, d_phi[:, at], phi[:, at].clamp(max=1)))
        return dx, None, None, None, None, None


class _SegmentSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, phi: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        sums = phi.new_empty(*phi.shape[:3], phi.shape[-1], v.shape[-1])
        totals = phi.new_empty(*phi.shape[:3], phi.shape[-1])
        for i, j in _blocks(phi):
            torch.matmul(phi[:, i:j].transpose(-1, -2), v[:, i:j].to(phi.dtype), out=sums[:, i:j])
            torch.sum(phi[:, i:j], -2, out=totals[:, i:j])
        ctx.save_for_backward(phi, v)
        return sums, totals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        phi, v = ctx.saved_tensors
        d_sums, d_totals = grads
        d_phi, d_v = torch.empty(phi.shape, dtype=phi.dtype, device=phi.device), torch.empty_like(v)
        d_v[:, phi.shape[1] :] = 0
        for i, j in _blocks(phi):
            at = slice(i, j)
            torch.matmul(v[:, at].to(phi.dtype), d_sums[:, at].transpose(-1, -2), out=d_phi[:, at])
            d_phi[:, at] += d_totals[:, at].unsqueeze(-2)
            d_v[:, at] = phi[:, at] @ d_sums[:, at]
        return d_phi, d_v


class _Transition(torch.autograd.Function):
    """Phi^T R Phi with R = D^-1 is symmetric in Phi: its gradient needs one product with Phi, not two."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, z: Tensor, eps: float) -> Tensor:
        r = (phi @ z.unsqueeze(-1)).add_(eps).reciprocal_()
        a = phi.new_empty(*phi.shape[:3], phi.shape[-1], phi.shape[-1])
        for i, j in _blocks(phi):
            torch.matmul(phi[:, i:j].transpose(-1, -2), phi[:, i:j] * r[:, i:j], out=a[:, i:j])
        a.neg_().diagonal(dim1=-2, dim2=-1).add_(1)
        ctx.save_for_backward(phi, z, r)
        return a

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        phi, z, r = ctx.saved_tensors
        d_erase = -(grads[0] + grads[0].transpose(-1, -2))
        d_phi, d_den = torch.empty_like(phi), torch.empty_like(r)
        for i, j in _blocks(phi):
            at = slice(i, j)
            torch.matmul(phi[:, at], d_erase[:, at], out=d_phi[:, at])
            torch.sum(d_phi[:, at] * phi[:, at], -1, keepdim=True, out=d_den[:, at])
            d_den[:, at].mul_(r[:, at]).mul_(r[:, at]).mul_(-0.5)
            d_phi[:, at].mul_(r[:, at]).addcmul_(d_den[:, at], z[:, at].unsqueeze(-2))
        d_z = (phi.transpose(-1, -2) @ d_den).squeeze(-1)
        return d_phi, d_z, None


class _Recall(torch.autograd.Function):
    """The backward pass reads again, so nothing is kept but the arguments."""

    @staticmethod
    def forward(
        ctx: Any, local: Tensor, phi: Tensor, M: Tensor, z: Tensor, g: Tensor, eps: float, literal: bool
    ) -> Tensor:
        y = torch.empty_like(local)
        _mixed(local, lambda i, j: phi[:, i:j], _blocks(phi), MemoryState(M, z), g, eps, y, literal=literal)
        ctx.save_for_backward(local, phi, M, z, g)
        ctx.options = eps, literal
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        local, phi, M, z, g = ctx.saved_tensors
        eps, literal = ctx.options
        dy, dtype, unread, rest = grads[0], phi.dtype, local.shape[1] - phi.shape[1], 1 - g
        d_local = torch.empty_like(local)
        # in the order of their axes, whatever that of phi, M and z
        d_phi, d_M, d_z = (torch.empty(t.shape, dtype=dtype, device=t.device) for t in (phi, M, z))
        d_g = torch.zeros_like(g, dtype=dtype)
        if unread:
            first = dy[:, :unread]
            d_local[:, :unread] = first * _of(rest, 0, unread) if literal else first
            if literal:
                _add_gate(d_g, first.to(dtype) * local[:, :unread].to(dtype), 0, unread, sign=-1)
        for i, j in _blocks(phi):
            at, whose = slice(unread + i, unread + j), (unread + i, unread + j)
            dy_at = dy[:, at].to(dtype)
            states = M[:, i:j]
            read, r = _read(phi[:, i:j], states, z[:, i:j], eps)
            gate = _of(g, *whose).to(dtype)
            by_head = gate.transpose(-3, -2) if gate.ndim == 5 else gate.unsqueeze(-2)  # [.., H, N or 1, 1 or E]
            # the gradient of g A_mem meets A_mem itself, once for g and once for the divisor
            met = read.mul_(dy_at.transpose(2, 3))
            if gate.shape[-1] == 1:
                met = met.sum(-1, keepdim=True).mul_(r)
                divided = met * by_head
            else:
                met.mul_(r)
                divided = (met * by_head).sum(-1, keepdim=True)
            _add_gate(d_g, met.transpose(2, 3), *whose)
            _add_gate(d_g, dy_at * local[:, at], *whose, sign=-1)
            torch.mul(dy_at, _of(rest, *whose), out=d_local[:, at])

            d_read = _by_memory(torch.mul(dy_at.transpose(2, 3), by_head * r), states)
            d_den, grouped = _by_memory(divided.mul_(r).neg_(), states), _by_memory(phi[:, i:j], states)
            d_grouped = _by_memory(d_phi[:, i:j], states)
            torch.matmul(d_read, states.transpose(-1, -2), out=d_grouped)
            d_grouped.addcmul_(d_den, z[:, i:j].unsqueeze(-2))
            torch.matmul(grouped.transpose(-1, -2), d_read, out=d_M[:, i:j])
            d_z[:, i:j] = (grouped.transpose(-1, -2) @ d_den).squeeze(-1)
        return d_local, d_phi, d_M, d_z, d_g.to(g.dtype), None, None


def _mixed(
    local: Tensor,
    phi_of: Callable[[int, int], Tensor],
    blocks: list[tuple[int, int]],
    states: MemoryState,
    g: Tensor,
    eps: float,
    y: Tensor,
    *,
    literal: bool,
) -> Tensor:
    """``recall`` into y, which may be ``local``; phi_of(i, j): the features of the queries of states i .. j - 1."""
    M, z = states.M, states.z
    unread, rest, dtype = local.shape[1] - M.shape[1], 1 - g, M.dtype
    if unread:
        first = local[:, :unread]
        if literal:
            y[:, :unread] = first * _of(rest, 0, unread)
        elif y is not local:
            y[:, :unread] = first
    for i, j in blocks:
        at = slice(unread + i, unread + j)
        read, r = _read(phi_of(i, j), M[:, i:j], z[:, i:j], eps)
        gate, out, scale = _of(g, unread + i, unread + j).to(dtype), y[:, at], r.transpose(2, 3)
        if gate.shape[-1] == 1:
            scale = scale * gate
        else:
            read = read * gate.unsqueeze(-2)
        exact = out if out.dtype == dtype else torch.empty_like(out, dtype=dtype)
        torch.mul(local[:, at], _of(rest, unread + i, unread + j), out=exact)
        exact.addcmul_(read.transpose(2, 3), scale)
        if exact is not out:
            out.copy_(exact)
    return y


def _read(phi: Tensor, M: Tensor, z: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Phi M [B, s, H, N, E] and 1 / (Phi z + eps) [B, s, H, N, 1] of phi [B, s, H, N, F], M [B, s, K, F, E] and
    z [B, s, K, F]."""
    grouped = _by_memory(phi, M)
    r = (grouped @ z.unsqueeze(-1)).add_(eps).reciprocal_()
    return (grouped @ M).view(*phi.shape[:-1], M.shape[-1]), r.view(*phi.shape[:-1], 1)


def _heads_first(x: Tensor, first: int, last: int, dtype: torch.dtype) -> Tensor:
    """Empty, for segments first .. last - 1 of x [B, S, N, H, d]: [B, last - first, H, N, d]."""
    batch, _, n, heads, d = x.shape
    return torch.empty(batch, last - first, heads, n, d, dtype=dtype, device=x.device)


def _elu1(x: Tensor, phi: Tensor) -> None:
    """sigma of x [B, s, N, H, d] into phi [B, s, H, N, d]."""
    part = x.transpose(2, 3)
    if x.dtype == phi.dtype:
        torch.clamp(part, max=0, out=phi)
    else:
        phi.copy_(part).clamp_(max=0)
    phi.exp_().add_(part.clamp(min=0))


def _of_dtype(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.to(dtype) for t in tensors)


def _add_gate(d_g: Tensor, products: Tensor, first: int, last: int, sign: int = 1) -> None:
    """Add products [B, s, N, H, 1 or E] of segments first .. last - 1 to the gradient of the gate they share."""
    if d_g.ndim == 5:
        d_g[:, first:last].add_(products.sum(-1, keepdim=True), alpha=sign)
        return
    total = products.sum((0, 1, 2))
    d_g.add_(total.sum(-1, keepdim=True) if d_g.shape[-1] == 1 else total, alpha=sign)


def _blocks(x: Tensor) -> list[tuple[int, int]]:
    """Ranges of the segments of x [B, S, ...] that have about ``BLOCK`` numbers; all in one where that does not pay."""
    return _ranges(x.shape[1], x[:, :1].numel(), whole=on_gpu(x))


def _ranges(segments: int, numbers: int, *, whole: bool) -> list[tuple[int, int]]:
    """0 .. ``segments`` in ranges, for segments of ``numbers`` numbers."""
    size = max(segments, 1) if whole else max(1, BLOCK // (numbers or 1))
    return [(i, min(i + size, segments)) for i in range(0, segments, size)]


def _by_memory(x: Tensor, memory: Tensor) -> Tensor:
    """[B, s, H, N, n] -> [B, s, K, G N, n] for memory [B, S, K, ...]: the heads that share one, one after another; a
    view."""
    return x.reshape(*x.shape[:2], memory.shape[2], -1, x.shape[-1])


def _of(g: Tensor, first: int, last: int) -> Tensor:
    """The gate of segments first .. last - 1."""
    return g[:, first:last] if g.ndim == 5 else g
