"""Linear attention against a loop over tokens written from the paper's equations, and what follows from them."""

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
from model.mixers.linear import LinearMixer
from tests.model.chunked import CLOSE, DIM, HEADS, D, check_chunks, inputs, run

EPS = 1e-6


def mixer(kv_heads: int = 2, feature: str = "elu1") -> LinearMixer:
    trunk = TrunkConfig(dim=DIM, layers=1, heads=HEADS, kv_heads=kv_heads, head_dim=D)
    torch.manual_seed(0)
    layer = build(trunk, MixerConfig(kind="linear", segment_length=8, feature_map=feature)).double()
    assert isinstance(layer, LinearMixer)
    return layer


def token_loop(layer: LinearMixer, x: Tensor) -> Tensor:
    """out_t = sigma(q_t) S_t / (sigma(q_t) z_t + eps), S_t = S_(t-1) + sigma(k_t)^T v_t, head by head."""
    q, k, v = layer.project(x)
    phi_q, phi_k = (feature_map(layer.config.feature_map, t) for t in (q, k))
    heads = []
    for h in range(HEADS):
        j = h // (HEADS // layer.kv_heads)
        S = x.new_zeros(len(x), phi_k.shape[-1], D)
        z, rows = x.new_zeros(len(x), phi_k.shape[-1]), []
        for t in range(x.shape[1]):
            S = S + phi_k[:, t, j, :, None] * v[:, t, j, None, :]
            z = z + phi_k[:, t, j]
            read = (phi_q[:, t, h, None, :] @ S).squeeze(1)
            rows.append(read / ((phi_q[:, t, h] * z).sum(-1, keepdim=True) + EPS))
        heads.append(torch.stack(rows, 1))
    return layer.o_proj(torch.stack(heads, 2).flatten(2))


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 40),
    size=st.integers(1, 12),
    kv_heads=st.sampled_from([1, 2, 4]),
    feature=st.sampled_from(["elu1", "relu", "dpfp2"]),
    cut=st.integers(0, 40),
)
@example(tokens=20, size=8, kv_heads=2, feature="elu1", cut=11)  # 11 tokens are 2 chunks of 6: one is made up
def test_chunked_form_is_the_token_loop(tokens: int, size: int, kv_heads: int, feature: str, cut: int) -> None:
    """Forward and gradients, in chunks of any size, and continued from a state at any token."""
    layer = mixer(kv_heads, feature)
    check_chunks(layer, lambda x: token_loop(layer, x), tokens, size, cut)


def test_reads_are_averages_of_the_values_so_far_the_tokens_own_included() -> None:
    """Non-negative weights that sum to one (up to eps): the first token reads its own value, no read leaves the
    values' range, and outputs are additive in V."""
    layer, x = mixer(), inputs(2, 100)
    q, k, v = layer.project(x)
    y, _, _ = layer.recall(q, k, v, None)
    torch.testing.assert_close(y[:, 0], v[:, 0].repeat_interleave(2, 1), rtol=1e-5, atol=1e-5)
    heads = v.repeat_interleave(2, 2)
    slack = EPS * heads.abs().max()
    assert (y <= heads.cummax(1).values.clamp(min=0) + slack).all()
    assert (y >= heads.cummin(1).values.clamp(max=0) - slack).all()
    other = torch.randn(v.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(3))
    both = layer.recall(q, k, v + other, None)[0]
    torch.testing.assert_close(both, y + layer.recall(q, k, other, None)[0], **CLOSE)


def test_positions_are_those_of_the_recurrence_alone() -> None:
    """No rotation: where in its document a chunk stands changes nothing, what came before it does."""
    layer, x = mixer(), inputs(1, 12)
    with torch.no_grad():
        expected, state = run(layer, x)
        assert torch.equal(run(layer, x, None, 1000)[0], expected)
        assert not torch.allclose(run(layer, x, state, 12)[0], expected)
        swapped = run(layer, x[:, [1, 0, *range(2, 12)]])[0]
    torch.testing.assert_close(swapped[:, 2:], expected[:, 2:], **CLOSE)  # a sum has no order


def test_a_query_that_meets_no_key_reads_zero() -> None:
    """relu features can all vanish: 0 / (0 + eps) is 0, and its gradient is finite."""
    layer = mixer(feature="relu")
    q = torch.full((1, 3, HEADS, D), -1.0, dtype=torch.float64, requires_grad=True)
    k, v = torch.ones(1, 3, 2, D, dtype=torch.float64), torch.ones(1, 3, 2, D, dtype=torch.float64)
    y, _, _ = layer.recall(q, k, v, None)
    assert torch.equal(y, torch.zeros_like(y))
    (gradient,) = torch.autograd.grad(y.sum(), q)
    assert gradient.isfinite().all()


def test_state_stays_float32_under_bfloat16_autocast() -> None:
    layer, x = mixer().float(), inputs(1, 200).float()
    expected, _ = run(layer, x)
    heads = layer.project(x)
    recalled = layer.recall(*heads, None)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, state = run(layer, x)
        assert torch.equal(layer.recall(*heads, None)[0], recalled)
    assert state.memory is not None and {t.dtype for t in vars(state.memory).values()} == {torch.float32}
    assert found.dtype == torch.bfloat16
    assert F.mse_loss(found.float(), expected) < 1e-3 * expected.square().mean()


def test_health_is_that_of_the_states() -> None:
    layer, x = mixer(), inputs(2, 3 * chunks.CHUNK)
    q, k, v = layer.project(x)
    phi_q, phi_k = feature_map("elu1", q), feature_map("elu1", k)
    S = torch.einsum("btkf,btkd->bkfd", phi_k, v)
    numbers = layer.health(x)
    smallest = (phi_q * phi_k.cumsum(1).repeat_interleave(2, 2)).sum(-1).min()
    assert numbers["z_min"] == pytest.approx(smallest.item())
    assert numbers["memory_norm"] >= S.norm(dim=(-2, -1)).max().item() * (1 - 1e-12)
