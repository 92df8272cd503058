"""Which sequences are trained when."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from stages.stage import StageError
from stages.training.pretrain.config import MixtureConfig, PromptPhase
from stages.training.pretrain.data import BLOCK, SampleOrder, TokenRows, Windows, digest
from stages.training.pretrain.mixture import Batches, loss_weights
from stages.training.pretrain.recipe import Recipe, of_pretrain
from tests.stages.pretraining import LENGTH, SEGMENT, pretrain_config, write_tokens


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> TokenRows:
    return TokenRows(write_tokens(tmp_path_factory.mktemp("tokens"), rows=50, shards=3).path("train"))


def recipe(**changes: object) -> Recipe:
    return of_pretrain(pretrain_config(**changes))


def test_rows_are_numbered_through_all_shards(rows: TokenRows) -> None:
    assert (len(rows), rows.length) == (50, LENGTH)
    whole = np.concatenate(rows.tokens)
    assert all((rows.row(i)[0] == whole[i]).all() for i in range(50))


def test_an_epoch_holds_every_sequence_once_and_the_next_another_order(rows: TokenRows) -> None:
    order = SampleOrder([Windows(rows, LENGTH).ids], [1.0], seed=3)
    first, second = order.ids(0, 50), order.ids(50, 50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert list(first) != list(second)


def test_any_step_can_be_asked_for_first(rows: TokenRows) -> None:
    through = Batches(recipe(), Windows(rows, LENGTH))
    ids = [through[step].ids for step in range(40)]
    for step in (31, 0, 17):
        assert (Batches(recipe(), Windows(rows, LENGTH))[step].ids == ids[step]).all()


def test_the_seed_changes_the_order(rows: TokenRows) -> None:
    windows = Windows(rows, LENGTH)
    assert digest(Batches(recipe(), windows)[0].ids) != digest(Batches(recipe(seed=1), windows)[0].ids)


def test_stated_shares_are_met_and_small_sources_repeat(rows: TokenRows) -> None:
    groups, shares = Windows(rows, LENGTH).groups({"math": 3.0, "books": 1.0})
    ids = SampleOrder(groups, shares, seed=0).ids(0, 2 * BLOCK)
    names = rows.sources[ids]
    assert abs((names == "math").mean() - 0.75) < 2 / BLOCK
    used = np.bincount(ids[names == "math"])[groups[1]]
    assert used.max() - used.min() <= 1  # whole epochs of the source


def test_an_unknown_source_is_refused(rows: TokenRows) -> None:
    with pytest.raises(StageError, match=r"mixture\.sources\.novels.*books, math"):
        Batches(recipe(mixture=MixtureConfig(sources={"novels": 1.0})), Windows(rows, LENGTH))


def test_short_windows_leave_out_padding(rows: TokenRows) -> None:
    windows = Windows(rows, SEGMENT)
    padded = 8 * 2  # rows 0, 7, ... 49 are padded in their second half: two windows each
    assert len(windows.ids) == 50 * (LENGTH // SEGMENT) - padded
    tokens, mask = windows.batch(windows.ids[:5])
    assert tokens.shape == mask.shape == (5, SEGMENT) and mask.all()
    assert (windows.batch([5])[0][0] == rows.row(1)[0][SEGMENT : 2 * SEGMENT]).all()


def test_windows_must_divide_the_rows(rows: TokenRows) -> None:
    with pytest.raises(StageError, match="sequence_length = 24"):
        Windows(rows, 24)


def phases(*wanted: tuple[float, float, int]) -> tuple[PromptPhase, ...]:
    return tuple(PromptPhase(until=until, share=share, length=length) for until, share, length in wanted)


def prompts(phase: PromptPhase, count: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Every token of a prompt is its number; the last three are the answer."""
    mask = np.zeros((count, phase.length), np.uint8)
    mask[:, -3:] = 1
    return np.arange(first, first + count)[:, None] + np.zeros((1, phase.length), np.int32), mask


def test_phases_change_length_and_share_but_not_the_tokens_of_a_batch(rows: TokenRows) -> None:
    """Ten steps of four rows of 64: prompts of 16 alone, then half text, then prompts of 32 in a quarter of it."""
    mixture = MixtureConfig(prompts=phases((0.3, 1.0, 16), (0.5, 0.5, 16), (1.0, 0.25, 32)))
    plan = recipe(mixture=mixture, steps=10)
    made = [Batches(plan, Windows(rows, LENGTH), prompts)[step] for step in range(10)]  # each as after a restart
    assert [b.answers.sum() for b in made] == [4] * 3 + [2] * 2 + [1] * 5
    assert {b.tokens.shape for b in made} == {(4, LENGTH)}
    assert [(plan.prompt_length_at(step), plan.share_at(step)) for step in (0, 3, 5)] == [
        (16, 1),
        (16, 0.5),
        (32, 0.25),
    ]
    text = [int(i) for b in made for i in b.ids[~b.answers]]
    assert sorted(text) == sorted(SampleOrder([Windows(rows, LENGTH).ids], [1.0], 0).ids(0, 4 + 15).tolist())
    seen: dict[int, list[int]] = {16: [], 32: []}
    for step, batch in enumerate(made):
        length = plan.prompt_length_at(step)
        in_order = batch.tokens[batch.answers][np.argsort(-batch.ids[batch.answers])]
        cut = in_order.reshape(-1, length)
        assert (cut == cut[:, :1]).all()  # a prompt never goes over the border of a row
        seen[length] += cut[:, 0].tolist()
        assert batch.mask[batch.answers].sum() == 3 * len(cut)
    assert seen[16] == list(range(16 * 4)) and seen[32] == list(range(32, 42))  # none twice


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"prompts": [{"until": 1.0, "share": 1.5, "length": 16}]}, "share"),
        ({"prompts": [{"until": 0.5, "share": 1, "length": 16}]}, r"until = \[0\.5\].*the last of them 1"),
        (
            {"prompts": [{"until": 0.5, "share": 1, "length": 16}, {"until": 0.5, "share": 1, "length": 16}]},
            r"until = \[0\.5, 0\.5\]: allowed are ascending",
        ),
        (
            {"prompts": [{"until": 1, "share": 1, "length": 24}]},
            r"mixture\.prompts\.0\.length = 24: must divide sequence_length = 64",
        ),
        (
            {"prompts": [{"until": 1, "share": 0.5, "length": 16, "text_length": 48}]},
            r"prompts\.0\.text_length = 48: must divide",
        ),
        ({"retrieval_rivals": [0]}, r"retrieval_rivals = \[0\]"),
    ],
)
def test_phases_that_cannot_be_are_refused(mixture: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(mixture=MixtureConfig(**mixture))


def test_text_has_one_curriculum() -> None:
    phase = PromptPhase(until=1, share=0.5, length=16, text_length=32)
    with pytest.raises(ValidationError, match=r"text_length = 32: curriculum_share sets the length"):
        recipe(mixture=MixtureConfig(prompts=(phase,)), curriculum_share=0.5)
    assert recipe(mixture=MixtureConfig(prompts=(phase,))).length_at(0) == 32


def test_prompts_take_their_share_and_weigh_as_it(rows: TokenRows) -> None:
    batches = Batches(recipe(mixture=MixtureConfig(prompts=phases((1.0, 0.3, LENGTH)))), Windows(rows, LENGTH), prompts)
    made = [batches[step] for step in range(10)]
    assert sum(int(b.answers.sum()) for b in made) == 12  # of 40
    numbers = [-1 - i for b in made for i in sorted(b.ids[b.answers], reverse=True)]
    assert numbers == list(range(12))  # every prompt once, in order
    text, answer = loss_weights(made[0], made[0].tokens.shape[1])
    assert text.sum() == pytest.approx(1) and answer.sum() == pytest.approx(1)
    assert (answer[made[0].answers] > 0).sum() == 3 * made[0].answers.sum()
    assert not text[made[0].answers].any()
