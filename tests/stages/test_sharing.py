"""Prompts that begin alike, read as one tree, against each read by itself."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from model.generate import prefill
from stages.evidence.evaluate.sharing import Together, common, most_branches, read_tree, trees
from tests.model.tiny import ARMS, decoder

SEGMENT = 4


def forked(seed: int, length: int = 23, vocabulary: int = 29) -> list[tuple[int, ...]]:
    """A text with something else put into it at several depths, and one prompt twice."""
    rng = random.Random(seed)
    text = [rng.randrange(2, vocabulary) for _ in range(length)]
    found = []
    for depth in (5, 8, 9, 9, 17, length - 1):
        prompt = [*text[:depth], rng.randrange(2), *text[depth:]][:length]
        found.append(tuple(prompt))
    return [*found, found[1]]


@pytest.mark.parametrize("name", ARMS)
@torch.inference_mode()
def test_a_tree_gives_what_each_prompt_gives_alone(name: str) -> None:
    model = decoder(name)
    prompts = sorted(forked(1))
    told: list[int] = []
    hidden, state = read_tree(model, torch.tensor(prompts), budget=8, progress=told.append)
    assert state.position == len(prompts[0]) and sum(told) == pytest.approx(sum(map(len, prompts)), abs=len(told))
    going_on = torch.tensor([[3, 1, 4, 1, 5]])
    after, _ = model.hidden(going_on.expand(len(prompts), -1), state)
    for row, prompt in enumerate(prompts):
        alone, before = prefill(model, torch.tensor([prompt]))
        torch.testing.assert_close(hidden[row : row + 1], alone, rtol=0, atol=1e-10)
        torch.testing.assert_close(after[row : row + 1], model.hidden(going_on, before)[0], rtol=0, atol=1e-10)


@torch.inference_mode()
def test_a_common_token_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = decoder(), sorted(forked(2))
    read = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda tokens, *more: (read.append(tokens.numel()), hidden(tokens, *more))[1])
    read_tree(model, torch.tensor(prompts))
    distinct = {prompt[: n + 1] for prompt in prompts for n in range(len(prompt))}
    assert sum(read) == len(distinct) < sum(map(len, prompts)) / 1.5
    alike = [next((i for i in range(len(a)) if a[i] != b[i]), len(a)) for a, b in itertools.pairwise(prompts)]
    assert common(torch.tensor(prompts)) == [0, *alike] and max(alike) == len(prompts[0])


def test_prompts_join_where_enough_is_common_and_no_more_than_fit() -> None:
    text = tuple(range(10, 42))
    early, late = (*text[:1], 1, *text[2:]), [(*text[:n], 1, *text[n + 1 :]) for n in (8, 20, 31)]
    assert trees([early, *late, text], segment=4, most=8) == [Together((1, 2, 3, 4), tree=True)]
    assert trees([early, *late, text], segment=10, most=8) == [Together((2, 3, 4), tree=True)]
    assert trees([early, *late, text], segment=4, most=3) == [Together((1, 2, 3), tree=True)]  # one is left over
    assert trees([early, *late, text], segment=4, most=1) == trees([early, early[:1] * 32], 4, 8) == []
    config = decoder("full").config
    assert most_branches(config, 10**9, "cpu") == 1 < most_branches(config, 64, "cpu")
