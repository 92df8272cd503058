"""Every segment's memory at once: the segment-parallel form of the two update rules.

z is a prefix sum that does not depend on M, and both rules are affine in M,

    M_s = A_s M_(s-1) + B_s,   B_s = Phi_s^T V_s,   A_s = I (linear)  or  I - Phi_s^T P_s (delta),
    P_s = D_s^-1 Phi_s,   D_s = diag(Phi_s z_(s-1) + eps),

so everything with a token axis is batched over segments. The linear rule is a cumulative sum. The delta rule leaves
a recurrence over F x E matrices, run in order inside one autograd function: its backward is the mirrored recurrence
G_(s-1) = A_s^T G_s + dM_(s-1), and the gradients of Phi, P and B are again batched over segments.

Why a recurrence and not an associative scan: the scan multiplies F x F by F x F at every node. Measured forward +
backward on one CPU core, in ms (this recurrence / work-efficient associative scan / the same loop left to autograd):
S=16, N=64, 32 memories of 32 x 32: 16 / 43 / 55; S=64, N=128, 8 of 64 x 64: 139 / 247 / 949; S=512, N=64, 4 of
32 x 32: 114 / 174 / 6,450 (autograd zero-fills a whole gradient for every slice it takes).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.config import Rule
from model.memory import MemoryState


def scan(initial: MemoryState | None, phi_k: Tensor, v: Tensor, rule: Rule, eps: float) -> MemoryState:
    """The memories of a row of whole segments.

    initial: the memory before the first segment, None if nothing was ever written. phi_k [B, S, H, N, F] and
    v [B, S, H, N, E]: the segments' features of keys, and values.

    Returns M [B, S+1, H, F, E] and z [B, S+1, H, F]: before the first segment, and after each. Without ``initial``
    the (empty) first one is left out, so there are S: after each segment.
    """
    v = v.to(phi_k.dtype)
    writes = phi_k.transpose(-1, -2) @ v
    z = torch.cumsum(phi_k.sum(-2), dim=1)
    if initial is not None:
        z = torch.cat([initial.z.unsqueeze(1), initial.z.unsqueeze(1) + z], dim=1)

    if rule == "linear":
        M = torch.cumsum(writes, dim=1)
        if initial is not None:
            M = torch.cat([initial.M.unsqueeze(1), initial.M.unsqueeze(1) + M], dim=1)
        return MemoryState(M, z)

    if initial is None:  # the first write meets an empty memory: both rules agree, and A_1 never enters
        first, phi_k, writes = writes[:, 0], phi_k[:, 1:], writes[:, 1:]
    else:
        first = initial.M
    if phi_k.shape[1] == 0:
        return MemoryState(first.unsqueeze(1), z)
    scaled = phi_k * (phi_k @ z[:, :-1].unsqueeze(-1) + eps).reciprocal()
    return MemoryState(recurrence(phi_k, scaled, writes, first), z)


def recurrence(phi: Tensor, p: Tensor, b: Tensor, m0: Tensor) -> Tensor:
    """M_s = M_(s-1) - Phi_s^T (P_s M_(s-1)) + B_s for s = 1..S: [B, S+1, H, F, E], M_0 included.

    phi, p [B, S, H, N, F]; b [B, S, H, F, E]; m0 [B, H, F, E].
    """
    M = _DeltaRecurrence.apply(  # type: ignore[no-untyped-call]
        *(_segments_first(t) for t in (phi, p, b)), m0.flatten(0, 1)
    )
    return M.unflatten(1, m0.shape[:2]).transpose(0, 1)  # type: ignore[no-any-return]


def _segments_first(x: Tensor) -> Tensor:
    """[B, S, H, ...] -> [S, B*H, ...], contiguous: each step of the recurrence reads one block."""
    return x.transpose(0, 1).contiguous().flatten(1, 2)


class _DeltaRecurrence(torch.autograd.Function):
    """M_s = M_(s-1) - Phi_s^T (P_s M_(s-1)) + B_s for s = 1..S: [S+1, L, F, E], M_0 included.

    phi, p [S, L, N, F]; b [S, L, F, E]; m0 [L, F, E]. The erase operator Phi^T P is formed (batched over all
    segments) when that makes the step cheaper, N > F roughly, and applied as two thin products otherwise.
    """

    @staticmethod
    def forward(ctx: Any, phi: Tensor, p: Tensor, b: Tensor, m0: Tensor) -> Tensor:
        erase = _erase(phi, p, m0.shape[-1])
        states = m0.new_empty(len(b) + 1, *m0.shape)
        states[0] = m0
        for s in range(len(b)):
            m, out = states[s], states[s + 1]
            torch.sub(b[s], _apply(erase, phi, p, s, m), out=out)
            out += m
        ctx.save_for_backward(phi, p, states, erase)
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        phi, p, states, erase = ctx.saved_tensors
        g = grads[0].clone(memory_format=torch.contiguous_format)
        for s in reversed(range(len(phi))):
            g[s] += g[s + 1]
            # (Phi^T P)^T = P^T Phi: the same product with the factors exchanged
            g[s] -= _apply(None if erase is None else erase.transpose(-1, -2), p, phi, s, g[s + 1])
        before, after = states[:-1], g[1:]
        d_phi = -(p @ before) @ after.transpose(-1, -2)
        d_p = -(phi @ after) @ before.transpose(-1, -2)
        return d_phi, d_p, after, g[0]


def _erase(phi: Tensor, p: Tensor, values: int) -> Tensor | None:
    """Phi^T P [S, L, F, F], or None where applying the factors is less work than forming and applying it."""
    tokens, features = phi.shape[-2:]
    formed = features * (tokens + values)
    return phi.transpose(-1, -2) @ p if formed < 2 * tokens * values else None


def _apply(erase: Tensor | None, left: Tensor, right: Tensor, s: int, m: Tensor) -> Tensor:
    return left[s].transpose(-1, -2) @ (right[s] @ m) if erase is None else erase[s] @ m
