"""The hand-written gradients against autograd on the plain forms of ``model.memory``, and what a compiler is given."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import fused
from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.decoder import Decoder
from model.fused import features, recall, recall_in_place, rotated_features, segment_sums, transition
from model.memory import MemoryState, feature_map, read
from model.plain import plain_features, plain_recall, plain_rotate, plain_segment_sums, plain_transition
from model.rope import Rope, rotate

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def draw(*shape: int, seed: int = 0, positive: bool = False) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand if positive else torch.randn)(*shape, generator=g, dtype=torch.float64)
    return (x + 0.1 if positive else x).requires_grad_()


def same(found: Tensor, expected: Tensor, leaves: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(found, expected, **CLOSE)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), leaves, retain_graph=True) for y in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("name", ["elu1", "relu", "dpfp2", "softmax"])
@pytest.mark.parametrize(("first", "last"), [(0, 4), (1, 4), (0, 3), (2, 2)])
def test_features(name: str, first: int, last: int) -> None:
    x = draw(2, 4, 5, 3, 6)
    expected = feature_map(name, x)[:, first:last].transpose(2, 3)
    for made in (features, plain_features):
        same(made(name, x, first, last, torch.float64), expected, (x,))


@pytest.mark.parametrize("block", [1, 2**16])
@pytest.mark.parametrize("name", ["elu1", "softmax"])
@pytest.mark.parametrize(("first", "last"), [(0, 4), (1, 4), (0, 3), (2, 2)])
def test_rotated_features(name: str, first: int, last: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "BLOCK", block)
    x = draw(2, 4, 3, 2, 6)
    cos, sin = Rope(6, 100.0).table(0, 3, x.device, x.dtype)
    rotated, phi = rotated_features(name, x, cos, sin, first, last, torch.float64)
    expected = torch.cat([rotate(x, cos, sin).flatten(), feature_map(name, x)[:, first:last].transpose(2, 3).flatten()])
    same(torch.cat([rotated.flatten(), phi.flatten()]), expected, (x,))
    same(plain_rotate(x, cos, sin), rotate(x, cos, sin), (x,))


def test_rotated_features_of_bfloat16() -> None:
    x = draw(1, 2, 3, 2, 4).detach().bfloat16().requires_grad_()
    cos, sin = Rope(4, 100.0).table(0, 3, x.device, x.dtype)
    rotated, phi = rotated_features("elu1", x, cos, sin, 0, 2, torch.float32)
    assert torch.equal(rotated, rotate(x, cos, sin))
    (gradient,) = torch.autograd.grad(rotated.float().sum() + phi.sum(), x)
    assert rotated.dtype == torch.bfloat16 and phi.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    exact = x.detach().double().requires_grad_()
    total = rotate(exact, cos.double(), sin.double()).sum() + feature_map("elu1", exact).sum()
    torch.testing.assert_close(gradient.double(), torch.autograd.grad(total, exact)[0], rtol=0.02, atol=0.02)


def test_features_of_bfloat16_are_float32_with_bfloat16_gradients() -> None:
    x = draw(1, 2, 3, 2, 4).detach().bfloat16().requires_grad_()
    phi = features("elu1", x, 0, 2, torch.float32)
    torch.testing.assert_close(phi, feature_map("elu1", x).transpose(2, 3))
    (gradient,) = torch.autograd.grad(phi.sum(), x)
    assert phi.dtype == torch.float32 and gradient.dtype == torch.bfloat16


@pytest.mark.parametrize("block", [1, 2**16])
@pytest.mark.parametrize("more", [0, 2])
def test_segment_sums_leave_the_last_segments_out(more: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "BLOCK", block)
    phi, v = draw(2, 3, 2, 5, 4, positive=True), draw(2, 3 + more, 2, 5, 6)
    expected = torch.cat([phi.transpose(-1, -2) @ v[:, :3], phi.sum(-2).unsqueeze(-1)], dim=-1)
    for made in (segment_sums, plain_segment_sums):
        sums, totals = made(phi, v)
        same(torch.cat([sums, totals.unsqueeze(-1)], dim=-1), expected, (phi, v))


@pytest.mark.parametrize("block", [1, 2**16])
def test_transition(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "BLOCK", block)
    phi, z = draw(2, 3, 2, 5, 4, positive=True), draw(2, 3, 2, 4, positive=True)
    p = phi / (phi @ z.unsqueeze(-1) + 0.01)
    for made in (transition, plain_transition):
        same(made(phi, z, 0.01), torch.eye(4, dtype=torch.float64) - phi.transpose(-1, -2) @ p, (phi, z))


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 2),
    segments=st.integers(1, 4),
    unread=st.integers(0, 2),
    tokens=st.integers(1, 5),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    size=st.integers(1, 4),
    name=st.sampled_from(["elu1", "relu", "dpfp2"]),
    gate=st.sampled_from(["head", "channel", "token"]),
    literal=st.booleans(),
    block=st.sampled_from([1, 2**16]),
)
def test_recall(
    batch: int,
    segments: int,
    unread: int,
    tokens: int,
    kv_heads: int,
    group: int,
    size: int,
    name: str,
    gate: str,
    literal: bool,
    block: int,
) -> None:
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
        phi_q = features(name, q, unread, segments + unread, torch.float64)
        for made in (recall, plain_recall):
            ours = made(local, phi_q, MemoryState(M, z), g, 0.01, literal=literal)
            same(ours, expected, (local, q, M, z, g))
        with torch.no_grad():
            into = local.clone()
            recall_in_place(into, q, MemoryState(M, z), g, name, 0.01, literal=literal)
        torch.testing.assert_close(into, expected.detach(), **CLOSE)


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_a_compiler_gets_one_graph_with_the_same_loss_and_gradients(rule: str) -> None:
    config = ModelConfig(
        vocab_size=17,
        trunk=TrunkConfig(dim=16, layers=2, heads=4, kv_heads=2),
        mixer=MixerConfig(kind="infini", segment_length=4, rule=rule),
    )
    model = Decoder(config, seed=0)
    tokens = torch.randint(17, (2, 16), generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(model.loss, backend="aot_eager", fullgraph=True, dynamic=False)
    found = []
    for loss in (compiled, model.loss):
        value = loss(tokens)
        found.append([value, *torch.autograd.grad(value, list(model.parameters()))])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(compiled(tokens), found[1][0], rtol=1e-5, atol=1e-6)
