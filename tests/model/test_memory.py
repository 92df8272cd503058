"""The two update rules: equations, their parallel form, an O(T^2) oracle, gradients, and what the rules promise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import Rule, feature_dim
from model.memory import MemoryState, empty, feature_map, read, write
from model.scan import scan

EPS = 1e-6
RULES = ("linear", "delta")


def draw(
    segments: int = 5,
    tokens: int = 7,
    features: int = 4,
    values: int = 3,
    seed: int = 0,
    batch: int = 2,
    heads: int = 2,
) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shape = (batch, segments, heads, tokens)
    keys = torch.randn(*shape, features, generator=g, dtype=torch.float64)
    return feature_map("elu1", keys), torch.randn(*shape, values, generator=g, dtype=torch.float64)


def in_order(initial: MemoryState, phi_k: Tensor, v: Tensor, rule: str) -> MemoryState:
    """Before the first segment and after each, by the sequential reference."""
    states = [initial]
    for s in range(phi_k.shape[1]):
        states.append(write(states[-1], phi_k[:, s], v[:, s], rule, EPS))
    return MemoryState(torch.stack([s.M for s in states], 1), torch.stack([s.z for s in states], 1))


def block_mask_oracle(phi_q: Tensor, phi_k: Tensor, v: Tensor) -> Tensor:
    """Linear rule without any memory: sum over all tokens of earlier segments of sigma(q).sigma(k) v, normalised."""
    b, s, h, n, _ = phi_q.shape
    q, k, values = (t.transpose(1, 2).reshape(b, h, s * n, -1) for t in (phi_q, phi_k, v))
    segment = torch.arange(s * n) // n
    weights = (q @ k.transpose(-1, -2)) * (segment.unsqueeze(1) > segment)
    out = (weights @ values) / (weights.sum(-1, keepdim=True) + EPS)
    return out.reshape(b, h, s, n, -1).transpose(1, 2)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [{"tokens": 9, "features": 4}, {"tokens": 3, "features": 8}, {"segments": 1}])
@pytest.mark.parametrize("started", [False, True])
def test_parallel_form_equals_the_equations_with_gradients(rule: str, shape: dict[str, int], started: bool) -> None:
    phi_k, v = (t.requires_grad_() for t in draw(**shape))
    start = empty(2, 2, phi_k.shape[-1], v.shape[-1], dtype=torch.float64)
    if started:
        start = write(start, *(t[:, 0] for t in draw(**shape, seed=9)), rule, EPS)
        start = MemoryState(start.M.requires_grad_(), start.z.requires_grad_())
    expected = in_order(start, phi_k, v, rule)
    found = scan(start if started else None, phi_k, v, rule, EPS)
    if not started:
        expected = MemoryState(expected.M[:, 1:], expected.z[:, 1:])
    torch.testing.assert_close(found.M, expected.M, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.z, expected.z, rtol=0, atol=1e-10)

    leaves = (phi_k, v, start.M, start.z) if started else (phi_k, v)
    weight = torch.randn(expected.M.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gradients = [
        torch.autograd.grad((s.M * weight).sum() + s.z.square().sum(), leaves, allow_unused=True)
        for s in (found, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_linear_rule_equals_the_quadratic_oracle() -> None:
    phi_k, v = draw()
    phi_q, _ = draw(seed=5)
    states = scan(empty(2, 2, 4, 3, dtype=torch.float64), phi_k, v, "linear", EPS)
    before = MemoryState(states.M[:, :-1], states.z[:, :-1])
    torch.testing.assert_close(read(before, phi_q, EPS), block_mask_oracle(phi_q, phi_k, v), rtol=0, atol=1e-10)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tokens", [2, 6])
def test_gradcheck_through_later_segments(rule: str, tokens: int) -> None:
    """dK, dV of segment s from reads in segments after it, in both forms of the erase step."""
    phi_k, v = (t.requires_grad_() for t in draw(segments=3, tokens=tokens, features=3, values=2, batch=1, heads=1))

    def last_reads(phi_k: Tensor, v: Tensor) -> Tensor:
        states = scan(None, phi_k, v, rule, EPS)
        return read(MemoryState(states.M[:, :-1], states.z[:, :-1]), phi_k[:, 1:], EPS)

    assert torch.autograd.gradcheck(last_reads, (phi_k, v))


@settings(max_examples=25, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    segments=st.integers(1, 6),
    tokens=st.integers(1, 6),
    features=st.integers(1, 5),
    values=st.integers(1, 5),
    cut=st.integers(0, 6),
)
def test_scan_can_be_cut_anywhere(rule: str, segments: int, tokens: int, features: int, values: int, cut: int) -> None:
    phi_k, v = draw(segments, tokens, features, values)
    cut = min(cut, segments)
    whole = scan(empty(2, 2, features, values, dtype=torch.float64), phi_k, v, rule, EPS)
    state = MemoryState(whole.M[:, cut], whole.z[:, cut])
    if cut < segments:
        rest = scan(state, phi_k[:, cut:], v[:, cut:], rule, EPS)
        torch.testing.assert_close(rest.M, whole.M[:, cut:], rtol=1e-9, atol=1e-9)


def test_linear_readout_is_a_weighted_mean_of_values_and_additive_in_them() -> None:
    phi_k, v = draw(segments=1, tokens=12)
    phi_q, _ = draw(segments=1, seed=4)
    start = empty(2, 2, 4, 3, dtype=torch.float64)

    def readout(values: Tensor) -> Tensor:
        return read(write(start, phi_k[:, 0], values, "linear", 1e-12), phi_q[:, 0], 1e-12)

    found, values = readout(v[:, 0]), v[:, 0]
    assert (found <= values.amax(-2, keepdim=True) + 1e-9).all()
    assert (found >= values.amin(-2, keepdim=True) - 1e-9).all()
    other = values.roll(1, -2) * 3
    torch.testing.assert_close(readout(values + other), found + readout(other), rtol=1e-9, atol=1e-9)


def test_delta_writes_nothing_for_a_binding_it_already_returns() -> None:
    phi_k, v = draw(segments=1, tokens=3)
    state = write(empty(2, 2, 4, 3, dtype=torch.float64), phi_k[:, 0], v[:, 0], "linear", 1e-12)
    again = write(state, phi_k[:, 0], read(state, phi_k[:, 0], 1e-12), "delta", 1e-12)
    torch.testing.assert_close(again.M, state.M, rtol=0, atol=1e-10)
    assert (again.z > state.z).all()


def test_delta_halves_stationary_content_where_linear_returns_it() -> None:
    """For one key written with one value in every segment: linear reads v, delta tends to v / 2 (z counts each
    writing, M none after the first correction)."""
    phi, v = torch.ones(1, 400, 1, 1, 1, dtype=torch.float64), torch.full((1, 400, 1, 1, 1), 3.0, dtype=torch.float64)
    for rule, expected in (("linear", 3.0), ("delta", 1.5)):
        states = scan(None, phi, v, rule, 1e-12)
        last = MemoryState(states.M[:, -1], states.z[:, -1])
        assert read(last, phi[:, 0], 1e-12).item() == pytest.approx(expected, rel=0.01)


def test_feature_maps() -> None:
    x = torch.tensor([1.0, -2.0], dtype=torch.bfloat16)
    assert feature_map("elu1", x).dtype == torch.float32
    torch.testing.assert_close(feature_map("elu1", x), torch.tensor([2.0, 0.1353353]))
    torch.testing.assert_close(feature_map("relu", x), torch.tensor([1.0, 0.0]))
    # r = [1, 0, 0, 2]; r_i r_(i-1) = [1*2, 0, 0, 0]; r_i r_(i-2) = 0
    torch.testing.assert_close(feature_map("dpfp1", x), torch.tensor([2.0, 0, 0, 0]))
    torch.testing.assert_close(feature_map("softmax", x), torch.tensor([0.9525741, 0.0474259]))
    for name in ("elu1", "relu", "dpfp1", "dpfp2", "dpfp3", "softmax"):
        features = feature_map(name, torch.randn(3, 6))
        assert features.shape == (3, feature_dim(name, 6))
        assert (features >= 0).all()
    assert feature_map("elu1", torch.tensor([-30.0])) > 0  # ELU(x) + 1 in float32 would be 0
    with pytest.raises(ValueError, match=r"feature_map = 'tanh'.*elu1"):
        feature_map("tanh", x)


@pytest.mark.parametrize("rule", RULES)
def test_a_million_tokens_in_bfloat16_do_not_drift(rule: str) -> None:
    """Keys and values arrive in bfloat16; memory and normaliser stay float32, so the readout after 2^20 tokens is that
    of float64 to a part in 10^4 (a bfloat16 z would be 14% off)."""
    g = torch.Generator().manual_seed(0)
    k, v, q = (torch.randn(1, 512, 1, 2048, 4, generator=g, dtype=torch.bfloat16) for _ in range(3))
    low = scan(None, feature_map("elu1", k), v, rule, EPS)
    high = scan(None, feature_map("elu1", k.double()), v.double(), rule, EPS)
    assert low.M.dtype == low.z.dtype == torch.float32
    assert ((low.z[:, -1] - high.z[:, -1]) / high.z[:, -1]).abs().max() < 1e-5
    reads = [
        read(MemoryState(s.M[:, -1], s.z[:, -1]), feature_map("elu1", q[:, 0].to(s.M.dtype)), EPS) for s in (low, high)
    ]
    scale = reads[1].std()
    assert (reads[0] - reads[1]).abs().max() / scale < 2e-3


def test_a_bfloat16_state_drifts_where_float32_does_not() -> None:
    """2^20 tokens in segments of 2,048: the rounded z stops growing, so what is read is biased; this is why state_dtype
    is float32."""
    g = torch.Generator().manual_seed(0)
    k, v = (torch.randn(1, 512, 1, 2048, 4, generator=g, dtype=torch.bfloat16).float() for _ in range(2))
    phi = feature_map("elu1", k)
    exact = scan(None, phi.double(), v.double(), "linear", EPS)
    off = {}
    for store in (None, torch.bfloat16):
        z = scan(None, phi, v, "linear", EPS, store=store).z[:, -1]
        off[store] = ((z - exact.z[:, -1]) / exact.z[:, -1]).abs().max().item()
    assert off[None] < 1e-5
    assert 0.02 < off[torch.bfloat16] < 0.9


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("tokens", [2, 9])  # applied as factors, and formed
@pytest.mark.parametrize("cuts", [(), (0,), (2,), (1, 4)])
@pytest.mark.parametrize("rule", RULES)
def test_a_compiler_is_given_the_same_recurrence(
    rule: Rule, cuts: tuple[int, ...], tokens: int, started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(0)
    phi, v, M = (
        torch.randn(*shape, generator=g, dtype=torch.float64).abs_().requires_grad_()
        for shape in ((2, 4, 3, tokens, 4), (2, 4, 3, tokens, 5), (2, 3, 4, 5))
    )
    initial = MemoryState(M, M.sum(-1)) if started else None
    found = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda now=compiling: now)
        states = scan(initial, phi, v, rule, 0.01, cuts=cuts)
        weights = (torch.linspace(1, 2, t.numel(), dtype=t.dtype).view_as(t) for t in (states.M, states.z))
        total = sum((t * w).sum() for t, w in zip((states.M, states.z), weights, strict=True))
        gradients = torch.autograd.grad(total, (phi, v, M), allow_unused=True, materialize_grads=True)
        found.append((states.M, states.z, *gradients))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)
