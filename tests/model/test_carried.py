"""A state that training carries on: one long document, with gradients cut where a sequence begins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from model.arms import goes_on_alone, why_not_carried
from model.carried import from_tensors, to_tensors, together
from model.decoder import Decoder, DecoderState
from tests.model.test_bounded import _parts
from tests.model.tiny import ARMS, N, config, decoder, tokens

BOUNDED = [arm for arm in ARMS if not why_not_carried(config(arm).mixer)]
LENGTH, WINDOWS = 2 * N, 5
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-10}


def leaves(state: DecoderState) -> list[Any]:
    return tree_leaves(_parts(state))


def gradients(model: Decoder, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, model.parameters(), strict=True)]


def windows(model: Decoder, ids: Tensor) -> tuple[Tensor, Tensor]:
    """nll [B, windows, LENGTH - 1] of the sequences one after the other, and the sum of auxiliary losses."""
    state, found, extra = None, [], torch.zeros((), dtype=torch.float64)
    for window in torch.split(ids, LENGTH, 1):
        nll, auxiliary, state = model.carried_nll(window, state)
        found.append(nll)
        extra = extra if auxiliary is None else extra + auxiliary
    assert state is not None and state.position == ids.shape[1]
    assert not any(leaf.requires_grad for leaf in leaves(state) if isinstance(leaf, Tensor))
    return torch.stack(found, 1), extra


@pytest.mark.parametrize("chunk", [None, N])
@pytest.mark.parametrize("arm", BOUNDED)
def test_losses_are_those_of_one_long_document(arm: str, chunk: int | None) -> None:
    model, ids = decoder(arm), tokens(3, WINDOWS * LENGTH)
    with torch.no_grad():
        whole = model.nll(ids)
        model.chunk_tokens = chunk
        found, _ = windows(model, ids)
    inside = [slice(start, start + LENGTH - 1) for start in range(0, ids.shape[1], LENGTH)]
    torch.testing.assert_close(found, torch.stack([whole[:, part] for part in inside], 1), **CLOSE)
    if arm != "local":  # else nothing was carried
        anew = model.nll(ids.reshape(-1, LENGTH)).view_as(found)
        assert (anew - found)[:, 1:].abs().max() > 1e-3


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("arm", ["infini-linear", "infini-delta", "rmt"])
def test_gradients_are_those_of_one_long_document_cut_at_every_sequence(arm: str, recompute: bool) -> None:
    """Against another way: the arms that can cut a single pass every so many segments."""
    ids = tokens(2, WINDOWS * LENGTH)
    long = decoder(arm, bptt_segments=LENGTH // N)
    keep = torch.ones(ids.shape[1] - 1, dtype=torch.bool)
    keep[LENGTH - 1 :: LENGTH] = False  # the first token of a sequence is no target
    expected = gradients(long, long.nll(ids)[:, keep].sum())
    model = decoder(arm)
    model.activation_checkpointing = recompute
    for found, wanted in zip(gradients(model, windows(model, ids)[0].sum()), expected, strict=True):
        torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("arm", BOUNDED)
def test_gradients_are_those_of_a_loop_that_detaches(arm: str) -> None:
    model, ids = decoder(arm).train(), tokens(2, WINDOWS * LENGTH)
    state, loss = None, torch.zeros((), dtype=torch.float64)
    for window in torch.split(ids, LENGTH, 1):
        logits, state = model(window, state)
        loss = loss - logits[:, :-1].log_softmax(-1).gather(-1, window[:, 1:, None]).sum()
        loss = loss + sum(layer.auxiliary for layer in state.layers if layer.auxiliary is not None)
        state = state.detach()
    nll, auxiliary = windows(model, ids)
    for found, wanted in zip(gradients(model, nll.sum() + auxiliary), gradients(model, loss), strict=True):
        torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("arm", BOUNDED)
def test_rows_are_kept_put_together_and_saved_one_by_one(arm: str) -> None:
    model, ids = decoder(arm), tokens(4, 4 * LENGTH)
    with torch.no_grad():
        expected, _ = windows(model, ids)
        kept: list[DecoderState] = []
        for row in range(4):  # read alone, for unequally long where that can go on together
            read = LENGTH if goes_on_alone(model.config.mixer) else (1 + row % 2) * LENGTH
            kept.append(model.carried_nll(ids[row : row + 1, :read], None)[2])
        kept = [from_tensors(model, dict(to_tensors(state))) for state in kept]
        starts = [state.position for state in kept]
        following = torch.stack([ids[row, start : start + LENGTH] for row, start in enumerate(starts)])
        nll, _, after = model.carried_nll(following, together(kept))
    for row, start in enumerate(starts):
        torch.testing.assert_close(nll[row], expected[row, start // LENGTH], **CLOSE)
    for row in range(4):
        alone = after.rows(torch.tensor([row]))
        again = from_tensors(model, to_tensors(alone))
        assert len(leaves(again)) == len(leaves(alone)) and again.position == alone.position
        for one, other in zip(leaves(again), leaves(alone), strict=True):
            assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_what_grows_with_the_book_is_not_carried() -> None:
    assert set(ARMS) - set(BOUNDED) == {"full", "landmark"}
    assert "grows with the book (allowed: infini, local, window," in str(why_not_carried(config("full").mixer))
    assert "cache_tokens = None" in str(why_not_carried(config("memorizing", cache_tokens=None).mixer))
