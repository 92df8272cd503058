"""How to run M_s = A_s M_(s-1) + B_s: the recurrence of ``model.scan``, an associative scan, a loop for autograd."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model.scan import recurrence

SHAPES = [  # segments, N, memories (batch x heads), F = E
    (128, 64, 4, 32),
    (16, 512, 4, 32),
    (64, 128, 8, 64),
    (16, 512, 8, 128),
    (16, 2048, 8, 128),
    (512, 64, 4, 32),
]


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds of forward + backward, from Phi and P on; medians of rounds."""
    ways: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "recurrence": lambda phi, p, b: recurrence(phi, p, b, torch.zeros_like(b[:, 0]))[:, 1:],
        "associative scan": lambda phi, p, b: associative(_transitions(phi, p), b),
        "autograd loop": lambda phi, p, b: loop(_transitions(phi, p), b),
    }
    print("\nM_s = A_s M_(s-1) + B_s, forward + backward, ms")
    print(f"{'segments':>9}{'N':>6}{'memories':>9}{'F = E':>6}" + "".join(f"{way:>18}" for way in ways))
    records = []
    for segments, n, memories, f in SHAPES:
        g = torch.Generator().manual_seed(0)
        phi = torch.rand(1, segments, memories, n, f, generator=g).to(args.device)
        p = phi / (phi.sum(-1, keepdim=True) * n * f)
        b = torch.randn(1, segments, memories, f, f, generator=g).to(args.device)
        leaves = [t.requires_grad_() for t in (phi, p.detach(), b)]
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.repeats + 1):
            for way, work in ways.items():
                start = time.perf_counter()
                torch.autograd.grad(work(*leaves).sum(), leaves)
                if phi.is_cuda:
                    torch.cuda.synchronize()
                times[way].append(1e3 * (time.perf_counter() - start))
        medians = {way: statistics.median(taken[1:]) for way, taken in times.items()}
        records.append({"segments": segments, "N": n, "memories": memories, "F": f} | medians)
        print(f"{segments:9}{n:6}{memories:9}{f:6}" + "".join(f"{ms:18.1f}" for ms in medians.values()), flush=True)
    return records


def _transitions(phi: Tensor, p: Tensor) -> Tensor:
    return torch.eye(phi.shape[-1], device=phi.device, dtype=phi.dtype) - phi.transpose(-1, -2) @ p


def loop(a: Tensor, b: Tensor) -> Tensor:
    """M_1 .. M_S [B, S, H, F, E] from M_0 = 0, step by step."""
    states = [b[:, 0]]
    for s in range(1, b.shape[1]):
        states.append(a[:, s] @ states[-1] + b[:, s])
    return torch.stack(states, 1)


def associative(a: Tensor, b: Tensor) -> Tensor:
    """The same by a work-efficient scan over pairs (A, B), (A, B) then (A', B') = (A' A, A' B + B')."""

    def scan(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        segments = b.shape[1]
        if segments == 1:
            return a, b
        later_a, later_b = a[:, 1::2], b[:, 1::2]
        earlier_a, earlier_b = (t[:, : segments // 2 * 2 : 2] for t in (a, b))
        pair_a, pair_b = scan(later_a @ earlier_a, later_a @ earlier_b + later_b)
        rest_a, rest_b = a[:, 2::2], b[:, 2::2]
        behind_a, behind_b = pair_a[:, : rest_a.shape[1]], pair_b[:, : rest_a.shape[1]]
        even_a = torch.cat([a[:, :1], rest_a @ behind_a], dim=1)
        even_b = torch.cat([b[:, :1], rest_a @ behind_b + rest_b], dim=1)
        return _interleave(even_a, pair_a), _interleave(even_b, pair_b)

    return scan(a, b)[1]


def _interleave(even: Tensor, odd: Tensor) -> Tensor:
    paired = torch.stack([even[:, : odd.shape[1]], odd], dim=2).flatten(1, 2)
    return paired if even.shape[1] == odd.shape[1] else torch.cat([paired, even[:, -1:]], dim=1)
