"""Linear attention (Katharopoulos et al., 2020, arXiv:2006.16236): a read of everything up to the token itself.

    out_t = sigma(q_t) S_t / (sigma(q_t) z_t + eps),   S_t = S_(t-1) + sigma(k_t)^T v_t,   z_t = z_(t-1) + sigma(k_t)

Computed in chunks of C tokens, all at once: the pairs within a chunk are scored and masked, what came before the chunk
is read from its state, a running sum over chunks. The result does not depend on C.

What is easy to get wrong, and held by tests: a token reads its own write; numerator and normaliser see the same
tokens; states and division stay in float32 under autocast; with grouped queries the state belongs to the key/value
head, as in infini.

Adapted to the Llama trunk: no rotation. The paper adds absolute positions to the embeddings, which a Llama checkpoint
does not have. RoPE here would make scores sigma(q) R sigma(k) of either sign: the normaliser could cross zero, and the
output would leave the convex hull of the values. (RoFormer, arXiv:2104.09864, sec. 3.3, rotates the numerator alone,
which gives that up.) Infini's memory sees its keys unrotated too: this arm is infini-linear with the gate open,
segments of one token, and the token's own write read. Order reaches it only through the causal recurrence.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from model.memory import MemoryState, empty
from model.mixers.base import Knockout, LayerState, Mixer, compact
from model.mixers.chunks import by_token, causal, chunk_length, key_features, product_added, query_features, rows
from model.ranks import sum_before
from model.rope import Rope


class LinearMixer(Mixer):
    monitored = True
    holds = MemoryState

    def mix(
        self, x: Tensor, state: LayerState, *, position: int, rope: Rope, knockout: Knockout, keep_state: bool
    ) -> tuple[Tensor, LayerState]:
        q, k, v = self.project(x)
        y, _, states = self.recall(q, k, v, cast(MemoryState | None, state.memory))
        return y.to(v.dtype), LayerState(memory=MemoryState(compact(states.M[:, -1]), compact(states.z[:, -1])))

    def recall(self, q: Tensor, k: Tensor, v: Tensor, memory: MemoryState | None) -> tuple[Tensor, Tensor, MemoryState]:
        """out [B, T, H, d] of q [B, T, H, d] and k, v [B, T, K, d] after ``memory``, in float32 at least; the
        normalisers sigma(q_t) z_t [B, T, H, 1]; and the states [B, S+1, K, F, d], [B, S+1, K, F] before the first
        chunk and after each."""
        tokens, size, name = q.shape[1], chunk_length(q.shape[1]), self.config.feature_map
        dtype = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            phi_q = query_features(name, q, size, self.kv_heads, dtype)
            phi_k, v = key_features(name, k, size, dtype), rows(v, size, dtype)
            if memory is None:
                memory = empty(len(q), self.kv_heads, phi_k.shape[-1], v.shape[-1], device=v.device, dtype=dtype)
            writes, totals = phi_k.transpose(-1, -2) @ v, phi_k.sum(-2)
            if self.ranks is not None:
                before = sum_before(self.ranks, torch.cat([writes, totals.unsqueeze(-1)], dim=-1).sum(1))
                memory = MemoryState(before[..., :-1], before[..., -1])
            states = MemoryState(
                torch.cat([memory.M.unsqueeze(1), writes], dim=1).cumsum(1),
                torch.cat([memory.z.unsqueeze(1), totals], dim=1).cumsum(1),
            )
            scores = causal(phi_q @ phi_k.transpose(-1, -2))
            seen = product_added(phi_q @ states.M[:, :-1], scores, v)
            total = phi_q @ states.z[:, :-1].unsqueeze(-1) + scores.sum(-1, keepdim=True)
            y = seen * (total + self.config.eps).reciprocal()
            return by_token(y, tokens, size), by_token(total, tokens, size), states

    def health(self, x: Tensor) -> dict[str, float]:
        """memory_norm and z_min (see ``Decoder.monitor``) of one layer on its normed inputs x [B, T, C]: every token
        reads, and the states are looked at after each chunk."""
        _, total, states = self.recall(*self.project(x), None)
        return {"memory_norm": states.M.norm(dim=(-2, -1)).max().item(), "z_min": total.min().item()}
