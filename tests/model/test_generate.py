"""Generation: prefill and decoding across segment borders, unequal prompts, stopping, sampling."""

from __future__ import annotations

import pytest
import torch

from model.generate import generate
from tests.model.tiny import ARMS, VOCAB, N, decoder, tokens


def greedy(model, prompt: list[int], count: int) -> list[int]:  # type: ignore[no-untyped-def]
    """The definition: the whole text again for each token."""
    text = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            text.append(model(torch.tensor([text]))[0][0, -1].argmax().item())
    return text[len(prompt) :]


@pytest.mark.parametrize("arm", ARMS)
def test_unequal_prompts_continue_as_each_would_alone_across_segments(arm: str) -> None:
    model = decoder(arm)
    prompts = [
        tokens(1, length, seed)[0].tolist() for length, seed in ((3, 0), (N, 1), (21, 2), (3, 3), (2 * N + 7, 4))
    ]
    expected = [greedy(model, prompt, 12) for prompt in prompts]
    assert generate(model, prompts, 12) == expected
    assert generate(model, prompts, 12, prefill_chunk=5) == expected


def test_stop_tokens_end_a_row_and_are_not_part_of_it() -> None:
    model = decoder()
    prompts = [tokens(1, 9, seed)[0].tolist() for seed in range(3)]
    free = generate(model, prompts, 10)
    stop = free[0][4]
    expected = [row[: row.index(stop)] if stop in row else row for row in free]
    assert generate(model, prompts, 10, stop_ids=[stop]) == expected
    assert generate(model, prompts, 0) == [[], [], []]


def test_sampling_is_seeded_and_top_p_cuts_the_tail() -> None:
    model, prompts = decoder(), [tokens(1, 9)[0].tolist()] * 4
    draws = [
        generate(model, prompts, 8, temperature=1.5, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
    tiny_nucleus = generate(model, prompts, 8, temperature=1.5, top_p=1e-6, generator=torch.Generator().manual_seed(0))
    assert tiny_nucleus == generate(model, prompts, 8)


def test_nucleus_holds_the_smallest_set_that_reaches_top_p() -> None:
    from model.generate import choose

    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log().repeat(4000, 1)
    picked = choose(logits, 1.0, 0.7, torch.Generator().manual_seed(0)).bincount(minlength=4) / 4000
    torch.testing.assert_close(picked, torch.tensor([0, 2 / 3, 0, 1 / 3]), rtol=0, atol=0.03)


def test_knockouts_reach_generation() -> None:
    model = decoder("infini-linear")
    prompts = [tokens(1, 3 * N, seed)[0].tolist() for seed in range(4)]
    plain, closed, swapped = (generate(model, prompts, 16, knockout=k) for k in ("none", "gate_closed", "swap"))
    assert plain == generate(model, prompts, 16)
    assert plain != closed != swapped


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, r"prompts\[1\] is empty"),
        ([[VOCAB]], {}, rf"prompts\[0\].*0 to {VOCAB - 1}"),
        ([[1]], {"temperature": -1.0}, "temperature = -1.0"),
        ([[1]], {"top_p": 0.0}, "top_p = 0.0"),
        ([[1]], {"prefill_chunk": 0}, "prefill_chunk = 0"),
    ],
)
def test_bad_requests_are_named(prompts: list[list[int]], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(decoder(), prompts, 4, **options)  # type: ignore[arg-type]
