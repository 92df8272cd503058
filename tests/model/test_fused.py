"""The hand-written gradients against autograd on the plain forms of ``model.memory``."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import fused
from model.fused import features, recall, segment_sums, transition
from model.memory import MemoryState, feature_map, read

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def draw(*shape: int, seed: int = 0, positive: bool = False) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand if positive else torch.randn)(*shape, generator=g, dtype=torch.float64)
    return (x + 0.1 if positive else x).requires_grad_()


def same(found: Tensor, expected: Tensor, leaves: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(found, expected, **CLOSE)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), leaves) for y in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("name", ["elu1", "relu", "dpfp2", "softmax"])
@pytest.mark.parametrize(("first", "last"), [(0, 4), (1, 4), (0, 3), (2, 2)])
def test_features(name: str, first: int, last: int) -> None:
    x = draw(2, 4, 5, 3, 6)
    expected = feature_map(name, x)[:, first:last].transpose(2, 3)
    same(features(name, x, first, last, torch.float64), expected, (x,))


def test_features_of_bfloat16_are_float32_with_bfloat16_gradients() -> None:
    x = draw(1, 2, 3, 2, 4).detach().bfloat16().requires_grad_()
    phi = features("elu1", x, 0, 2, torch.float32)
    torch.testing.assert_close(phi, feature_map("elu1", x).transpose(2, 3))
    (gradient,) = torch.autograd.grad(phi.sum(), x)
    assert phi.dtype == torch.float32 and gradient.dtype == torch.bfloat16


@pytest.mark.parametrize("more", [0, 2])
def test_segment_sums_leave_the_last_segments_out(more: int) -> None:
    phi, v = draw(2, 3, 2, 5, 4, positive=True), draw(2, 3 + more, 2, 5, 6)
    sums, totals = segment_sums(phi, v)
    same(torch.cat([sums, totals.unsqueeze(-1)], -1).flatten(), torch.cat(
        [phi.transpose(-1, -2) @ v[:, :3], phi.sum(-2).unsqueeze(-1)], -1
    ).flatten(), (phi, v))  # fmt: skip


def test_transition() -> None:
    phi, z = draw(2, 3, 2, 5, 4, positive=True), draw(2, 3, 2, 4, positive=True)
    p = phi / (phi @ z.unsqueeze(-1) + 0.01)
    same(transition(phi, z, 0.01), torch.eye(4, dtype=torch.float64) - phi.transpose(-1, -2) @ p, (phi, z))


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 2),
    segments=st.integers(1, 4),
    unread=st.integers(0, 2),
    tokens=st.integers(1, 5),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    size=st.integers(1, 4),
    name=st.sampled_from(["elu1", "dpfp2"]),
    gate=st.sampled_from(["head", "channel", "token"]),
    literal=st.booleans(),
    block=st.sampled_from([1, 2**16]),
)
def test_recall(
    batch: int, segments: int, unread: int, tokens: int, kv_heads: int, group: int, size: int,
    name: str, gate: str, literal: bool, block: int,
) -> None:  # fmt: skip
    heads, shape = kv_heads * group, (batch, segments + unread, tokens, kv_heads * group)
    local, q = draw(*shape, size, seed=1), draw(*shape, size, seed=2)
    phi = feature_map(name, q)[:, unread:].transpose(2, 3)
    M = draw(batch, segments, kv_heads, phi.shape[-1], size, seed=3)
    z = draw(batch, segments, kv_heads, phi.shape[-1], seed=4, positive=True)
    g = draw(*{"head": (heads, 1), "channel": (heads, size), "token": (*shape, 1)}[gate], seed=5)
    spread = MemoryState(M.repeat_interleave(group, 2), z.repeat_interleave(group, 2))
    found = read(spread, phi, 0.01).transpose(2, 3)
    before = torch.zeros(batch, unread, tokens, heads, size, dtype=torch.float64)
    mixed = g * torch.cat([before, found], 1) + (1 - g) * local
    expected = mixed if literal else torch.cat([local[:, :unread], mixed[:, unread:]], 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "BLOCK", block)
        ours = recall(local, q, MemoryState(M, z), g, name, 0.01, literal=literal)
        same(ours, expected, (local, q, M, z, g))
