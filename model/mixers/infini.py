"""Infini-attention (arXiv:2404.07143): local attention mixed by a learned gate with reads of a compressive memory.

    A = g A_mem + (1 - g) A_dot,   g = sigmoid(beta), one beta per query head.

What is easy to get wrong, and held by tests: the memory sees Q and K without RoPE; read comes before write; gradients
flow through the memory across segments; with grouped queries the memory belongs to the key/value head and query head
h reads memory h // (H / K); memory, gate and division stay in float32 under autocast.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import MixerConfig, TrunkConfig
from model.memory import MemoryState, feature_map, read
from model.mixers.base import KeyValue, Knockout, split_axis
from model.mixers.local import LocalMixer
from model.scan import scan


class InfiniMixer(LocalMixer):
    can_knock_out = True
    monitored = True

    def __init__(self, trunk: TrunkConfig, config: MixerConfig, layer: int = 0) -> None:
        super().__init__(trunk, config, layer)
        self.beta = nn.Parameter(torch.full((self.heads,), config.gate_init))

    def combine(
        self,
        local: Tensor,
        q: Tensor,
        segments: KeyValue | None,
        memory: MemoryState | None,
        knockout: Knockout,
        *,
        write_last: bool,
    ) -> tuple[Tensor, MemoryState | None]:
        with torch.autocast(q.device.type, enabled=False):
            states, after = self.states(segments, memory, knockout, write_last=write_last)
            if knockout is Knockout.gate_closed:
                return local, after
            g = torch.sigmoid(self.beta.to(torch.promote_types(local.dtype, torch.float32))).unsqueeze(-1)
            # 1 at the start of documents, where the first segment has nothing to read; else 0
            unread = local.shape[1] - (0 if states is None else states.M.shape[1])
            parts = []
            if unread:
                first, local = torch.split(local, [unread, local.shape[1] - unread], 1)
                q = q[:, unread:]
                parts.append(first if self.config.empty_memory == "bypass" else (first * (1 - g)).to(local.dtype))
            if states is not None:
                if knockout is Knockout.zero_read:
                    mixed = local * (1 - g)
                else:
                    if knockout is Knockout.swap:
                        states = _swapped(states)
                    mixed = torch.lerp(local.to(g.dtype), self.recall(states, q), g)
                parts.append(mixed.to(local.dtype))
            return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)), after

    def recall(self, states: MemoryState, q: Tensor) -> Tensor:
        """A_mem [B, S, n, H, d] of queries q [B, S, n, H, d] on M [B, S, K, F, d]; heads of a group share a memory."""
        n, group = q.shape[2], self.heads // self.kv_heads
        phi = split_axis(feature_map(self.config.feature_map, q), 3, self.kv_heads, group)  # [B, S, n, K, G, F]
        phi = phi.permute(0, 1, 3, 4, 2, 5).flatten(3, 4)  # [B, S, K, G n, F]
        found = split_axis(read(states, phi, self.config.eps), 3, group, n)
        return found.permute(0, 1, 4, 2, 3, 5).flatten(3, 4)

    def states(
        self, segments: KeyValue | None, memory: MemoryState | None, knockout: Knockout, *, write_last: bool
    ) -> tuple[MemoryState | None, MemoryState | None]:
        """The memory each segment reads ([B, S', ...]; S' = S, or S - 1 at a document's start, where the first segment
        has nothing to read; None for 0), and the memory after the last.
        """
        if segments is not None and not write_last:
            segments = KeyValue(segments.k[:, :-1], segments.v[:, :-1])
        if segments is None or segments.k.shape[1] == 0:
            return (None if memory is None else _stacked(memory)), memory
        phi_k = feature_map(self.config.feature_map, segments.k).transpose(2, 3)
        v = segments.v.transpose(2, 3)
        if knockout is Knockout.reset:
            v = v.to(phi_k.dtype)
            seen = MemoryState(phi_k.transpose(-1, -2) @ v, phi_k.sum(-2))
            if memory is not None:
                before = _stacked(memory)
                seen = MemoryState(torch.cat([before.M, seen.M], dim=1), torch.cat([before.z, seen.z], dim=1))
        else:
            seen = scan(memory, phi_k, v, self.config.rule, self.config.eps)
        if not write_last:
            return seen, None
        after = MemoryState(seen.M[:, -1], seen.z[:, -1])
        if seen.M.shape[1] == 1:
            return None, after
        return MemoryState(seen.M[:, :-1], seen.z[:, :-1]), after

    def health(self, x: Tensor) -> dict[str, float]:
        """memory_norm, z_min and erase_lambda_max (see ``Decoder.monitor``) of one layer on its normed inputs
        x [B, T, C]; {} if there is no second segment to read."""
        n, name = self.segment_length, self.config.feature_map
        whole = x.shape[1] // n
        if whole < 2:
            return {}
        q, k, v = (split_axis(t[:, : whole * n], 1, whole, n) for t in self.project(x))
        with torch.autocast(x.device.type, enabled=False):
            phi_k = feature_map(name, k).transpose(2, 3)
            states = scan(None, phi_k, v.transpose(2, 3), self.config.rule, self.config.eps)
            phi_q = split_axis(feature_map(name, q[:, 1:]), 3, self.kv_heads, -1)
            den = torch.einsum("bsnkgf,bskf->bsnkg", phi_q, states.z[:, :-1])
            # a spread of segments, the first written one among them: there z is smallest and the erase strongest
            picked = sorted({1, 2, whole // 2, whole - 1} & set(range(1, whole)))
            phi = phi_k[0, picked]  # [P, K, N, F]
            scale = (phi @ states.z[0, [p - 1 for p in picked]].unsqueeze(-1) + self.config.eps).rsqrt()
            return {
                "memory_norm": states.M.norm(dim=(-2, -1)).max().item(),
                "z_min": den.min().item(),
                "erase_lambda_max": _largest_eigenvalue(phi * scale).max().item(),
            }


def _largest_eigenvalue(rows: Tensor, iterations: int = 20) -> Tensor:
    """lambda_max of R^T R for R [..., N, F], by power iteration (R is non-negative, so a vector of ones is never
    orthogonal to the leading eigenvector)."""
    u = rows.new_ones(*rows.shape[:-2], rows.shape[-1], 1)
    for _ in range(iterations):
        u = rows.transpose(-1, -2) @ (rows @ u)
        u = u / u.norm(dim=-2, keepdim=True).clamp(min=torch.finfo(u.dtype).tiny)
    return (rows @ u).square().sum(dim=(-2, -1))


def _stacked(memory: MemoryState) -> MemoryState:
    return MemoryState(memory.M.unsqueeze(1), memory.z.unsqueeze(1))


def _swapped(states: MemoryState) -> MemoryState:
    if states.M.shape[0] < 2:
        raise ValueError("knockout = 'swap': a batch of 1 has no other document (allowed: batches of 2 or more)")
    return states.roll()
