"""FSDP2 and shared sequences together: four ranks are two groups of two, each with sequences of its own, parameters and
gradients sharded over all four; losses and gradients are those of one rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from model.ranks import Ranks
from stages.training.pretrain.loop import Runtime, sequence_group, shard
from tests.model.ranks import on_ranks
from tests.model.tiny import N, decoder, tokens

ARMS = ("infini-linear", "infini-delta", "local", "window", "linear", "deltanet")
ROWS, LENGTH = 4, 4 * N


def on_four() -> dict[str, dict[str, Tensor]]:
    """By arm: the whole gradients as every rank sees them, the share of a rank, and the sum of this rank's nll."""
    runtime = Runtime(device=torch.device("cpu"), rank=dist.get_rank(), world_size=4, sequence_ranks=2)
    ranks, found = Ranks(sequence_group(runtime)), {}
    mine = tokens(ROWS, LENGTH)[runtime.rank // 2 * 2 :][:2]
    for recompute in (False, True):
        for arm in ARMS:
            model = decoder(arm)
            model.split_sequences(ranks)
            model.activation_checkpointing = recompute
            shard(model)
            nll, _ = model.training_nll(mine)
            (nll.square().sum() * 4).backward()  # FSDP averages over ranks
            grads: dict[str, Tensor] = {}
            for name, p in model.named_parameters():
                assert isinstance(p, DTensor) and p.device_mesh.size() == 4
                grads[name] = torch.zeros(p.shape) if p.grad is None else p.grad.full_tensor()  # type: ignore[attr-defined]
            local = sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor))
            found[f"{arm} {recompute}"] = {**grads, "nll": nll.detach().sum(), "local": torch.tensor(local)}
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, dict[str, Tensor]]]:
    return on_ranks(4, on_four)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("arm", ARMS)
def test_losses_and_gradients_of_a_mesh_equal_those_of_one_rank(found: Any, arm: str, recompute: bool) -> None:
    model = decoder(arm)
    nll, _ = model.training_nll(tokens(ROWS, LENGTH))
    nll.square().sum().backward()
    of_ranks = [rank[f"{arm} {recompute}"] for rank in found]
    torch.testing.assert_close(sum(rank["nll"] for rank in of_ranks), nll.detach().sum(), rtol=1e-12, atol=1e-12)
    for rank in of_ranks:
        for name, p in model.named_parameters():
            expected = torch.zeros_like(p) if p.grad is None else p.grad
            torch.testing.assert_close(
                rank[name].to(expected.dtype), expected, rtol=1e-10, atol=1e-12, msg=lambda m, at=name: f"{at}: {m}"
            )
    whole = sum(p.numel() for p in model.parameters())
    assert max(int(rank["local"]) for rank in of_ranks) < 0.4 * whole, "each rank holds about a quarter"
