"""Every segment's memory at once: the segment-parallel form of the two update rules.

z is a prefix sum that does not depend on M, and both rules are affine in M,

    M_s = A_s M_(s-1) + B_s,   B_s = Phi_s^T V_s,   A_s = I (linear)  or  I - Phi_s^T P_s (delta),
    P_s = D_s^-1 Phi_s,   D_s = diag(Phi_s z_(s-1) + eps),

so everything with a token axis is batched over segments. The linear rule is a cumulative sum. The delta rule leaves
a recurrence over F x E matrices, run in order inside one autograd function: its backward is the mirrored recurrence
G_(s-1) = A_s^T G_s + dM_(s-1), and the gradients of A and B are again batched over segments.

Why a recurrence and not an associative scan: the scan multiplies F x F by F x F at every node. ``python -m bench.speed
scan`` measures both, and the same loop left to autograd, which zero-fills a whole gradient for every slice it takes;
docs/performance.md has the numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.autograd import apply
from model.config import Rule
from model.fused import segment_sums, transition
from model.gpu import on_gpu
from model.memory import MemoryState, stored
from model.ranks import Ranks, affine_before, sum_before, tied


def scan(
    initial: MemoryState | None,
    phi_k: Tensor,
    v: Tensor,
    rule: Rule,
    eps: float,
    *,
    cuts: Collection[int] = (),
    store: torch.dtype | None = None,
) -> MemoryState:
    """The memories of a row of whole segments.

    initial: the memory before the first segment, None if nothing was ever written. phi_k [B, S, H, N, F] and
    v [B, S', H, N, E]: the segments' features of keys, and values; of S' > S segments the last are not written.
    cuts: states s (0 = ``initial``, s = after s segments) that no gradient passes (truncated BPTT). store: every
    state is rounded to this dtype before the next segment sees it, None: not rounded; gradients pass as if it were not.

    Returns M [B, S+1, H, F, E] and z [B, S+1, H, F]: before the first segment, and after each. Without ``initial``
    the (empty) first one is left out, so there are S: after each segment.
    """
    writes, totals = segment_sums(phi_k, v)
    if initial is None:  # the first write meets an empty memory: both rules agree, and A_1 never enters
        parts = [1, writes.shape[1] - 1]  # split, not sliced: then the gradient is one copy, without zeros
        (M, writes), (z, totals) = torch.split(writes, parts, dim=1), torch.split(totals, parts, dim=1)
        initial = MemoryState(stored(M.squeeze(1), store), stored(z.squeeze(1), store))
        phi_k, cuts = phi_k[:, 1:], [cut - 1 for cut in cuts if cut > 0]
    if phi_k.shape[1] == 0:
        M, z = initial.M.unsqueeze(1), initial.z.unsqueeze(1)
        return MemoryState(M.detach(), z.detach()) if 0 in cuts else MemoryState(M, z)
    z = _evolve((), totals.unsqueeze(-1), initial.z.unsqueeze(-1), cuts, store).squeeze(-1)
    if rule == "linear":
        return MemoryState(_evolve((), writes, initial.M, cuts, store), z)
    return MemoryState(_evolve(_erasing(phi_k, z, writes, eps), writes, initial.M, cuts, store), z)


def scan_across(
    ranks: Ranks, initial: MemoryState | None, phi_k: Tensor, v: Tensor, rule: Rule, eps: float
) -> tuple[MemoryState, Tensor]:
    """``scan`` where every rank has the segments phi_k [B, S, H, N, F], v [B, S, H, N, E] that follow those of the rank
    before it. ``initial`` stands before the first rank's and is not looked at on others, which start from the memory
    that comes to them: they return S + 1 states.

    Beside the states a tensor that must be ``tied`` to the layer's output.
    """
    if ranks.rank == 0:
        states = scan(initial, phi_k, v, rule, eps)
        M, z = states.M[:, -1], states.z[:, -1].unsqueeze(-1)
        if rule == "linear":
            return states, sum_before(ranks, torch.cat([M, z], dim=-1))
        M = tied(M, sum_before(ranks, z))  # in the order of the other ranks' exchanges
        return states, affine_before(ranks, M.new_zeros(*M.shape[:-1], M.shape[-2]), M)
    writes, totals = segment_sums(phi_k, v)
    totals = totals.unsqueeze(-1)
    if rule == "linear":
        both = torch.cat([writes, totals], dim=-1)
        before = sum_before(ranks, both.sum(1))
        M, z = torch.split(_evolve((), both, before, (), None), [writes.shape[-1], 1], dim=-1)
        return MemoryState(M, z.squeeze(-1)), before
    z = _evolve((), totals, sum_before(ranks, totals.sum(1)), (), None).squeeze(-1)
    M, before = _evolve_across(ranks, _erasing(phi_k, z, writes, eps), writes)
    return MemoryState(M, z), before


def _erasing(phi_k: Tensor, z: Tensor, writes: Tensor, eps: float) -> tuple[Tensor, ...]:
    """The delta rule's A_s as the factors of ``_evolve``, of z [B, S+1, H, F]."""
    if _worth_forming(phi_k, writes):
        return (transition(phi_k, z[:, :-1], eps),)
    return phi_k, phi_k * (phi_k @ z[:, :-1].unsqueeze(-1) + eps).reciprocal()


def recurrence(phi: Tensor, p: Tensor, b: Tensor, m0: Tensor) -> Tensor:
    """M_s = M_(s-1) - Phi_s^T (P_s M_(s-1)) + B_s for s = 1..S: [B, S+1, H, F, E], M_0 included.

    phi, p [B, S, H, N, F]; b [B, S, H, F, E]; m0 [B, H, F, E].
    """
    return _evolve(_factors(phi, p, b), b, m0, (), None)


def recurrence_across(ranks: Ranks, phi: Tensor, p: Tensor, b: Tensor) -> Tensor:
    """``recurrence`` from M = 0 before the first rank's part, of one rank's."""
    return _evolve_across(ranks, _factors(phi, p, b), b)[0]


def _factors(phi: Tensor, p: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    if not _worth_forming(phi, b):
        return phi, p
    return (torch.eye(phi.shape[-1], dtype=phi.dtype, device=phi.device) - phi.transpose(-1, -2) @ p,)


def _worth_forming(phi: Tensor, b: Tensor) -> bool:
    """Whether forming and applying Phi^T P [F, F] is less work than applying its factors, N > F roughly."""
    (tokens, features), values = phi.shape[-2:], b.shape[-1]
    return bool(features * (tokens + values) < 2 * tokens * values)


def _evolve(
    factors: tuple[Tensor, ...], b: Tensor, m0: Tensor, cuts: Collection[int], store: torch.dtype | None
) -> Tensor:
    """M_0 .. M_S [B, S+1, H, F, E] of b [B, S, H, F, E] and m0 [B, H, F, E]. factors: none for A = I, (A,), or
    (Phi, P) for A = I - Phi^T P."""
    if not factors and not cuts and store is None and on_gpu(b):  # on a CPU cumsum takes 4 to 9 times the loop
        return torch.cat([m0.unsqueeze(1), b], dim=1).cumsum(1)
    return _in_steps(factors, b, m0, cuts, store)


def _evolve_across(ranks: Ranks, factors: tuple[Tensor, ...], b: Tensor) -> tuple[Tensor, Tensor]:
    """``_evolve`` from M = 0 before the first rank, and the state before this one.

    One recurrence makes both what this rank's writes leave and what it does to a state that comes to it,
    M_s = L_s + P_s M_0 with P_s = A_s .. A_1: so it need not wait for the ranks before it.
    """
    values, features = b.shape[-1], b.shape[-2]
    eye = torch.eye(features, dtype=b.dtype, device=b.device)
    start = F.pad(eye, (values, 0)).expand(len(b), b.shape[2], -1, -1)
    L, P = torch.split(_evolve(factors, F.pad(b, (0, features)), start, (), None), [values, features], dim=-1)
    before = affine_before(ranks, P[:, -1], L[:, -1])
    return L + P @ before.unsqueeze(1), before


def _in_steps(
    factors: tuple[Tensor, ...], b: Tensor, m0: Tensor, cuts: Collection[int], store: torch.dtype | None
) -> Tensor:
    """``_evolve`` segment by segment."""
    b, first, further = _segments_first(b), m0.flatten(0, 1), [_segments_first(t) for t in factors]
    if torch.compiler.is_compiling():
        states = _recurrence_op(b, first, further, sorted(cuts), store)
    else:
        states = apply(_Recurrence, b, first, sorted(cuts), store, *further)
    return cast(Tensor, states.unflatten(1, m0.shape[:2]).transpose(0, 1))


def _segments_first(x: Tensor) -> Tensor:
    """[B, S, H, ...] -> [S, B*H, ...], contiguous: each step of the recurrence reads one block."""
    return x.transpose(0, 1).contiguous().flatten(1, 2)


def _forwards(
    b: Tensor, m0: Tensor, factors: Sequence[Tensor], cuts: Sequence[int], store: torch.dtype | None
) -> Tensor:
    """M_s = A_s M_(s-1) + B_s for s = 1..S: [S+1, L, F, E], M_0 included.

    b [S, L, F, E]; m0 [L, F, E]; factors as in ``_evolve`` [S, L, ...]. One product a step where A is formed.
    """
    states = m0.new_empty(len(b) + 1, *m0.shape)
    states[0] = m0
    for s, (m, written, out) in enumerate(zip(states[:-1], b, states[1:], strict=True)):
        if not factors:
            torch.add(m, written, out=out)
        elif len(factors) == 1:
            torch.baddbmm(written, factors[0][s], m, out=out)
        else:
            phi, p = factors
            torch.baddbmm(written, phi[s].transpose(1, 2), p[s] @ m, alpha=-1, out=out)
            out.add_(m)
        if store is not None:
            out.copy_(out.to(store))
    return states


def _backwards(grad: Tensor, states: Tensor, factors: Sequence[Tensor], cuts: Sequence[int]) -> list[Tensor]:
    """Gradients [S+1, L, F, E] of M_0 and, behind it, of every B_s; and of the factors."""
    g = grad.clone(memory_format=torch.contiguous_format)
    for s in reversed(range(len(g))):
        if s in cuts:
            g[s] = 0
        elif s == len(g) - 1:
            continue
        elif len(factors) == 1:
            g[s].baddbmm_(factors[0][s].transpose(1, 2), g[s + 1])
        else:
            g[s] += g[s + 1]
            if factors:  # (Phi^T P)^T = P^T Phi: the same product with the factors exchanged
                phi, p = factors
                g[s].baddbmm_(p[s].transpose(1, 2), phi[s] @ g[s + 1], alpha=-1)
    before, after = states[:-1], g[1:]
    if len(factors) == 1:
        return [g, after @ before.transpose(-1, -2)]
    if factors:
        phi, p = factors
        return [g, -(p @ before) @ after.transpose(-1, -2), -(phi @ after) @ before.transpose(-1, -2)]
    return [g]


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, b: Tensor, m0: Tensor, cuts: Sequence[int], store: torch.dtype | None, *factors: Tensor
    ) -> Tensor:
        states = _forwards(b, m0, factors, cuts, store)
        ctx.save_for_backward(states, *factors)
        ctx.cuts = cuts
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, *factors = ctx.saved_tensors
        g, *d_factors = _backwards(grads[0], states, factors, ctx.cuts)
        return g[1:], g[0], None, None, *d_factors


# The same as operators that a compiler takes as they are: traced, the loop would be a graph of its own for every number
# of segments.
_recurrence_op = torch.library.custom_op(
    "infini_study::recurrence",
    _forwards,
    mutates_args=(),
    schema="(Tensor b, Tensor m0, Tensor[] factors, int[] cuts, ScalarType? store) -> Tensor",
)
_recurrence_backward_op = torch.library.custom_op(
    "infini_study::recurrence_backward",
    _backwards,
    mutates_args=(),
    schema="(Tensor grad, Tensor states, Tensor[] factors, int[] cuts) -> Tensor[]",
)


@_recurrence_op.register_fake
def _states_like(
    b: Tensor, m0: Tensor, factors: Sequence[Tensor], cuts: Sequence[int], store: torch.dtype | None
) -> Tensor:
    return m0.new_empty(b.shape[0] + 1, *m0.shape)


@_recurrence_backward_op.register_fake
def _gradients_like(grad: Tensor, states: Tensor, factors: Sequence[Tensor], cuts: Sequence[int]) -> list[Tensor]:
    return [torch.empty_like(part, memory_format=torch.contiguous_format) for part in (grad, *factors)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, factors, ctx.cuts, _ = inputs
    ctx.save_for_backward(output, *factors)


def _of_op(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    states, *factors = ctx.saved_tensors
    g, *d_factors = _recurrence_backward_op(grad, states, factors, ctx.cuts)
    return g[1:], g[0], d_factors, None if ctx.cuts else [], None  # torch takes an empty list for one of tensors


_recurrence_op.register_autograd(_of_op, setup_context=_keep)
