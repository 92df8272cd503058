"""DeltaNet: fast weights under the delta rule (Schlag et al., 2021, arXiv:2102.11174), in the chunked form of Yang et
al. (2024, arXiv:2406.06484).

    S_t = S_(t-1) + beta_t k_t^T (v_t - k_t S_(t-1)),   out_t = q_t S_t,   beta_t = sigmoid(w x_t), one per KV head

Within a chunk of C tokens the writes u_t = beta_t (v_t - k_t S_(t-1)) depend on one another through the keys alone:
with K, V, beta the chunk's rows and S the state before it,

    (I + L) U = beta (V - K S),   L = beta tril(K K^T, -1)      so     U = U' - W S,   [W, U'] = (I + L)^-1 beta [K, V]

and S' = S - K^T W S + K^T U'. Everything with a token axis is batched over chunks (W and U' do not depend on S), the
states follow by the recurrence that infini's delta rule has (``scan.recurrence``), and the outputs are again batched:
Q S + tril(Q K^T) U. No loop runs over tokens, and the result does not depend on C.

Keys and queries are feature-mapped, sigma(k), then divided by their Euclidean norm. Without that, training is unstable:
a step multiplies S by I - beta k^T k, which amplifies where beta |k|^2 > 2. Schlag et al. divide by the sum of the
features, Yang et al. by the Euclidean norm. Here it is the norm: the eigenvalue of a write is then 1 - beta itself,
never above 1, and beta = 1 replaces what was bound to a key exactly; divided by the sum, |k|^2 can be as small as 1/F
(it is close to that for ELU + 1 of small keys), and no beta in (0, 1) can replace anything. There is no normaliser z.

What is easy to get wrong, and held by tests: a token reads its own write; beta is data-dependent and belongs to the
key/value head, as the state does; W and U' need the triangular solve, not its first-order term; products of powers of
L overflow where keys resemble each other, substitution does not; all of it stays in float32 under autocast.

Adapted to the Llama trunk: no rotation (see ``linear``), no short convolution and no norm of the output (Yang et al.
add both), so that q, k, v and o projections are the trunk's and nothing else is new but w.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.autograd import apply
from model.config import MixerConfig, TrunkConfig
from model.mixers.base import Knockout, LayerState, Mixer, compact
from model.mixers.chunks import by_token, causal, chunk_length, key_features, product_added, query_features, rows
from model.rope import Rope
from model.scan import recurrence, recurrence_across


@dataclass(frozen=True)
class FastWeights:
    """S [B, K, F, d], what a head's keys are bound to."""

    S: Tensor

    def detach(self) -> FastWeights:
        return FastWeights(self.S.detach())

    @property
    def elements(self) -> int:
        return self.S.numel()

    @property
    def bytes(self) -> int:
        return self.S.numel() * self.S.element_size()


class DeltaNetMixer(Mixer):
    monitored = True
    holds = FastWeights

    def __init__(self, trunk: TrunkConfig, config: MixerConfig, layer: int = 0) -> None:
        super().__init__(trunk, config, layer)
        self.write_strength = nn.Linear(trunk.dim, self.kv_heads, bias=False)
        """w: beta_t = sigmoid(w x_t)."""

    def mix(
        self, x: Tensor, state: LayerState, *, position: int, rope: Rope, knockout: Knockout, keep_state: bool
    ) -> tuple[Tensor, LayerState]:
        q, k, v = self.project(x)
        y, states = self.recall(q, k, v, self.write_strength(x), cast(FastWeights | None, state.memory))
        return y.to(v.dtype), LayerState(memory=FastWeights(compact(states[:, -1])))

    def recall(
        self, q: Tensor, k: Tensor, v: Tensor, strength: Tensor, memory: FastWeights | None
    ) -> tuple[Tensor, Tensor]:
        """out [B, T, H, d] of q [B, T, H, d], k, v [B, T, K, d] and ``strength`` [B, T, K], beta's logit, after
        ``memory``, in float32 at least; and the states [B, S+1, K, F, d] before the first chunk and after each."""
        tokens, size, name = q.shape[1], chunk_length(q.shape[1]), self.config.feature_map
        dtype = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            q = unit(query_features(name, q, size, self.kv_heads, dtype))
            k, v = unit(key_features(name, k, size, dtype)), rows(v, size, dtype)
            beta = rows(torch.sigmoid(strength.to(dtype)).unsqueeze(-1), size, dtype)
            written = beta * k
            within = causal(written @ k.transpose(-1, -2), diagonal=-1)
            w, u = substitute(within, written, beta * v)
            added = k.transpose(-1, -2) @ u
            if self.ranks is None:
                before = torch.zeros_like(added[:, 0]) if memory is None else memory.S
                states = recurrence(k, w, added, before)
            else:
                states = recurrence_across(self.ranks, k, w, added)
            u = product_added(u, w, states[:, :-1], -1)
            y = product_added(q @ states[:, :-1], causal(q @ k.transpose(-1, -2)), u)
            return by_token(y, tokens, size), states

    def health(self, x: Tensor) -> dict[str, float]:
        """memory_norm (see ``Decoder.monitor``) of one layer on its normed inputs x [B, T, C], after each chunk."""
        _, states = self.recall(*self.project(x), self.write_strength(x), None)
        return {"memory_norm": states.norm(dim=(-2, -1)).max().item()}


def unit(x: Tensor) -> Tensor:
    """x [..., F] divided by its Euclidean norm; 0 stays 0."""
    return cast(Tensor, apply(_Unit, x))


class _Unit(torch.autograd.Function):
    """dx = (dy - y (y . dy)) / |x|, in half the passes over x that autograd takes for x / |x|."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=torch.finfo(x.dtype).tiny).reciprocal_()
        y: Tensor = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        y, inverse = ctx.saved_tensors
        along = torch.linalg.vecdot(y, grads[0]).unsqueeze(-1)
        return torch.addcmul(grads[0], y, along, value=-1).mul_(inverse)


def substitute(within: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(I + within)^-1 R for R = a and b [..., C, D]; within [..., C, C] is strictly lower triangular."""
    return cast(tuple[Tensor, Tensor], apply(_Substitution, within, a, b))


class _Substitution(torch.autograd.Function):
    """The inverse is kept: the backward of torch's own solve substitutes again, at several times the cost of a product.

    ``within`` must be masked by what made it (``causal``): only its strictly lower part is read, and its gradient is
    not masked again. Two right sides by name: without gradients torch.compile (2.13) takes ``*right`` one place too
    early.
    """

    @staticmethod
    def forward(ctx: Any, within: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        eye = torch.eye(within.shape[-1], dtype=within.dtype, device=within.device).expand_as(within)
        inverse = torch.linalg.solve_triangular(within, eye, upper=False, unitriangular=True)
        solved = (inverse @ a, inverse @ b)
        ctx.save_for_backward(inverse, *solved)
        return solved

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        inverse, *solved = ctx.saved_tensors
        d_right = [inverse.transpose(-1, -2) @ g for g in grads]
        d_within = -torch.cat(d_right, dim=-1) @ torch.cat(solved, dim=-1).transpose(-1, -2)
        return d_within, *d_right
