"""DeltaNet against a loop over tokens written from the papers' equations, and what the delta rule promises."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import MixerConfig, TrunkConfig
from model.memory import feature_map
from model.mixers import build, chunks
from model.mixers.deltanet import DeltaNetMixer, FastWeights, substitute
from tests.model.chunked import CLOSE, DIM, HEADS, D, check_chunks, inputs, run


def mixer(kv_heads: int = 2, feature: str = "elu1", d: int = D) -> DeltaNetMixer:
    trunk = TrunkConfig(dim=DIM, layers=1, heads=HEADS, kv_heads=kv_heads, head_dim=d)
    torch.manual_seed(0)
    layer = build(trunk, MixerConfig(kind="deltanet", segment_length=8, feature_map=feature)).double()
    assert isinstance(layer, DeltaNetMixer)
    return layer


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """One head: S_t = S_(t-1) + beta_t k_t^T (v_t - k_t S_(t-1)), out_t = q_t S_t; q, k [T, F], v [T, d], beta [T]."""
    S, rows = k.new_zeros(k.shape[1], v.shape[1]), []
    for t in range(len(k)):
        S = S + beta[t] * torch.outer(k[t], v[t] - k[t] @ S)
        rows.append(q[t] @ S)
    return torch.stack(rows), S


def token_loop(layer: DeltaNetMixer, x: Tensor) -> Tensor:
    q, k, v = layer.project(x)
    q, k = (feature_map(layer.config.feature_map, t) for t in (q, k))
    q, k = (t / t.norm(dim=-1, keepdim=True).clamp(min=1e-12) for t in (q, k))
    beta = torch.sigmoid(x @ layer.write_strength.weight.T)
    documents = []
    for b in range(len(x)):
        heads = []
        for h in range(HEADS):
            j = h // (HEADS // layer.kv_heads)
            heads.append(delta_rule(q[b, :, h], k[b, :, j], v[b, :, j], beta[b, :, j])[0])
        documents.append(torch.stack(heads, 1))
    return layer.o_proj(torch.stack(documents).flatten(2))


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 40),
    size=st.integers(1, 12),
    kv_heads=st.sampled_from([1, 2, 4]),
    feature=st.sampled_from(["elu1", "dpfp1", "dpfp3"]),
    cut=st.integers(0, 40),
)
@example(tokens=20, size=8, kv_heads=2, feature="elu1", cut=11)  # 11 tokens are 2 chunks of 6: one is made up
def test_chunked_form_is_the_token_loop(tokens: int, size: int, kv_heads: int, feature: str, cut: int) -> None:
    """Forward and gradients, in chunks of any size, and continued from a state at any token."""
    layer = mixer(kv_heads, feature)
    check_chunks(layer, lambda x: token_loop(layer, x), tokens, size, cut)


def unit_keys(tokens: int, features: int, spread: float, seed: int = 0) -> Tensor:
    """Positive keys of length 1, the more alike the smaller ``spread``."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(1 + spread * torch.rand(tokens, features, dtype=torch.float64, generator=generator), dim=-1)


@pytest.mark.parametrize("spread", [0.0, 0.1, 10.0])
def test_float32_holds_where_keys_resemble_each_other(spread: float) -> None:
    """Equal keys make (I + L)^-1 the sum of L's powers with terms up to 2^63: substitution does not form them."""
    torch.manual_seed(0)
    k, v = unit_keys(4 * chunks.CHUNK, 16, spread), torch.randn(4 * chunks.CHUNK, 16, dtype=torch.float64)
    logit = torch.randn(len(k), dtype=torch.float64) + 3
    expected, S = delta_rule(k, k, v, torch.sigmoid(logit))
    layer = mixer(kv_heads=1, feature="relu", d=16)  # positive unit keys are their own normalised features
    q = k[None, :, None].expand(-1, -1, HEADS, -1).float()
    y, states = layer.recall(q, k[None, :, None].float(), v[None, :, None].float(), logit[None, :, None].float(), None)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y[0, :, 0].double(), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(states[0, -1, 0].double(), S, rtol=0, atol=2e-5)


def test_a_key_is_bound_to_what_was_written_last() -> None:
    """beta = 1 replaces: orthogonal keys keep their own values, a second value of the same key erases the first."""
    layer = mixer(kv_heads=1, feature="relu")
    k = torch.eye(D, dtype=torch.float64)[[0, 1, 2, 0]][None, :, None]
    v = torch.randn(1, 4, 1, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    strength = torch.full((1, 4, 1), 50.0, dtype=torch.float64)
    _, states = layer.recall(k.expand(-1, -1, HEADS, -1), k, v, strength, None)
    torch.testing.assert_close(states[0, -1, 0], torch.cat([v[0, [3, 1, 2], 0], torch.zeros(1, D).double()]), **CLOSE)


def test_nothing_is_written_where_the_binding_is_exact_or_beta_is_zero() -> None:
    layer = mixer(kv_heads=1, feature="relu")
    generator = torch.Generator().manual_seed(0)
    before = FastWeights(torch.randn(1, 1, D, D, dtype=torch.float64, generator=generator))
    k = F.normalize(torch.rand(1, 9, 1, D, dtype=torch.float64, generator=generator), dim=-1)
    q, known, other = k.expand(-1, -1, HEADS, -1), k @ before.S, torch.randn(1, 9, 1, D, dtype=torch.float64)
    closed = torch.full((1, 9, 1), -60.0, dtype=torch.float64)
    for v, strength in ((known, torch.zeros_like(closed)), (other, closed)):
        y, states = layer.recall(q, k, v, strength, before)
        torch.testing.assert_close(states[:, -1], before.S, **CLOSE)
        torch.testing.assert_close(y[:, :, 0], known[:, :, 0], **CLOSE)


def test_without_normalised_keys_the_recurrence_explodes() -> None:
    """beta |k|^2 > 2 amplifies: features of keys as they are lead to overflow in a few hundred tokens; of unit length
    the state of 4,096 tokens is no larger than the bound that each write can add."""
    torch.manual_seed(0)
    features, v = feature_map("elu1", torch.randn(4096, 16).double()), torch.randn(4096, 16).double()
    beta = torch.full((4096,), 0.5, dtype=torch.float64)
    with torch.no_grad():
        _, raw = delta_rule(features[:512], features[:512], v[:512], beta[:512])
        assert not raw.abs().max() < 1e38  # float32's largest number is 3.4e38
        k = F.normalize(features, dim=-1)
        _, S = delta_rule(k, k, v, beta)
    assert S.norm() < v.norm(dim=-1).max() * 16**0.5 * 2


def test_substitution_has_the_gradients_of_the_inverse() -> None:
    generator = torch.Generator().manual_seed(0)
    within, a, b = (torch.randn(2, 1, 1, 5, n, dtype=torch.float64, generator=generator) for n in (5, 3, 2))
    expected = [torch.linalg.inv(torch.eye(5).double() + within.tril(-1)) @ r for r in (a, b)]
    torch.testing.assert_close(list(substitute(within, a, b)), expected, **CLOSE)
    arguments = [t.requires_grad_() for t in (within, a, b)]
    assert torch.autograd.gradcheck(lambda w, *right: substitute(w.tril(-1), *right), arguments)


def test_the_substitution_is_traced_without_gradients_too() -> None:
    within, a, b = torch.randn(2, 5, 5).tril(-1), torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    torch._dynamo.reset()
    traced = torch.compile(substitute, backend="eager", dynamic=True, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(list(traced(within, a, b)), list(substitute(within, a, b)))


def test_state_stays_float32_under_bfloat16_autocast() -> None:
    layer, x = mixer().float(), inputs(1, 200).float()
    expected, _ = run(layer, x)
    heads = (*layer.project(x), layer.write_strength(x), None)
    recalled = layer.recall(*heads)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, state = run(layer, x)
        assert torch.equal(layer.recall(*heads)[0], recalled)
    assert isinstance(state.memory, FastWeights) and state.memory.S.dtype == torch.float32
    assert found.dtype == torch.bfloat16
    assert F.mse_loss(found.float(), expected) < 1e-3 * expected.square().mean()


def test_every_head_has_its_own_write_strength_and_it_learns() -> None:
    layer, x = mixer(), inputs(2, 12)
    y, state = run(layer, x)
    y.square().sum().backward()
    assert layer.write_strength.weight.grad is not None and (layer.write_strength.weight.grad.abs().sum(1) > 1e-6).all()
    with torch.no_grad():
        layer.write_strength.weight[1] *= -1
        _, changed = run(layer, x)
    assert isinstance(state.memory, FastWeights) and isinstance(changed.memory, FastWeights)
    same = [torch.equal(state.memory.S[:, j], changed.memory.S[:, j]) for j in range(2)]
    assert same == [True, False]


def test_health_is_the_largest_norm_of_the_states() -> None:
    layer, x = mixer(), inputs(2, 2 * chunks.CHUNK)
    norms = [
        run(layer, x[:, :end])[1].memory.S.norm(dim=(-2, -1)).max().item() for end in (chunks.CHUNK, 2 * chunks.CHUNK)
    ]
    assert layer.health(x) == {"memory_norm": pytest.approx(max(norms))}
