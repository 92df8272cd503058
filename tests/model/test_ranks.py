"""Sequences shared by ranks: losses and gradients are those of one rank, and what is exchanged does not grow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from bench.sequence import Counting
from model.decoder import Decoder
from model.ranks import Ranks
from tests.model.ranks import on_ranks
from tests.model.tiny import N, decoder, tokens

SPLIT = ("infini-linear", "infini-delta", "local", "window", "linear", "deltanet")
CASES: dict[str, dict[str, Any]] = {
    **{arm: {"arm": arm} for arm in SPLIT},
    "learned memory": {"arm": "infini-delta", "initial_memory": "learned"},
    "literal": {"arm": "infini-linear", "empty_memory": "literal"},
    "gate by token": {"arm": "infini-delta", "gate": "token"},
    "large features": {"arm": "infini-delta", "feature_map": "dpfp2"},
}
MORE: dict[str, dict[str, Any]] = {"masked": {"arm": "infini-delta"}, "recomputed": {"arm": "infini-delta"}}
"""Of how a model is trained."""


def wanted(batch: Tensor) -> Tensor:
    """Targets asked for: some, and none at all in the second quarter."""
    marked = torch.rand(batch.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    quarter = batch.shape[1] // 4
    marked[:, quarter + 1 : 2 * quarter + 1] = False
    return marked


def gradients(model: Decoder, batch: Tensor, *, masked: bool = False) -> dict[str, Tensor]:
    """Of the summed squared nll by the name of a parameter, and the nll itself; this rank's part of each."""
    model.zero_grad()
    nll, _ = model.training_nll(batch, wanted(batch) if masked else None)
    nll.square().sum().backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    return {"nll": nll.detach(), **found}


SEGMENTS = {2: 3, 4: 1}
"""Of a rank, by the number of ranks."""


def all_cases(ranks: Ranks) -> dict[str, dict[str, Tensor]]:
    """Every case on ``ranks``; what one rank would have is the sum of theirs."""
    length, found = ranks.size * SEGMENTS[ranks.size] * N, {}
    for name, case in (CASES | MORE).items():
        model = decoder(**case)
        model.split_sequences(ranks)
        model.activation_checkpointing = name == "recomputed"
        found[name] = gradients(model, tokens(2, length), masked=name == "masked")
    return found


def bytes_sent(ranks: Counting, length: int) -> dict[str, tuple[int, int]]:
    """By arm: bytes that this rank hands on in the forward pass, and in a training step."""
    found = {}
    for arm in SPLIT:
        model = decoder(arm).float()
        model.split_sequences(ranks)
        ranks.sent = 0
        with torch.no_grad():
            model.training_nll(tokens(1, length))
        forward, ranks.sent = ranks.sent, 0
        gradients(model, tokens(1, length))
        found[arm] = forward, ranks.sent
    return found


def bfloat16(ranks: Ranks) -> dict[str, Tensor]:
    """Gradients under autocast, of a model in float32."""
    model = decoder("infini-delta").float()
    model.split_sequences(ranks)
    with torch.autocast("cpu", torch.bfloat16):
        return gradients(model, tokens(2, 4 * N))


def everything() -> dict[Any, Any]:
    """On four ranks, and on two pairs of them (each pair by itself)."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    pair = Counting(pairs[dist.get_rank() // 2])
    sent = [bytes_sent(pair, segments * N) for segments in (4, 32)]
    return {4: all_cases(Ranks()), 2: all_cases(pair), "sent": sent, "bfloat16": bfloat16(pair)}


@pytest.fixture(scope="module")
def found() -> list[dict[Any, Any]]:
    """What each of four ranks says."""
    return on_ranks(4, everything)


@pytest.mark.parametrize("size", SEGMENTS)
def test_losses_and_gradients_equal_those_of_one_rank(found: list[dict[Any, Any]], size: int) -> None:
    for name, case in (CASES | MORE).items():
        alone = gradients(decoder(**case), tokens(2, size * SEGMENTS[size] * N), masked=name == "masked")
        for part, expected in alone.items():
            together = torch.stack([of_rank[size][name][part] for of_rank in found[:size]]).sum(0)
            torch.testing.assert_close(
                together, expected, rtol=1e-10, atol=1e-12, msg=lambda m, at=(name, part): f"{at}: {m}"
            )


def test_bytes_exchanged_do_not_depend_on_the_length(found: list[dict[Any, Any]]) -> None:
    short, long = found[0]["sent"]
    assert short == long
    d, kv_heads, layers, number = 4, 2, 2, 4
    affine, sums = d * 2 * d, d * (d + 1)
    expected = {
        "local": 0,
        "window": 2 * (N - 1) * d,
        "infini-linear": sums,
        "linear": sums,
        "infini-delta": d + affine,
        "deltanet": affine,
    }
    for arm, per_head in expected.items():
        forward = per_head * kv_heads * layers * number
        backward = 0 if arm == "window" else forward  # the first rank has nobody before it to hand a gradient to
        assert short[arm] == (forward, forward + backward), arm


def test_gradients_in_bfloat16_are_near_those_in_float32(found: list[dict[Any, Any]]) -> None:
    alone = gradients(decoder("infini-delta"), tokens(2, 4 * N))
    for part, expected in alone.items():
        together = torch.stack([of_rank["bfloat16"][part] for of_rank in found[:2]]).sum(0).double()
        assert (together - expected).norm() < 0.05 * expected.norm(), part


@pytest.mark.parametrize("arm", ["full", "memorizing", "rmt"])
def test_arms_that_need_every_token_are_refused(arm: str) -> None:
    with pytest.raises(ValueError, match=r"ranks cannot share its sequences \(allowed: infini, local"):
        decoder(arm).split_sequences(FakeRanks(0, 2))


class FakeRanks(Ranks):
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.group = rank, size, None


def test_what_cannot_be_shared_out_is_refused() -> None:
    for options, field in (({"bptt_segments": 2}, "bptt_segments = 2"), ({"state_dtype": "bfloat16"}, "state_dtype")):
        with pytest.raises(ValueError, match=field):
            decoder("infini-delta", **options).split_sequences(FakeRanks(0, 2))
    model = decoder("infini-delta")
    model.split_sequences(FakeRanks(1, 2))
    with pytest.raises(ValueError, match=f"sequences of {3 * N} tokens: allowed on 2 ranks"):
        model.training_nll(tokens(1, 3 * N))
    model.chunk_tokens = N
    with pytest.raises(ValueError, match="chunk_tokens = 8"):
        model.training_nll(tokens(1, 4 * N))
    with pytest.raises(ValueError, match="split"):
        model.nll(tokens(1, 4 * N))
