"""Compressive Transformers against a segment loop written from the paper's algorithms; who learns from which loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import MixerConfig, TrunkConfig
from model.decoder import Decoder
from model.mixers.compressive import CompressiveMixer, Queue
from model.rope import Rope, rotate
from tests.model.tiny import N, config, decoder, tokens

CLOSE = {"rtol": 0, "atol": 1e-10}
DIM = 12


def convolve(mixer: CompressiveMixer, h: Tensor) -> Tensor:
    """f_c: [B, n, C] -> [B, n / c, C], tap by tap."""
    c = mixer.config.compression
    taps = mixer.compress.weight.view(DIM, c, DIM).unbind(1)
    return sum((h[:, i::c] @ tap.T for i, tap in enumerate(taps)), torch.zeros(()))


def softmax_heads(mixer: CompressiveMixer, q: Tensor, k: Tensor, v: Tensor, unseen: Tensor | None = None) -> Tensor:
    heads = []
    for head in range(mixer.heads):
        own = head // (mixer.heads // mixer.kv_heads)
        scores = q[:, :, head] @ k[:, :, own].transpose(-1, -2) / mixer.d_head**0.5
        if unseen is not None:
            scores = scores.masked_fill(unseen, -torch.inf)
        heads.append(scores.softmax(-1) @ v[:, :, own])
    return torch.stack(heads, dim=2)


def segment_loop(mixer: CompressiveMixer, rope: Rope, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Algorithm 1 (memories) and 2 (attention reconstruction), one segment after another."""
    n, c = mixer.segment_length, mixer.config.compression
    longest = mixer.config.compressed_tokens or n
    memory, memory_at = x[:, :0], torch.arange(0)  # layer inputs and where they stand
    queue, queue_at = x[:, :0], torch.arange(0)
    w_k, w_v = mixer.k_proj.weight, mixer.v_proj.weight
    table = rope.table(0, x.shape[1], x.device, x.dtype)
    outputs, losses = [], []
    for start in range(0, x.shape[1], n):
        h, at = x[:, start : start + n], torch.arange(start, min(start + n, x.shape[1]))
        seen = torch.cat([queue.detach(), memory.detach(), h], dim=1)
        seen_at = torch.cat([queue_at, memory_at, at])
        q, k = (
            rotate(mixer.heads_of(F.linear(inputs, w)), *(t[where] for t in table))
            for inputs, w, where in ((h, mixer.q_proj.weight, at), (seen, w_k, seen_at))
        )
        outputs.append(softmax_heads(mixer, q, k, mixer.heads_of(F.linear(seen, w_v)), seen_at > at.unsqueeze(1)))
        if memory.shape[1]:
            old, new = memory.detach(), convolve(mixer, memory.detach())
            if len(at) == n:
                by_content = [
                    softmax_heads(
                        mixer,
                        mixer.heads_of(mixer.q_proj(h)).detach(),
                        *(mixer.heads_of(F.linear(inputs, w.detach())) for w in (w_k, w_v)),
                    )
                    for inputs in (old, new)
                ]
                losses.append((by_content[0] - by_content[1]).square().mean())
            queue = torch.cat([queue, new], dim=1)[:, -longest:]
            queue_at = torch.cat([queue_at, memory_at[c - 1 :: c]])[-longest:]
        memory, memory_at = h, at
    reconstruction = torch.stack(losses).mean() * mixer.config.reconstruction_weight if losses else None
    return mixer.o_proj(torch.cat(outputs, dim=1).flatten(2)), reconstruction


@settings(max_examples=25, deadline=None)
@example(compression=2, slots_per_segment=2, shown=5, segments=5, rest=3, kv_heads=2)
@given(
    compression=st.integers(1, 3),
    slots_per_segment=st.integers(1, 3),
    shown=st.integers(1, 12),
    segments=st.integers(1, 6),
    rest=st.integers(0, 8),
    kv_heads=st.sampled_from([1, 2, 4]),
)
def test_all_segments_at_once_equal_the_loop_with_both_losses_gradients(
    compression: int, slots_per_segment: int, shown: int, segments: int, rest: int, kv_heads: int
) -> None:
    n = compression * slots_per_segment
    options = MixerConfig(
        kind="compressive",
        segment_length=n,
        compression=compression,
        compressed_tokens=shown,
        reconstruction_weight=0.7,
    )
    torch.manual_seed(0)
    trunk = TrunkConfig(dim=DIM, layers=1, heads=4, kv_heads=kv_heads, head_dim=4)
    mixer, rope = CompressiveMixer(trunk, options).double(), Rope(4, 10000.0)
    length = segments * n + rest % n
    x = torch.randn(2, length, DIM, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, length, DIM, dtype=torch.float64)
    found, state = mixer(x, None, position=0, rope=rope)
    expected, reconstruction = segment_loop(mixer, rope, x)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert (state.auxiliary is None) == (reconstruction is None) == (segments == 1)

    leaves = [x, *mixer.parameters()]
    gradients = [torch.autograd.grad((y * weight).sum(), leaves, allow_unused=True) for y in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours is None) == (theirs is None)  # the compression: it does not learn from the outputs
        torch.testing.assert_close(ours, theirs, **CLOSE) if ours is not None else None
    if state.auxiliary is not None:
        torch.testing.assert_close(state.auxiliary, reconstruction, **CLOSE)
        ours, theirs = (
            torch.autograd.grad(loss, leaves, allow_unused=True) for loss in (state.auxiliary, reconstruction)
        )
        assert [g is not None for g in ours] == [leaf is mixer.compress.weight for leaf in leaves]
        torch.testing.assert_close(ours[-1], theirs[-1], **CLOSE)


def test_each_loss_trains_its_own_part_of_the_model() -> None:
    model, ids = decoder("compressive").train(), tokens(2, 5 * N)
    nll, auxiliary = model.training_nll(ids)
    assert auxiliary is not None
    for loss, own in ((nll.sum(), False), (auxiliary, True)):
        model.zero_grad()
        loss.backward()
        learning = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert learning == {name for name, _ in model.named_parameters() if ("compress" in name) == own}


def test_reconstruction_is_summed_over_layers_weighed_and_training_only() -> None:
    ids = tokens(2, 4 * N)
    plain, doubled = (decoder("compressive", reconstruction_weight=w).train() for w in (1.0, 2.0))
    nll, auxiliary = plain.training_nll(ids)
    assert auxiliary is not None and auxiliary.item() > 0
    torch.testing.assert_close(doubled.training_nll(ids)[1], 2 * auxiliary)
    torch.testing.assert_close(plain.loss(ids), nll.mean() + auxiliary)
    single = decoder("compressive", trunk={"layers": 1}).train()
    single.load_state_dict(plain.state_dict(), strict=False)
    assert 0 < single.training_nll(ids)[1].item() < auxiliary.item()
    assert plain.training_nll(ids[:, :N])[1] is None  # nothing falls out of the cache yet
    assert decoder("compressive", reconstruction_weight=0.0).train().training_nll(ids)[1] is None
    with torch.no_grad():
        assert plain.training_nll(ids)[1] is None
    assert plain.eval().training_nll(ids)[1] is None
    torch.testing.assert_close(plain.training_nll(ids)[0], nll, **CLOSE)


def test_the_compression_learns_to_lose_less() -> None:
    model, ids = Decoder(config("compressive"), seed=0), tokens(4, 6 * N)
    compressions = [p for name, p in model.named_parameters() if "compress" in name]
    optimizer = torch.optim.Adam(compressions, lr=0.01)
    losses = []
    for _ in range(60):
        loss = model.training_nll(ids)[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_slots_outlive_the_cache_and_end_where_the_queue_does() -> None:
    """One layer, segments of 8, 5 slots of 2 tokens: a query sees 10 tokens behind its cache, in slots, and no more."""
    model, ids = decoder("compressive", trunk={"layers": 1}), tokens(1, 5 * N)
    query = 4 * N + 3  # its cache begins at 24, its slots at 14
    reached = []
    with torch.no_grad():
        expected = model(ids)[0][0, query]
        for token in range(query):
            other = ids.clone()
            other[0, token] = (other[0, token] + 1) % 31
            reached.append(not torch.allclose(model(other)[0][0, query], expected, rtol=0, atol=1e-12))
        _, state = model(ids[:, : query + 1])
    assert reached == [token >= 14 for token in range(query)]
    memory = state.layers[0].memory
    assert isinstance(memory, Queue)
    # slots from token 14 to the last: those shown, the cache's, the open segment's; no token waits
    assert memory.k.shape == memory.v.shape == (1, (query + 1 - 14) // 2, 2, 4) and memory.waiting.shape == (1, 0, 16)


def test_a_compression_that_does_not_divide_the_segment_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compression = 3: must divide segment_length = 8"):
        MixerConfig(kind="compressive", segment_length=8, compression=3)
