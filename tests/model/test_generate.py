"""Generation: prefill and decoding across segment borders, unequal prompts, stopping, sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoint import graft
from model.decoder import Decoder
from model.generate import choose, complete, generate, until
from tests.model.tiny import ARMS, VOCAB, N, config, decoder, tokens


def talker(arm: str = "infini-linear", **mixer: Any) -> Decoder:
    """With a head of its own: a tied head of random weights repeats the last token for ever."""
    return decoder(arm, trunk={"tie_embeddings": False}, **mixer)


def greedy(model, prompt: list[int], count: int) -> list[int]:
    """The definition: the whole text again for each token."""
    text = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            text.append(model(torch.tensor([text]))[0][0, -1].argmax().item())
    return text[len(prompt) :]


@pytest.mark.parametrize("arm", ARMS)
def test_unequal_prompts_continue_as_each_would_alone_across_segments(arm: str) -> None:
    model = talker(arm)
    prompts = [
        tokens(1, length, seed)[0].tolist() for length, seed in ((3, 0), (N, 1), (21, 2), (3, 3), (2 * N + 7, 4))
    ]
    expected = [greedy(model, prompt, 12) for prompt in prompts]
    assert generate(model, prompts, 12) == expected
    assert generate(model, prompts, 12, prefill_chunk=5) == expected


@pytest.mark.parametrize("arm", ["full", "infini-linear"])
def test_greedy_continuations_are_those_of_transformers(tmp_path: Path, arm: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    fields = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    fields |= dict(num_key_value_heads=2, vocab_size=VOCAB, initializer_range=0.15, eos_token_id=None)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).eval()
    theirs.save_pretrained(tmp_path)
    ours = graft(tmp_path, config(arm, segment_length=64).mixer, seed=0)
    prompts = [tokens(1, length, seed)[0].tolist() for seed, length in enumerate((5, 17, 30, 17))]
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    expected = theirs.generate(padded, attention_mask=mask, max_new_tokens=30, do_sample=False, pad_token_id=0)
    found = generate(ours, prompts, 30, knockout=None if arm == "full" else "gate_closed")
    assert found == expected[:, longest:].tolist()
    assert len({token for row in found for token in row}) > 8  # not one token over and over


def test_every_prompt_token_is_fed_once_and_none_are_pads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bugs seen elsewhere: a 55-token prompt at N = 16 of which 7 tokens were read, and pads written into memory."""
    model, fed = talker(segment_length=16), []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, *rest: (fed.extend(ids.tolist()), hidden(ids, *rest))[1])
    prompt = tokens(1, 55)[0].tolist()
    [said] = generate(model, [prompt], 1)
    assert fed == [prompt] and said == greedy(model, prompt, 1)
    fed.clear()
    generate(model, [prompt[:20], prompt], 3)
    assert sum(map(len, fed)) == 20 + 55 + 2 * 2  # the last of three tokens is not read any more


def test_each_part_of_the_prompt_reaches_the_continuation() -> None:
    """The whole first segments, the boundary tokens and the open segment: change one token, and the logits change."""
    model, prompt = talker(), tokens(1, 2 * N + 5)[0].tolist()
    with torch.no_grad():
        base = model(torch.tensor([prompt]))[0][0, -1]
        for position in range(len(prompt)):
            changed = [*prompt[:position], (prompt[position] + 1) % VOCAB, *prompt[position + 1 :]]
            assert not torch.equal(model(torch.tensor([changed]))[0][0, -1], base), position


def test_nothing_is_left_over_from_the_call_before() -> None:
    """A bug seen elsewhere: memory buffers kept between batches."""
    model = talker("infini-delta")
    prompts = [tokens(1, 21, seed)[0].tolist() for seed in range(3)]
    alone = generate(model, prompts[:1], 12)
    generate(model, prompts[1:], 12)
    assert generate(model, prompts[:1], 12) == alone


def test_long_prompts_are_read_in_passes_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = talker(), [tokens(1, 61, seed)[0].tolist() for seed in range(2)]
    expected = generate(model, prompts, 5)
    passes, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, *rest: (passes.append(ids.shape), hidden(ids, *rest))[1])
    monkeypatch.setattr("model.generate.PREFILL_TOKENS", 4 * N + 3)
    assert generate(model, prompts, 5) == expected
    assert [tuple(shape) for shape in passes[:4]] == [(2, 2 * N)] * 3 + [(2, 61 - 6 * N)]  # whole segments


def test_stop_strings_end_a_row_even_across_tokens_and_the_text_is_cut() -> None:
    model = talker()
    letters = [tokens(1, 9, seed)[0].tolist() for seed in range(3)]

    def decode(ids: list[int]) -> str:
        return "".join(chr(ord("A") + i) * 2 for i in ids)

    free = generate(model, letters, 10)
    middle = decode(free[0])[5:9]  # begins and ends within a token
    found = generate(model, letters, 10, stop_strings=[middle, "never said"], decode=decode)
    for row, whole in zip(found, free, strict=True):
        shortest = next((n for n in range(1, 11) if middle in decode(whole[:n])), 10)
        assert row == whole[:shortest]
    assert 3 <= len(found[0]) <= 5

    texts = complete(
        model,
        [decode(ids) for ids in letters],
        10,
        stop_strings=[middle],
        decode=decode,
        encode=lambda text: [ord(c) - ord("A") for c in text[::2]],
    )
    assert texts == [decode(row).split(middle)[0] for row in free]
    assert len(texts[0]) <= 5


def test_the_first_of_several_stop_strings_cuts() -> None:
    assert until("one. two! three", ["!", "."]) == "one"
    assert until("one", ["."]) == "one"
    assert until(".", ["."]) == ""


def test_tokens_are_reported_as_they_are_produced() -> None:
    model = talker()
    prompts = [tokens(1, length, seed)[0].tolist() for seed, length in enumerate((9, 4, 9))]
    free = generate(model, prompts, 8)
    told: list[tuple[int, int]] = []
    found = generate(model, prompts, 8, stop_ids=[free[0][5]], on_token=lambda *event: told.append(event))
    for index, row in enumerate(found):
        assert [token for i, token in told if i == index] == row
    assert [index for index, _ in told[:4]] == [0, 2, 0, 2]  # rows of a batch side by side, not one after another


def test_stop_tokens_end_a_row_and_are_not_part_of_it() -> None:
    model = talker()
    prompts = [tokens(1, 9, seed)[0].tolist() for seed in range(3)]
    free = generate(model, prompts, 10)
    stop = free[0][4]
    expected = [row[: row.index(stop)] if stop in row else row for row in free]
    assert generate(model, prompts, 10, stop_ids=[stop]) == expected
    assert generate(model, prompts, 0) == [[], [], []]


def test_sampling_is_seeded_and_top_p_cuts_the_tail() -> None:
    model, prompts = talker(), [tokens(1, 9)[0].tolist()] * 4
    draws = [
        generate(model, prompts, 8, temperature=1.5, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
    tiny_nucleus = generate(model, prompts, 8, temperature=1.5, top_p=1e-6, generator=torch.Generator().manual_seed(0))
    assert tiny_nucleus == generate(model, prompts, 8)


def test_nucleus_holds_the_smallest_set_that_reaches_top_p() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log().repeat(4000, 1)
    picked = choose(logits, 1.0, 0.7, torch.Generator().manual_seed(0)).bincount(minlength=4) / 4000
    torch.testing.assert_close(picked, torch.tensor([0, 2 / 3, 0, 1 / 3]), rtol=0, atol=0.03)


def test_top_k_keeps_the_most_likely_and_top_p_is_of_these() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log().repeat(4000, 1)

    def shares(top_p: float, top_k: int) -> Tensor:
        picked = choose(logits, 1.0, top_p, torch.Generator().manual_seed(0), top_k)
        return picked.bincount(minlength=4) / 4000

    torch.testing.assert_close(shares(1.0, 2), torch.tensor([0, 4 / 7, 0, 3 / 7]), rtol=0, atol=0.03)
    torch.testing.assert_close(shares(0.5, 2), torch.tensor([0.0, 1, 0, 0]), rtol=0, atol=0)  # 4/7 alone is enough


def test_knockouts_reach_generation() -> None:
    model = talker("infini-linear")
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
        ([[1]], {"top_k": 0}, "top_k = 0"),
        ([[1]], {"prefill_chunk": 0}, "prefill_chunk = 0"),
        ([[1]], {"stop_strings": ["."]}, r"stop_strings = \['\.'\]: needs decode"),
        ([[1]], {"stop_strings": [""], "decode": str}, "no empty string"),
    ],
)
def test_bad_requests_are_named(prompts: list[list[int]], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(decoder(), prompts, 4, **options)


def test_generating_is_evaluation_and_leaves_the_mode_as_it_was() -> None:
    """Landmark attention is another function in training."""
    model, prompts = decoder("landmark"), tokens(2, 41).tolist()
    wanted = generate(model, prompts, 12)
    assert generate(model.train(), prompts, 12) == wanted and model.training
    with pytest.raises(ValueError, match="empty"):
        generate(model, [[]], 1)
    assert model.training
