"""The recurrent memory transformer against a loop over segments that frames each by hand (arXiv:2207.06881)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.cost import cost
from model.decoder import Decoder
from model.mixers import Mixer
from tests.model.tiny import N, attended_pairs, config, decoder, tokens

CLOSE = {"rtol": 0, "atol": 1e-10}


def by_hand(model: Decoder, ids: Tensor, *, cut_every: int | None = None) -> Tensor:
    """Logits [B, T, V]: vanilla causal attention over [mem; segment; mem], the last outputs are the next mem."""
    vanilla = [_full(layer.self_attn) for layer in model.layers]
    m = model.config.mixer.memory_tokens
    memory, logits = model.stream.memory.expand(len(ids), -1, -1), []
    for number, segment in enumerate(ids.split(N, 1)):
        if cut_every and number and number % cut_every == 0:
            memory = memory.detach()
        x = torch.cat([memory, model.embed_tokens(segment), memory], dim=1)
        for layer, mixer in zip(model.layers, vanilla, strict=True):
            y, _ = mixer(layer.input_layernorm(x), None, position=0, rope=model.rope)
            x = x + y
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        x = model.norm(x)
        logits.append(model.project(x[:, m : m + segment.shape[1]]))
        memory = x[:, m + segment.shape[1] :]
    return torch.cat(logits, dim=1)


def _full(mixer: Mixer) -> Mixer:
    """Vanilla attention with the very parameters of ``mixer``."""
    vanilla = decoder("full").mixers()[0]
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        setattr(vanilla, name, getattr(mixer, name))
    return vanilla


@pytest.mark.parametrize("cut_every", [None, 1, 2])
def test_equals_the_loop_over_framed_segments(cut_every: int | None) -> None:
    model, ids = decoder("rmt", bptt_segments=cut_every), tokens(2, 4 * N + 3)
    wanted = by_hand(model, ids, cut_every=cut_every)
    logits, _ = model(ids)
    torch.testing.assert_close(logits, wanted, **CLOSE)
    weights = torch.randn(logits.shape, dtype=logits.dtype, generator=torch.Generator().manual_seed(2))
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad((logits * weights).sum(), parameters, retain_graph=True)
    expected = torch.autograd.grad((wanted * weights).sum(), parameters)
    for name, a, b in zip(names, found, expected, strict=True):
        torch.testing.assert_close(a, b, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def test_truncation_keeps_the_outputs_and_cuts_the_gradient() -> None:
    ids = tokens(1, 4 * N)
    reach = {}
    for cut_every in (None, 1, 3):
        model = decoder("rmt", bptt_segments=cut_every)
        last = model(ids)[0][:, -1].sum()
        (reach[cut_every],) = torch.autograd.grad(last, [model.stream.memory])
    # the learned memory enters the first segment: three segments later only uncut recurrence still leads there
    assert reach[None].abs().max() > 1e-6
    assert reach[1].abs().max() == reach[3].abs().max() == 0


def test_the_memory_carries_what_left_the_segment() -> None:
    """With another first segment the outputs three segments later differ, though attention ends at the segment."""
    model, ids = decoder("rmt"), tokens(2, 3 * N)
    other = ids.clone()
    other[:, :N] = tokens(2, N, seed=9)
    with torch.no_grad():
        assert (model(ids)[0] - model(other)[0])[:, 2 * N :].abs().min() > 0
        _, state = model(ids)
    assert state.carried is not None and state.carried.shape == (2, 3, 16)
    assert state.live_kv_elements() == 0 and state.elements() == 2 * 3 * 16


def test_flops_equal_the_counted_ones() -> None:
    """But for the squares that the plain kernel computes where attention is causal."""
    model, length = Decoder(config("rmt"), seed=0), 3 * N + 2
    trunk, m = model.config.trunk, 3
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.training_nll(tokens(1, length))
    squares = trunk.layers * (3 * (N + 2 * m) ** 2 + (m + 2) ** 2)
    unseen = 4 * trunk.heads * trunk.d_head * (squares - trunk.layers * attended_pairs(model.config, length))
    predicting_nothing = 2 * trunk.dim * model.config.vocab_size  # the last token
    counted = counter.get_total_flops() - unseen + predicting_nothing
    assert cost(model.config, length).flops_per_token_forward * length == counted
