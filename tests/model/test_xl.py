"""Transformer-XL against a segment loop written from its equations, with gradients; what the cache cuts off."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import MixerConfig, TrunkConfig
from model.decoder import Decoder
from model.mixers.base import KeyValue
from model.mixers.xl import XLMixer
from model.rope import Rope, rotate
from tests.model.tiny import N, config, decoder, tokens

CLOSE = {"rtol": 0, "atol": 1e-10}


def mixer_of(heads: int, kv_heads: int, segment: int, **options: object) -> tuple[XLMixer, Rope]:
    trunk = TrunkConfig(dim=12, layers=1, heads=heads, kv_heads=kv_heads, head_dim=4)
    torch.manual_seed(0)
    return XLMixer(trunk, MixerConfig(kind="xl", segment_length=segment)).double(), Rope(4, 10000.0)


def segment_loop(mixer: XLMixer, rope: Rope, x: Tensor) -> Tensor:
    """h~ = [SG(h_(s-1)), h_s]; q from h_s, k and v from h~; head by head."""
    n, cached, outputs = mixer.segment_length, x[:, :0], []
    for start in range(0, x.shape[1], n):
        h = x[:, start : start + n]
        seen = torch.cat([cached.detach(), h], dim=1)
        first = start - cached.shape[1]
        cos, sin = rope.table(first, seen.shape[1], x.device, x.dtype)
        q = rotate(mixer.heads_of(mixer.q_proj(h)), cos[start - first :], sin[start - first :])
        k, v = rotate(mixer.heads_of(mixer.k_proj(seen)), cos, sin), mixer.heads_of(mixer.v_proj(seen))
        ahead = torch.arange(first, start + h.shape[1]) > torch.arange(start, start + h.shape[1]).unsqueeze(1)
        heads = []
        for head in range(mixer.heads):
            own = head // (mixer.heads // mixer.kv_heads)
            scores = q[:, :, head] @ k[:, :, own].transpose(-1, -2) / mixer.d_head**0.5
            heads.append(scores.masked_fill(ahead, -torch.inf).softmax(-1) @ v[:, :, own])
        outputs.append(torch.stack(heads, dim=2))
        cached = h
    return mixer.o_proj(torch.cat(outputs, dim=1).flatten(2))


@settings(max_examples=15, deadline=None)
@given(segment=st.integers(1, 5), length=st.integers(1, 17), kv_heads=st.sampled_from([1, 2, 4]))
def test_all_segments_at_once_equal_the_loop_with_gradients(segment: int, length: int, kv_heads: int) -> None:
    mixer, rope = mixer_of(4, kv_heads, segment)
    x = torch.randn(2, length, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, length, 12, dtype=torch.float64)
    found, _ = mixer(x, None, position=0, rope=rope)
    expected = segment_loop(mixer, rope, x)
    torch.testing.assert_close(found, expected, **CLOSE)
    leaves = [x, *mixer.parameters()]
    gradients = [torch.autograd.grad((y * weight).sum(), leaves, allow_unused=True) for y in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_no_layer_learns_from_a_later_segments_loss() -> None:
    """Three layers: the loss of the fourth segment reaches no layer's inputs before it, though its outputs depend on
    three segments further back."""
    model, ids = decoder("xl", trunk={"layers": 3}), tokens(2, 4 * N)
    inputs: list[Tensor] = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    loss = model.nll(ids)[:, 3 * N :].sum()
    for gradient in torch.autograd.grad(loss, inputs):
        assert not gradient[:, : 3 * N].any()
        assert gradient[:, 3 * N : -1].abs().sum((0, 2)).all()
    with torch.no_grad():
        other = ids.clone()
        other[:, 2] += 1
        assert (model.nll(ids)[:, 3 * N :] - model.nll(other % 31)[:, 3 * N :]).abs().max() > 1e-9


def test_a_cache_never_reaches_into_the_next_document() -> None:
    model, ids = decoder("xl"), tokens()
    with torch.no_grad():
        _, state = model(ids[:, : 2 * N])
        alone, after = model(ids[:, 2 * N :])[0], model(ids[:, 2 * N :], state)[0]
        assert (alone - after).abs().amax((0, 2)).min() > 1e-6  # a state that is passed on is used
        torch.testing.assert_close(model(ids[:, 2 * N :])[0], alone, rtol=0, atol=0)
    for layer in state.layers:
        assert isinstance(layer.cached, KeyValue) and not layer.cached.k.requires_grad


@pytest.mark.parametrize("arm", ["xl", "compressive", "memorizing"])
def test_gradients_under_bfloat16_autocast_are_those_of_float32(arm: str) -> None:
    """The projections of cached inputs have a backward pass of their own: in bfloat16 it is the same up to rounding."""
    model, ids = Decoder(config(arm), seed=0), tokens()
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = model.loss(ids)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    plain, low = gradients
    assert low.dtype == torch.float32 and low.isfinite().all()
    assert torch.cosine_similarity(plain, low, dim=0) > 0.99
