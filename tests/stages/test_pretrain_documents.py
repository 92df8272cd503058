"""``mixture.order: documents``: lanes read documents in order, and a resumed run, at any world size, reads the same."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.training.pretrain.config import MixtureConfig, PromptPhase
from stages.training.pretrain.data import DocumentOrder, SampleOrder, TokenRows, Windows
from stages.training.pretrain.mixture import Batches, loss_weights
from stages.training.pretrain.recipe import of_pretrain
from tests.stages.pretraining import LENGTH, pretrain_config

COUNTS = {"books": (5, 1, 9, 2, 3, 14, 1, 6), "math": (2, 2, 1, 4, 1, 1)}  # windows of each document


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    """Every token of a row is the number of its row; sources and documents as in ``COUNTS``, two shards."""
    folder = tmp_path_factory.mktemp("rows")
    rows = [(source, 64 * place) for source, counts in COUNTS.items() for n in counts for place in range(n)]
    for shard, part in enumerate(np.array_split(np.arange(len(rows)), 2)):
        table = pa.table(
            {
                "tokens": pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(part, LENGTH).astype(np.int32)), LENGTH),
                "loss_mask": pa.FixedSizeListArray.from_arrays(pa.array(np.ones(len(part) * LENGTH, np.uint8)), LENGTH),
                "offset": [rows[i][1] for i in part],
                "source": [rows[i][0] for i in part],
            }
        )
        with pa.ipc.new_stream(str(folder / f"data-{shard}.arrow"), table.schema) as stream:
            stream.write_table(table, max_chunksize=7)
    return Windows(TokenRows(folder), LENGTH)


def batches(windows: Windows, made: Any = None, size: int = 4, **mixture: Any) -> Batches:
    config = pretrain_config(batch_sequences=size, mixture=MixtureConfig(order="documents", **mixture))
    return Batches(of_pretrain(config), windows, made)


def answers(phase: PromptPhase, count: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((count, phase.length), first, np.int32), np.ones((count, phase.length), np.uint8)


def half(share: float, length: int = LENGTH) -> tuple[PromptPhase, ...]:
    """The same share all along, the first half of the steps in prompts of a quarter of the length."""
    short = PromptPhase(until=0.5, share=share, length=length // 4)
    return (short, PromptPhase(until=1.0, share=share, length=length))


def documents() -> list[range]:
    found, start = [], 0
    for count in (n for counts in COUNTS.values() for n in counts):
        found.append(range(start, start + count))
        start += count
    return found


def test_each_lane_reads_whole_documents_in_order(windows: Windows) -> None:
    made = batches(windows)
    steps = [made[step] for step in range(60)]
    for lane in range(4):
        read = [(int(batch.ids[lane]), bool(batch.continues[lane])) for batch in steps]
        for (before, _), (now, continues) in pairwise(read):
            assert continues == (now == before + 1 and not any(now == d.start for d in documents()))
        starts = [i for i, (_, continues) in enumerate(read) if not continues]
        for begin, end in pairwise(starts):
            assert [now for now, _ in read[begin:end]] in [list(d) for d in documents()]
    assert not steps[0].continues.any()


def test_an_epoch_reads_every_document_once(windows: Windows) -> None:
    made = batches(windows, size=1)
    total = sum(map(len, documents()))
    for epoch in (range(total), range(total, 2 * total)):
        assert sorted(int(made[step].ids[0]) for step in epoch) == list(range(total))


def test_shares_of_sources_are_met_to_a_document(windows: Windows) -> None:
    made = batches(windows, sources={"books": 1.0, "math": 3.0})
    names = windows.rows.sources[np.concatenate([made[step].ids for step in range(200)])]
    assert abs((names == "math").mean() - 0.75) < 14 * 4 / 800


def test_prompts_keep_their_rows_and_every_token_counts_as_before(windows: Windows) -> None:
    made = batches(windows, answers, prompts=half(0.25))
    steps = [made[step] for step in range(20)]
    assert all((batch.answers == steps[0].answers).all() and batch.answers.sum() == 1 for batch in steps)
    assert not any(batch.continues[batch.answers].any() for batch in steps)
    assert any(batch.continues.any() for batch in steps)
    for batch in steps:
        assert not batch.mask[:, 0].any() and batch.mask[:, 1:].all()
        text, answer = loss_weights(batch, batch.tokens.shape[1])
        assert text.sum() == pytest.approx(1) and answer.sum() == pytest.approx(1)
        assert (text[~batch.answers, 1:] == text[~batch.answers][0, 1]).all()  # continuing rows weigh as the others


def test_a_share_of_prompts_that_moves_the_lanes_is_refused() -> None:
    for prompts, message in (
        (half(0.3), r"share = \[0\.3\].*nearest: 0\.25 or 0\.5"),
        (half(1.0), r"share = \[1\.0\].*fewer than 4"),
        ((half(0.25)[0], half(0.5)[1]), r"share = \[0\.25, 0\.5\]"),
    ):
        with pytest.raises(ValidationError, match=message):
            pretrain_config(mixture=MixtureConfig(order="documents", prompts=prompts))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    order=st.sampled_from(["shuffled", "documents"]),
    sources=st.sampled_from([{}, {"books": 1.0, "math": 2.0}, {"math": 1.0}]),
    prompts=st.sampled_from([0, 1, 3]),
    worlds=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=2, max_size=3),
    steps=st.lists(st.integers(0, 40), min_size=1, max_size=4),
)
def test_what_is_read_at_a_step_depends_on_seed_and_step_alone(
    windows: Windows,
    seed: int,
    order: str,
    sources: dict[str, float],
    prompts: int,
    worlds: list[int],
    steps: list[int],
) -> None:
    """Runs that are stopped and resumed at ``steps``, each attempt at another world size, against one that is not."""
    mixture = MixtureConfig(order=order, sources=sources, prompts=half(prompts / 8))
    recipe = of_pretrain(pretrain_config(batch_sequences=8, seed=seed, mixture=mixture))
    whole = Batches(recipe, windows, answers)
    through = [whole[step] for step in range(max(steps) + 2)]
    for attempt, step in enumerate(steps):
        world = worlds[attempt % len(worlds)]
        resumed = Batches(recipe, windows, answers)  # as a new process does
        for now in (step, step + 1):
            share = 8 // world
            ranks = [resumed[now].tokens[rank * share : (rank + 1) * share] for rank in range(world)]
            assert (np.concatenate(ranks) == through[now].tokens).all()
            assert (resumed[now].ids == through[now].ids).all()
            assert (resumed[now].before == through[now].before).all()


@settings(max_examples=40, deadline=None)
@given(lanes=st.integers(1, 7), seed=st.integers(0, 99), steps=st.integers(1, 30))
def test_dealing_agrees_with_a_plain_simulation(windows: Windows, lanes: int, seed: int, steps: int) -> None:
    """Against the rule as it stands: whoever is free takes the next document of the epoch's permutation."""
    from stages.training.pretrain.data import generator

    order = DocumentOrder(windows, [windows.ids], [1.0], seed, lanes)
    found = documents()
    queue = [found[i] for epoch in range(40) for i in generator(seed, "documents", 0, epoch).permutation(len(found))]
    rest: list[list[int]] = [[] for _ in range(lanes)]
    read = [0] * lanes
    for step in range(steps):
        fresh = [not lane for lane in rest]
        for lane in range(lanes):
            rest[lane] = rest[lane] or list(queue.pop(0))
        read = [0 if new else count + 1 for new, count in zip(fresh, read, strict=True)]
        ids, before = order.at(step)
        assert ids.tolist() == [lane.pop(0) for lane in rest]
        assert before.tolist() == read


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, 5000), counts=st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_the_shuffled_order_by_position_is_the_same_however_it_is_asked_for(
    windows: Windows, start: int, counts: list[int]
) -> None:
    groups, shares = windows.groups({"books": 0.7, "math": 0.3})
    parts, position = [], start
    order = SampleOrder(groups, shares, seed=5)
    for count in counts:
        parts.append(order.ids(position, count))
        position += count
    assert (np.concatenate(parts) == SampleOrder(groups, shares, seed=5).ids(start, sum(counts))).all()
