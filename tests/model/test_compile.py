"""Layers compiled with dynamic lengths: the numbers stay, and graphs are as many as cases, whatever the lengths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.tiny import N, decoder, tokens

TRAINING = {"linear": 2, "deltanet": 2}
"""Graphs where there is not one: lengths that are a whole number of the recurrence's chunks, and others."""
DECODING = {"infini-delta": 5, "infini-linear": 5, "local": 5, "window": 2, "linear": 2, "deltanet": 2}
"""Graphs of a prefill and of decoding over any number of segments: an open segment that grows, is completed, has just
begun, and holds one token only (0 and 1 are cases of their own to the compiler)."""


class Counting:
    """A backend that counts the graphs it is given, and runs them as they are."""

    graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


ARMS = [
    "infini-delta",
    *(pytest.param(arm, marks=pytest.mark.slow) for arm in ("infini-linear", "local", "window", "linear", "deltanet")),
]


@pytest.mark.parametrize("arm", ARMS)
def test_one_graph_trains_every_length_and_a_handful_decode(arm: str) -> None:
    model, plain, counted = decoder(arm).float(), decoder(arm).float(), Counting()
    model.layers[0].compile(backend=counted, dynamic=True, fullgraph=True)
    for segments in (4, 6, 9, 5):
        batch = tokens(2, N * segments)
        found = []
        for one in (model, plain):
            nll, _ = one.training_nll(batch)
            loss = nll.mean()
            found.append([loss, *torch.autograd.grad(loss, list(one.parameters()), allow_unused=True)])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    trained = counted.graphs
    assert trained <= TRAINING.get(arm, 1)
    prompt, following = tokens(2, 2 * N + 5, seed=1), tokens(2, 3 * N, seed=2)
    with torch.no_grad():
        _, state = model(prompt)
        seen = []
        for place in range(following.shape[1]):
            logits, state = model(following[:, place : place + 1], state)
            seen.append(logits)
        expected, _ = plain(torch.cat([prompt, following], dim=1))
    torch.testing.assert_close(torch.cat(seen, dim=1), expected[:, prompt.shape[1] :], rtol=1e-4, atol=1e-5)
    assert counted.graphs <= trained + DECODING[arm]


@pytest.mark.slow
def test_inductor_trains_the_same_at_every_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # not what a killed process left
    model, plain = decoder("infini-delta").float(), decoder("infini-delta").float()
    for layer in model.layers:
        layer.compile(dynamic=True)
    for segments in (4, 7):
        batch = tokens(2, N * segments)
        found = []
        for one in (model, plain):
            loss = one.training_nll(batch)[0].mean()
            found.append([loss, *torch.autograd.grad(loss, list(one.parameters()))])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
