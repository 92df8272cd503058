"""Infini-attention (arXiv:2404.07143): local attention mixed by a learned gate with reads of a compressive memory.

    A = g A_mem + (1 - g) A_dot,   g = sigmoid(beta), one beta per query head.

What is easy to get wrong, and held by tests: the memory sees Q and K without RoPE; read comes before write; gradients
flow through the memory across segments; with grouped queries the memory belongs to the key/value head and query head
h reads memory h // (H / K); memory, gate and division stay in float32 under autocast.

Beyond the paper, each an option of MixerConfig: gates per channel (beta [H, d]) or per token (beta + w x, w starting
at 0), a learned M_0 and z_0, other feature maps, gradients through the states cut every k segments, a bfloat16 state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import MixerConfig, TrunkConfig, feature_dim
from model.fused import features, recall, recall_in_place, rotated_features
from model.memory import MemoryState
from model.mixers.base import KeyValue, Knockout, split_axis
from model.mixers.local import Features, LocalMixer
from model.ranks import Ranks, tied
from model.scan import scan, scan_across


class InfiniMixer(LocalMixer):
    can_knock_out = True
    monitored = True
    holds = MemoryState

    def __init__(self, trunk: TrunkConfig, config: MixerConfig, layer: int = 0) -> None:
        super().__init__(trunk, config, layer)
        shape = (self.heads, self.d_head) if config.gate == "channel" else (self.heads,)
        self.beta = nn.Parameter(torch.full(shape, config.gate_init))
        if config.gate == "token":
            self.gate_weight = nn.Parameter(torch.zeros(self.heads, trunk.dim))
        if config.initial_memory == "learned":
            f = feature_dim(config.feature_map, self.d_head)
            self.memory_start = nn.Parameter(torch.zeros(self.kv_heads, f, self.d_head))
            # z_0 = softplus of this, so it stays positive; 1 at the start: what about one token adds to z
            self.normaliser_start = nn.Parameter(torch.full((self.kv_heads, f), 0.5413))
        self.rounds_to = torch.bfloat16 if config.state_dtype == "bfloat16" else None

    def rotated(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, memory: MemoryState | None, *, write_last: bool
    ) -> tuple[Tensor, Tensor, Features | None]:
        if not torch.is_grad_enabled():  # then features are made where they are used, while still in the cache
            return super().rotated(q, k, cos, sin, memory, write_last=write_last)
        name, dtype, segments = self.config.feature_map, self.computed_in(q.dtype), q.shape[1]
        first = 1 if memory is None and not self.reads_at_once else 0  # segment that reads
        with torch.autocast(q.device.type, enabled=False):
            k, phi_k = rotated_features(name, k, cos, sin, 0, segments - (not write_last), dtype)
            q, phi_q = rotated_features(name, q, cos, sin, first, segments, dtype)
        return q, k, Features(phi_q, phi_k)

    def combine(
        self,
        local: Tensor,
        x: Tensor,
        q: Tensor,
        segments: KeyValue | None,
        memory: MemoryState | None,
        knockout: Knockout,
        *,
        number: int,
        write_last: bool,
        phi: Features | None = None,
    ) -> tuple[Tensor, MemoryState | None]:
        with torch.autocast(q.device.type, enabled=False):
            dtype = self.computed_in(q.dtype)
            phi_k, values = None, None
            if segments is not None:
                phi_k = phi.k if phi else self.features(segments.k, 0, segments.k.shape[1] - (not write_last))
                values = segments.v
            if self.ranks is not None:
                assert phi_k is not None and values is not None and memory is None  # whole segments, in one piece
                states, local = self.states_across(self.ranks, phi_k, values, local)
                after = None
            else:
                states, after = self.states(
                    phi_k, values, memory, knockout, number, len(q), dtype, write_last=write_last
                )
            if after is not None:
                after = MemoryState(*(t.to(self.rounds_to or dtype) for t in (after.M, after.z)))
            if knockout is Knockout.gate_closed:
                return local, after
            g, literal = self.gate(x, local), self.config.empty_memory == "literal"
            if self.ranks is not None and torch.is_grad_enabled():
                local = tied(local, g)  # every parameter has a gradient on every rank, as sharded ones must
            if states is None:  # the first segment of a document, alone: nothing to read
                return (local * (1 - g)).to(local.dtype) if literal else local, after
            if knockout is Knockout.zero_read:
                states = MemoryState(torch.zeros_like(states.M), states.z)
            elif knockout is Knockout.swap:
                states = _swapped(states)
            name, eps = self.config.feature_map, self.config.eps
            if not torch.is_grad_enabled():
                return recall_in_place(local, q, states, g, name, eps, literal=literal), after
            phi_q = phi.q if phi else self.features(q, q.shape[1] - states.M.shape[1], q.shape[1])
            return recall(local, phi_q, states, g, eps, literal=literal), after

    def features(self, x: Tensor, first: int, last: int) -> Tensor:
        """sigma of the segments first .. last - 1 of x [B, S, N, H, d]: [B, last - first, H, N, F]."""
        return features(self.config.feature_map, x, first, last, self.computed_in(x.dtype))

    def gate(self, x: Tensor, local: Tensor) -> Tensor:
        """g, to multiply outputs [B, S, n, H, d] with: [H, 1], [H, d] or [B, S, n, H, 1]; float32 at least."""
        dtype = torch.promote_types(local.dtype, torch.float32)
        beta = self.beta.to(dtype)
        if self.config.gate == "channel":
            return torch.sigmoid(beta)
        if self.config.gate == "token":
            beta = beta + F.linear(x.to(dtype), self.gate_weight.to(dtype))
        return torch.sigmoid(beta).unsqueeze(-1)

    def computed_in(self, dtype: torch.dtype) -> torch.dtype:
        """Of the memory's features, sums and divisions, for inputs of ``dtype``: float32 at least."""
        least = torch.float64 if self.config.state_dtype == "float64" else torch.float32
        return torch.promote_types(dtype, least)

    def start(self, batch: int, dtype: torch.dtype) -> MemoryState | None:
        """M_0 and z_0 of ``batch`` documents; None while both are 0."""
        if self.config.initial_memory == "zero":
            return None
        M, z = self.memory_start.to(dtype), F.softplus(self.normaliser_start.to(dtype))
        return MemoryState(M.expand(batch, -1, -1, -1), z.expand(batch, -1, -1))

    @property
    def reads_at_once(self) -> bool:
        """Is there something to read in the first segment of x already, where no state came with it?"""
        return self.config.initial_memory == "learned" or (self.ranks is not None and self.ranks.rank > 0)

    def states_across(
        self, ranks: Ranks, phi_k: Tensor, values: Tensor, local: Tensor
    ) -> tuple[MemoryState | None, Tensor]:
        """``states`` that each segment of this rank's part reads, and ``local`` with the exchanges tied to it."""
        start = self.start(len(phi_k), phi_k.dtype)
        seen, before = scan_across(ranks, start, phi_k, values.transpose(2, 3), self.config.rule, self.config.eps)
        if torch.is_grad_enabled():
            local = tied(local, before, *(() if start is None else (start.M, start.z)))
        M, z = seen.M[:, :-1], seen.z[:, :-1]  # the last is for the ranks behind
        return (MemoryState(M, z) if M.shape[1] else None), local

    def states(
        self,
        phi_k: Tensor | None,
        values: Tensor | None,
        memory: MemoryState | None,
        knockout: Knockout,
        number: int,
        batch: int,
        dtype: torch.dtype,
        *,
        write_last: bool,
    ) -> tuple[MemoryState | None, MemoryState | None]:
        """The memory each segment reads ([B, S', ...]; S' = S, or S - 1 at the start of a document with empty memory,
        where the first segment has nothing to read; None for 0), and the memory after the last.

        phi_k [B, S or S - 1, K, N, F], values [B, S, N, K, E]: of completed segments, None while the segment is open.
        number: of the first segment, counted from the document's start. The memory after is None, or what it was, if
        nothing was written.
        """
        before = self.start(batch, dtype) if memory is None else MemoryState(memory.M.to(dtype), memory.z.to(dtype))
        count = 0 if phi_k is None else phi_k.shape[1]
        bptt = self.config.bptt_segments
        cuts = [] if bptt is None else [s for s in range(count + 1) if number + s > 0 and (number + s) % bptt == 0]
        if phi_k is None or values is None or count == 0:
            if before is not None and cuts:
                before = before.detach()
            return before and _stacked(before), memory
        v = values.transpose(2, 3)
        if knockout is Knockout.reset:
            seen = self.separate(before, phi_k, v[:, :count])
        else:
            seen = scan(before, phi_k, v, self.config.rule, self.config.eps, cuts=cuts, store=self.rounds_to)
        if not write_last:
            return seen, None
        S = seen.M.shape[1]
        (M, last_M), (z, last_z) = (torch.split(t, [S - 1, 1], dim=1) for t in (seen.M, seen.z))
        # copies: a view would keep every segment's memory alive for as long as the state is held
        after = MemoryState(last_M.squeeze(1).clone(), last_z.squeeze(1).clone())
        return (MemoryState(M, z) if S > 1 else None), after

    def separate(self, before: MemoryState | None, phi_k: Tensor, v: Tensor) -> MemoryState:
        """Before the first segment (unless nothing is) and after each, where each is written into a memory that is as
        new (the ``reset`` knock-out)."""
        batch, count = phi_k.shape[:2]
        alone = scan(
            self.start(batch * count, phi_k.dtype),
            phi_k.flatten(0, 1).unsqueeze(1),
            v.flatten(0, 1).unsqueeze(1),
            self.config.rule,
            self.config.eps,
            store=self.rounds_to,
        )
        M, z = (split_axis(t[:, -1], 0, batch, count) for t in (alone.M, alone.z))
        if before is not None:
            M, z = torch.cat([before.M.unsqueeze(1), M], dim=1), torch.cat([before.z.unsqueeze(1), z], dim=1)
        return MemoryState(M, z)

    def health(self, x: Tensor) -> dict[str, float]:
        """gate_* of data-dependent gates; memory_norm, z_min and erase_lambda_max (see ``Decoder.monitor``) of one
        layer on its normed inputs x [B, T, C], the last three unless there is nothing to read."""
        n, numbers = self.segment_length, {}
        if self.config.gate == "token":
            g = self.gate(x, x)
            numbers = {"gate_mean": g.mean().item(), "gate_min": g.min().item(), "gate_max": g.max().item()}
        whole = x.shape[1] // n
        q, k, v = (split_axis(t[:, : whole * n], 1, whole, n) for t in self.project(x)) if whole else (x, x, x)
        with torch.autocast(x.device.type, enabled=False):
            dtype = self.computed_in(x.dtype)
            before = self.start(len(x), dtype)
            first = 1 if before is None else 0  # segment that reads
            if whole <= first:
                return numbers
            phi_k = self.features(k, 0, whole)
            states = scan(before, phi_k, v.transpose(2, 3), self.config.rule, self.config.eps, store=self.rounds_to)
            phi_q = self.features(q, first, whole)
            z = states.z[:, :-1]
            divisors = split_axis(phi_q, 2, self.kv_heads, -1) @ z[:, :, :, None, :, None]
            # a spread of segments, the first that erases among them: there z is smallest and the erase strongest
            picked = sorted({first, first + 1, whole // 2, whole - 1} & set(range(first, whole)))
            phi = phi_k[0, picked]  # [P, K, N, F]
            scale = (phi @ z[0, [p - first for p in picked]].unsqueeze(-1) + self.config.eps).rsqrt()
            return numbers | {
                "memory_norm": states.M.norm(dim=(-2, -1)).max().item(),
                "z_min": divisors.min().item(),
                "erase_lambda_max": _largest_eigenvalue(phi * scale).max().item(),
            }

    def trace(
        self, x: Tensor, memory: MemoryState | None, picked: list[int], *, spectrum: bool = False
    ) -> dict[str, Tensor]:
        """What becomes of the memory over the whole segments of a layer's normed inputs x [B, T, C], per batch row and
        memory head: each [B, P, K] for the segments ``picked``, counted from the first of x, which ``memory`` precedes
        (None: x starts its documents).

        memory_norm: Frobenius norm of M after the segment; effective_rank: of the same M; z_min: smallest sigma(q) z
        a query of the segment divides by; erase_lambda_max: largest eigenvalue of Phi^T D^-1 Phi of its write (the
        delta rule amplifies above 2). The last two are NaN in a document's first segment, where nothing is read. With
        ``spectrum`` also z_norm, the Euclidean norm of z after the segment, and spectrum, the singular values of M
        [B, P, K, min(F, E)], descending.
        """
        n, whole = self.segment_length, x.shape[1] // self.segment_length
        q, k, v = (split_axis(t[:, : whole * n], 1, whole, n) for t in self.project(x))
        with torch.autocast(x.device.type, enabled=False):
            dtype = self.computed_in(x.dtype)
            before = self.start(len(x), dtype) if memory is None else memory
            phi_q, phi_k = self.features(q, 0, whole), self.features(k, 0, whole)
            if before is not None:
                before = MemoryState(before.M.to(dtype), before.z.to(dtype))
            states = scan(before, phi_k, v.transpose(2, 3), self.config.rule, self.config.eps, store=self.rounds_to)
            M, z = states.M[:, -whole:][:, picked], states.z
            after = z[:, -whole:][:, picked]
            if before is None:  # an empty memory divides by eps
                z = torch.cat([torch.full_like(z[:, :1], float("nan")), z], dim=1)
            z = z[:, :-1][:, picked]  # before the segment, as its queries and its write see it
            phi_q, phi_k = phi_q[:, picked], phi_k[:, picked]
            divisors = split_axis(phi_q, 2, self.kv_heads, -1) @ z[:, :, :, None, :, None]
            scale = (phi_k @ z.unsqueeze(-1) + self.config.eps).rsqrt()
            found = {
                "memory_norm": M.norm(dim=(-2, -1)),
                "z_min": divisors.flatten(3).amin(-1),
                "erase_lambda_max": _largest_eigenvalue(phi_k * scale),
                "effective_rank": effective_rank(M),
            }
            return found | {"z_norm": after.norm(dim=-1), "spectrum": torch.linalg.svdvals(M)} if spectrum else found


def effective_rank(M: Tensor) -> Tensor:
    """exp of the entropy of the singular values of M [..., F, E], normalised to sum 1 (Roy & Vetterli, 2007): between
    1 and min(F, E), and 0 of an empty memory."""
    values = torch.linalg.svdvals(M)
    shares = values / values.sum(-1, keepdim=True).clamp(min=torch.finfo(M.dtype).tiny)
    entropy = -(shares * shares.clamp(min=torch.finfo(M.dtype).tiny).log()).sum(-1)
    return torch.where(values.sum(-1) > 0, entropy.exp(), torch.zeros_like(entropy))


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
