"""Landmark attention against loops straight from arXiv:2305.16300."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.mixers import landmark
from model.mixers.landmark import LandmarkMixer
from model.rope import Rope, rotate
from tests.model.tiny import decoder, tokens

CLOSE = {"rtol": 0, "atol": 1e-10}


def turned(x: Tensor, position: int, rope: Rope) -> Tensor:
    """One vector [d] at a position."""
    cos, sin = rope.table(position, 1, x.device, x.dtype)
    return rotate(x.view(1, 1, -1), cos, sin).view(-1)


def reference(mixer: LandmarkMixer, x: Tensor, rope: Rope, *, training: bool) -> Tensor:
    """Grouped softmax (eqs. 1-3) query by query over x [T, C] with landmarks in it: [T, H, d]."""
    size, near, top = mixer.size, mixer.near, mixer.config.top_blocks
    q, k, v = (t.squeeze(0) for t in mixer.project(x.unsqueeze(0)))
    y = torch.zeros_like(q)
    for i in range(len(x)):
        own = i // size
        for h in range(mixer.heads):
            g = h // (mixer.heads // mixer.kv_heads)

            def score(j: int, block: int, i: int = i, h: int = h, g: int = g) -> Tensor:
                """The key of token j as if its block were number ``block``."""
                key = turned(k[j, g], block * size + j % size, rope)
                return turned(q[i, h], i, rope) @ key / math.sqrt(mixer.d_head)

            places = {block: block for block in range(own + 1)}
            if not training:
                start = own - near
                # blocks further than ``top`` before the local context all stand one block beyond that. Negative
                # places are moved into the positive by counting everything from there.
                places = {b: b if b >= start - top else start - top - 1 for b in range(own + 1)}
                far = [b for b in range(own) if b < start]
                ranked = sorted(far, key=lambda b: (-round(4096 * placed(score, b, places, size).item()), -b))
                places = {b: p for b, p in places.items() if b >= start or b in ranked[:top]}
            group = [(j, score(j, own)) for j in range(own * size, i + 1) if j % size != size - 1]
            group += [((b + 1) * size - 1, placed(score, b, places, size)) for b in places if b < own]
            weights = torch.stack([s for _, s in group]).softmax(0)
            for (j, _), weight in zip(group, weights, strict=True):
                if j // size == own:
                    y[i, h] += weight * v[j, g]
                    continue
                block = j // size
                regular = range(block * size, (block + 1) * size - 1)
                spread = torch.stack([score(r, places[block]) for r in regular]).softmax(0)
                y[i, h] += weight * (spread @ v[regular.start : regular.stop, g])
    return y


def placed(score: Callable[[int, int], Tensor], block: int, places: dict[int, int], size: int) -> Tensor:
    return score((block + 1) * size - 1, places[block])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("near", [1, 2])
def test_both_forms_equal_the_papers_equations(training: bool, near: int) -> None:
    model = decoder("landmark", segment_length=4 * near)
    mixer = model.mixers()[0].train(training)
    x = torch.randn(2, 38, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        wanted = torch.stack([reference(mixer, row, model.rope, training=training) for row in x])
        y, _ = mixer(x, None, position=0, rope=model.rope)
        torch.testing.assert_close(y, mixer.o_proj(wanted.flatten(-2)), **CLOSE)


def test_pieces_of_queries_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = decoder("landmark"), tokens(2, 61)
    for training in (True, False):
        model.train(training)
        whole = model.nll(ids)
        model.zero_grad()
        whole.sum().backward()
        wanted = {name: p.grad for name, p in model.named_parameters()}
        with monkeypatch.context() as patch:
            patch.setattr(landmark, "AT_ONCE", 1)
            model.zero_grad()
            pieces = model.nll(ids)
            torch.testing.assert_close(pieces, whole, **CLOSE)
            pieces.sum().backward()
            for name, p in model.named_parameters():
                torch.testing.assert_close(p.grad, wanted[name], **CLOSE)


def test_both_forms_agree_while_every_block_is_within_reach() -> None:
    """One local block before the query's own and two retrieved ones: four blocks of four tokens."""
    model, ids = decoder("landmark"), tokens(2, 29)
    with torch.no_grad():
        retrieved, seen_whole = model(ids)[0], model.train()(ids)[0]
        torch.testing.assert_close(retrieved[:, :16], seen_whole[:, :16], **CLOSE)
        assert not torch.allclose(retrieved[:, 20:], seen_whole[:, 20:], atol=1e-3)


def test_the_store_grows_and_what_is_local_does_not() -> None:
    model = decoder("landmark")
    per_token = 2 * 2 * 2 * 4  # layers, keys and values, heads of 4
    for length in (8, 40, 80):
        with torch.no_grad():
            _, state = model(tokens(1, length))
        blocks = length // 4
        assert state.elements() == (blocks - 1) * 5 * per_token
        assert state.live_kv_elements() == 5 * per_token


def test_landmarks_take_no_part_but_through_their_blocks() -> None:
    """Nobody reads a landmark's value: with W_v x = 0 at landmarks and without, the outputs are the same."""
    model = decoder("landmark", trunk={"layers": 1})
    mixer = model.mixers()[0]
    x = torch.randn(1, 25, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for training in (True, False):
        mixer.train(training)
        with torch.no_grad():
            y, _ = mixer(x, None, position=0, rope=model.rope)
            project = mixer.project

            def without_values(x: Tensor, project=project) -> tuple[Tensor, Tensor, Tensor]:
                q, k, v = project(x)
                v = v.clone()
                v[:, 4::5] = 1e6
                return q, k, v

            mixer.project = without_values
            torch.testing.assert_close(mixer(x, None, position=0, rope=model.rope)[0], y, **CLOSE)
            mixer.project = project
