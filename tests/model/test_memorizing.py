"""Memorizing Transformers against retrieval written out token by token; the search; what is stored and what learns."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.decoder import Decoder
from model.mixers import memorizing
from model.mixers.memorizing import MemorizingMixer, PastKeyValues, largest
from model.mixers.xl import XLMixer
from model.rope import Rope
from tests.model.tiny import VOCAB, N, config, decoder, tokens

CLOSE = {"rtol": 0, "atol": 1e-10}
DIM = 12


def build(segment: int, kv_heads: int, cache_tokens: int | None, top_k: int) -> tuple[MemorizingMixer, Rope]:
    trunk = TrunkConfig(dim=DIM, layers=1, heads=4, kv_heads=kv_heads, head_dim=4)
    options = MixerConfig(kind="memorizing", segment_length=segment, cache_tokens=cache_tokens, top_k=top_k)
    torch.manual_seed(0)
    mixer = MemorizingMixer(trunk, options).double()
    with torch.no_grad():
        mixer.beta.copy_(torch.linspace(-1, 2, 4))
        mixer.log_scale.add_(torch.linspace(-0.5, 0.5, 4))
    return mixer, Rope(4, 10000.0)


def token_loop(mixer: MemorizingMixer, rope: Rope, x: Tensor) -> Tensor:
    """sec. 3.2, one query, head and stored token at a time; the local part is Transformer-XL's own mixer."""
    n, d, options = mixer.segment_length, mixer.d_head, mixer.config
    local, _ = XLMixer.mix(mixer, x, memorizing.LayerState(), position=0, rope=rope, knockout=None, keep_state=True)
    q = mixer.heads_of(mixer.q_proj(x))
    k, v = (mixer.heads_of(x.detach() @ p.weight.detach().T) for p in (mixer.k_proj, mixer.v_proj))
    rows = []
    for t in range(x.shape[1]):
        end = (t // n - 1) * n
        start = 0 if options.cache_tokens is None else max(0, end - options.cache_tokens)
        if end <= 0:
            rows.append(local[:, t])
            continue
        for_batch = []
        for b in range(len(x)):
            for_heads = []
            for h in range(mixer.heads):
                own, query = h // (mixer.heads // mixer.kv_heads), q[b, t, h] / q[b, t, h].norm()
                cosines = {j: query @ (k[b, j, own] / k[b, j, own].norm()) for j in range(start, end)}
                best = sorted(cosines, key=lambda j: -cosines[j].item())[: options.top_k]
                weights = (torch.stack([cosines[j] for j in best]) * mixer.log_scale[h].exp()).softmax(0)
                found, g = weights @ torch.stack([v[b, j, own] for j in best]), torch.sigmoid(mixer.beta[h])
                for_heads.append(g * found + (1 - g) * local[b, t, h])
            for_batch.append(torch.stack(for_heads))
        rows.append(torch.stack(for_batch))
    assert local.shape[-1] == d
    return mixer.o_proj(torch.stack(rows, dim=1).flatten(2))


@settings(max_examples=15, deadline=None)
@example(segment=3, length=14, cache_tokens=7, top_k=3, kv_heads=2, at_once=100)
@given(
    segment=st.integers(1, 5),
    length=st.integers(1, 23),
    cache_tokens=st.sampled_from([None, 1, 4, 7, 64]),
    top_k=st.integers(1, 6),
    kv_heads=st.sampled_from([1, 2, 4]),
    at_once=st.sampled_from([1, 100, 2**22]),
)
def test_blocks_of_queries_equal_the_equations_with_gradients(
    segment: int, length: int, cache_tokens: int | None, top_k: int, kv_heads: int, at_once: int
) -> None:
    mixer, rope = build(segment, kv_heads, cache_tokens, top_k)
    x = torch.randn(2, length, DIM, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, length, DIM, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memorizing, "SCORES_AT_ONCE", at_once)
        found, _ = mixer(x, None, position=0, rope=rope)
        expected = token_loop(mixer, rope, x)
        torch.testing.assert_close(found, expected, **CLOSE)
        leaves = [x, *mixer.parameters()]
        gradients = [torch.autograd.grad((y * weight).sum(), leaves, allow_unused=True) for y in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours is None) == (theirs is None)
        torch.testing.assert_close(ours, theirs, **CLOSE) if ours is not None else None


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 400),
    k=st.integers(1, 40),
    group=st.integers(2, 8),
    direct=st.integers(1, 64),
    masked=st.booleans(),
)
def test_the_largest_scores_are_found_whatever_the_groups(
    n: int, k: int, group: int, direct: int, masked: bool
) -> None:
    k = min(k, n)
    scores = torch.randn(2, 3, n, generator=torch.Generator().manual_seed(n))
    if masked:
        scores[..., n // 3 :] = -torch.inf
    values, indices = largest(scores, k, group, direct)
    torch.testing.assert_close(values.sort(-1).values, scores.topk(k).values.flip(-1), rtol=0, atol=0)
    torch.testing.assert_close(scores.gather(-1, indices), values, rtol=0, atol=0)
    assert all(len(set(row.tolist())) == k for row in indices.flatten(0, -2))


def test_one_layer_retrieves_the_ninth_of_twelve_or_the_one_named() -> None:
    def retrieving(layers: int, memory_layer: int | None = None) -> list[int]:
        trunk = TrunkConfig(dim=8, layers=layers, heads=1)
        mixer = MixerConfig(kind="memorizing", segment_length=4, memory_layer=memory_layer)
        model = Decoder(ModelConfig(trunk=trunk, mixer=mixer, vocab_size=5), seed=0)
        assert len(model.gate_parameters()) == 1
        return [i for i, m in enumerate(model.mixers()) if m.retrieves]

    assert [retrieving(layers) for layers in (12, 4, 2, 1)] == [[8], [2], [1], [0]]
    assert retrieving(12, 3) == [3]
    with pytest.raises(ValueError, match=r"memory_layer = 12: allowed are layers 0 to 11"):
        retrieving(12, 12)


def test_the_store_holds_what_left_the_cache_up_to_its_bound_and_no_gradient() -> None:
    model, ids = decoder("memorizing", cache_tokens=12), tokens(2, 5 * N)
    held = []
    for length in (2 * N - 1, 2 * N, 3 * N + 3, 5 * N):
        _, state = model(ids[:, :length])
        memory = state.layers[1].memory
        assert memory is None or (isinstance(memory, PastKeyValues) and not memory.k.requires_grad)
        held.append(0 if memory is None else len(memory))
        assert state.layers[0].memory is None
    assert held == [0, N, 12, 12]
    x = model.layers[1].input_layernorm(
        model.layers[0](model.embed_tokens(ids), None, {"position": 0, "rope": model.rope})[0]
    )
    k = model.mixers()[1].project(x)[1][:, 4 * N - 12 : 4 * N].transpose(1, 2)  # without position
    torch.testing.assert_close(memory.k, k / k.norm(dim=-1, keepdim=True), **CLOSE)


def test_a_query_reaches_exactly_the_stored_tokens_and_its_local_context() -> None:
    """One layer, 12 tokens stored. All retrieved: those behind the cache and all after them. Two: fewer."""
    reached = {}
    for top_k in (32, 2):
        model, ids = decoder("memorizing", trunk={"layers": 1}, top_k=top_k), tokens(1, 5 * N)
        query = 4 * N + 3  # its cache begins at 24, its store at 12
        with torch.no_grad():
            expected = model(ids)[0][0, query]
            found = []
            for token in range(query):
                other = ids.clone()
                other[0, token] = (other[0, token] + 1) % VOCAB
                found.append(not torch.allclose(model(other)[0][0, query], expected, rtol=0, atol=1e-12))
        reached[top_k] = found
    assert reached[32] == [token >= 12 for token in range(query)]
    assert all(reached[2][24:]) and not any(reached[2][:12])
    assert 0 < sum(reached[2][12:24]) < 12


def test_gate_and_scale_learn_and_open_towards_retrieval() -> None:
    model, ids = Decoder(config("memorizing"), seed=0).double(), tokens(3, 4 * N)
    mixer = model.mixers()[1]
    assert model.gates().tolist() == [[0.5] * 4]
    torch.testing.assert_close(mixer.log_scale.exp(), torch.full((4,), math.sqrt(mixer.d_head)).double())
    model.loss(ids).backward()
    assert (mixer.beta.grad.abs() > 1e-9).all() and (mixer.log_scale.grad.abs() > 1e-9).all()
    with torch.no_grad():
        mixer.beta.fill_(-60)  # closed: Transformer-XL
        xl = decoder("xl")
        xl.load_state_dict(model.state_dict(), strict=False)
        torch.testing.assert_close(model(ids)[0], xl(ids)[0], **CLOSE)
        mixer.beta.fill_(60)
        assert (model(ids)[0] - xl(ids)[0])[:, 2 * N :].abs().amax((0, 2)).min() > 1e-6
        torch.testing.assert_close(model(ids)[0][:, : 2 * N], xl(ids)[0][:, : 2 * N], **CLOSE)
