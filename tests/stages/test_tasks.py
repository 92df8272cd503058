"""Retrieval prompts: exact lengths, needles where they should be, nothing shared between training and evaluation."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from stages.data.tasks import training_rows
from stages.data.tasks.config import RetrievalConfig
from stages.data.tasks.needles import PASSKEY
from stages.data.tasks.prompts import evaluation_items, haystack_of
from stages.data.tasks.scoring import first_number
from stages.data.tasks.task import CONTROL
from stages.data.tasks.words import CUES
from stages.stage import StageError
from stages.training.finetune.config import TaskMixture
from stages.training.pretrain.config import MixtureConfig


class ByteCodec:
    """One token a byte."""

    begin = ()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids) -> str:
        return bytes(ids).decode(errors="replace")


CODEC = ByteCodec()
WORDS = "river wall bridge town asked went along where nobody after last old ran it of the and so we left"
RNG = random.Random(0)
TEXT = " ".join(RNG.choice(WORDS.split()) for _ in range(2000))
HAYSTACK = np.frombuffer(TEXT.encode(), np.uint8).astype(np.int32)
CONFIG = RetrievalConfig(
    format="compact",
    lengths=(128, 512),
    depths=(0.0, 0.25, 0.5, 0.75, 1.0),
    trials=6,
    rivals=(1, 4, 8),
    binding_lengths=(512,),
    binding_trials=10,
    control_trials=5,
)


@pytest.fixture(scope="module")
def items():
    return list(evaluation_items(CONFIG, CODEC, HAYSTACK, seed=0))


def test_prompts_fill_their_length_exactly_and_ids_are_unique(items):
    budget = PASSKEY.budget("compact")
    assert all(len(i.prompt) + budget == i.length for i in items)
    assert all(len(i.answer_ids) + 1 <= budget for i in items)
    assert len({i.item for i in items}) == len(items)
    assert Counter(i.task for i in items) == {
        "passkey": 2 * 5 * 6,
        "passkey_absent": 2 * 5,
        "bindings": 3 * 10,
        "bindings_absent": 3 * 5,
    }


def test_published_prompt_has_the_lines_of_the_paper():
    config = RetrievalConfig(lengths=(1024,), trials=1, depths=(0.5,), binding_trials=0, control_trials=0)
    (item,) = evaluation_items(config, CODEC, HAYSTACK, seed=3)
    text = CODEC.decode(item.prompt)
    k = item.expected
    assert text.startswith("There is an important info hidden inside a lot of irrelevant text.")
    assert f"The pass key is {k}. Remember it. {k} is the pass key." in text
    assert text.endswith("What is the pass key? The pass key is")
    assert 1 <= int(k) <= 50000
    assert CODEC.decode(item.answer_ids) == f" {k}"


def test_the_name_that_formats_had_before_is_read_and_stays_in_what_is_recorded():
    """Keys and prompts are those of studies that called the published wording landmark."""
    now, before = (
        RetrievalConfig.model_validate({"format": name, "lengths": [800], "trials": 1, "binding_trials": 1})
        for name in ("published", "landmark")
    )
    assert now == before and now.format == "published"
    assert now.key_fields()["format"] == "landmark"
    assert RetrievalConfig.model_validate_json(now.model_dump_json()) == now
    assert now.model_dump(mode="json", context={"shown": True})["format"] == "published"
    assert {item.item.split("/")[1] for item in evaluation_items(now, CODEC, HAYSTACK, seed=3)} == {"landmark"}
    with pytest.raises(ValidationError, match="'published', 'compact' or 'terse'"):
        RetrievalConfig.model_validate({"format": "landmarks", "lengths": [800], "trials": 1})


def test_the_asked_needle_is_at_its_depth_and_ends_where_the_row_says(items):
    for item in items:
        if item.task == "passkey":
            text = CODEC.decode(item.prompt)
            end = text.index(f"{item.expected}.\n") + len(item.expected) + 2
            assert item.needle_end == end and item.distance == len(item.prompt) - end
    deep = [i.needle_end for i in items if i.task == "passkey" and i.length == 512 and i.depth == 0.5]
    assert all(230 < end < 290 for end in deep)


def test_beyond_local_says_whether_the_answers_segment_holds_the_needle(items):
    near = next(i for i in items if i.task == "passkey" and i.length == 512 and i.depth == 1.0)
    far = next(i for i in items if i.task == "passkey" and i.length == 512 and i.depth == 0.0)
    assert far.beyond_local(64) and not far.beyond_local(512)
    # a prompt of 128 tokens ends in the segment 64..127: a needle ending at 64 (exclusive) is just outside
    at = dataclasses.replace(near, prompt=tuple(range(128)), needle_end=64)
    assert at.beyond_local(64) and not dataclasses.replace(at, needle_end=65).beyond_local(64)
    assert dataclasses.replace(at, prompt=tuple(range(129)), needle_end=128).beyond_local(64)


def test_bindings_have_k_rivals_with_answers_that_do_not_contain_each_other(items):
    for item in (i for i in items if i.task.startswith("bindings")):
        text = CODEC.decode(item.prompt)
        asked = text.rsplit("The key of ", 1)[1].removesuffix(" is")
        if item.task == "bindings":
            assert f"The key of {asked} is {item.expected}." in text
        else:
            assert f"The key of {asked} is" not in text.removesuffix(f"The key of {asked} is")
            assert item.expected in item.values
        assert text.count("The key of ") == item.k + 1 == len(item.values) + 1
        assert not any(a in b for a in item.values for b in item.values if a is not b)
    assert not any(a in b for a in CUES for b in CUES if a is not b)


def test_terse_needles_are_a_word_and_a_number_and_the_question_is_the_word():
    config = RetrievalConfig(format="terse", lengths=(128,), trials=4, rivals=(2, 4), binding_trials=20)
    for item in evaluation_items(config, CODEC, HAYSTACK, seed=3):
        lines = CODEC.decode(item.prompt).split("\n")
        asked = f"\n{lines[-1]} {item.expected}"
        assert (asked in CODEC.decode(item.prompt)) == (CONTROL not in item.task)
        assert lines[-1] == "pass key" if item.task.startswith("passkey") else lines[-1] in CUES
        assert len(item.prompt) + item.budget == 128 and 10 <= int(item.expected) <= 99


def test_a_task_without_a_wording_is_refused_wherever_it_is_named():
    with pytest.raises(
        ValidationError,
        match=r"format = 'terse': the task cwe has no such wording \(allowed with it: published, compact; tasks that "
        r"have it: passkey, bindings, niah_single_1, .*mqar",
    ):
        RetrievalConfig(format="terse", lengths=(128,), trials=1, tasks={"cwe": {}})
    phase = {"until": 1, "share": 1, "length": 128}
    with pytest.raises(ValidationError, match=r"retrieval_format = 'terse': the task qa_1 has no such wording"):
        MixtureConfig(retrieval_format="terse", retrieval_tasks=("qa_1",), prompts=(phase,))
    with pytest.raises(ValidationError, match=r"format = 'terse': the task facts has no such wording"):
        TaskMixture(format="terse", tasks={"facts": 1}, phases=({"until": 1, "length": 128},))
    with pytest.raises(StageError, match=r"format = .*terse.*: the task nth has no wording of this .*have it: passkey"):
        training_rows(CODEC, HAYSTACK, 256, 1, seed=0, format="terse", tasks=("nth",))


def test_values_stand_in_order_of_position_and_the_rank_says_which_is_asked(items):
    for item in items:
        text = CODEC.decode(item.prompt)
        places = [text.index(f" is {value}.") for value in item.values]
        assert places == sorted(places)
        if item.task in ("passkey", "bindings"):
            assert item.values[item.asked_rank] == item.expected
        else:
            assert item.asked_rank == -1


def test_no_position_of_a_binding_gives_the_answer_away():
    """A reader that always names the needle of one rank is right 1/k of the time, and every rank lies everywhere."""
    config = RetrievalConfig(
        format="compact", lengths=(512,), trials=1, rivals=(4,), binding_trials=400, control_trials=0
    )
    asked = [i for i in evaluation_items(config, CODEC, HAYSTACK, seed=0) if i.task == "bindings"]
    for rank in range(4):
        assert 70 < sum(i.values[rank] == i.expected for i in asked) < 130  # 100 expected, standard deviation 8.7
    depths = sorted(i.depth for i in asked)
    assert max(abs(depth - (n + 0.5) / 400) for n, depth in enumerate(depths)) < 0.09  # uniform: Kolmogorov-Smirnov


def test_the_depth_of_a_binding_is_where_the_asked_needle_lies(items):
    for item in (i for i in items if i.task == "bindings"):
        line = len(f"\nThe key of {CUES[0]} is 10.\n") - len(CUES[0])
        text = CODEC.decode(item.prompt)
        cues = [text[at + len("\nThe key of ") :].split(" is ")[0] for at in item.offsets]
        sentences = [line + len(cue) for cue in cues]
        question = len(text) - text.rindex("\nThe key of ")
        filler = len(text) - question - sum(sentences)
        before = item.offsets[item.asked_rank] - sum(sentences[: item.asked_rank])
        assert item.depth == round(before / filler, 6)
    assert len({i.depth for i in items if i.task == "bindings"}) > 20


def test_depths_are_spread_evenly_unless_a_grid_is_asked_for():
    config = RetrievalConfig(format="compact", lengths=(512,), trials=100, binding_trials=0, control_trials=0)
    depths = sorted(i.depth for i in evaluation_items(config, CODEC, HAYSTACK, seed=0))
    assert len(depths) == 100 and max(b - a for a, b in itertools.pairwise([0.0, *depths, 1.0])) < 0.02


def test_absent_needle_prompt_has_no_number_to_find(items):
    for item in items:
        if item.task == "passkey_absent":
            assert first_number(CODEC.decode(item.prompt)) == "" and item.values == ()


def test_layouts_differ_between_trials_and_are_the_same_for_every_arm(items):
    cell = [i for i in items if i.task == "bindings" and i.k == 8]
    orders = {tuple(CODEC.decode(i.prompt).find(f"is {v}.") for v in i.values) for i in cell}
    assert len(orders) == len(cell)
    assert items == list(evaluation_items(CONFIG, CODEC, HAYSTACK, seed=0))
    other = list(evaluation_items(CONFIG, CODEC, HAYSTACK, seed=1))
    assert {i.prompt for i in items}.isdisjoint(i.prompt for i in other)


def test_training_rows_are_disjoint_from_evaluation_even_with_the_same_seed_and_haystack(items):
    tokens, mask = training_rows(CODEC, HAYSTACK, 512, 40, seed=0, format="compact")
    assert tokens.shape == mask.shape == (40, 512) and tokens.dtype == np.int32
    prompts = {i.prompt for i in items}
    for row, marks in zip(tokens, mask, strict=True):
        assert tuple(row[: np.flatnonzero(marks)[0]]) not in prompts


def test_training_loss_is_on_the_answer_of_the_question_in_the_row():
    tokens, mask = training_rows(CODEC, HAYSTACK, 256, 24, seed=5, format="compact", rivals=(1, 4))
    for row, marks in zip(tokens, mask, strict=True):
        where = np.flatnonzero(marks)
        assert (np.diff(where) == 1).all()
        answer = CODEC.decode(row[where].tolist())
        question = CODEC.decode(row[: where[0]].tolist()).rsplit("\n", 1)[1]
        assert answer.startswith(" ") and answer.endswith(".")
        assert f"{question}{answer}" in CODEC.decode(row[: where[0]].tolist())
    every, all_mask = training_rows(CODEC, HAYSTACK, 256, 3, seed=5, format="compact", rivals=(1, 4), loss="all")
    assert all_mask.all() and (every == tokens[:3]).all()


def test_rows_depend_on_seed_and_index_alone():
    whole, _ = training_rows(CODEC, HAYSTACK, 256, 10, seed=2, format="compact")
    part, _ = training_rows(CODEC, HAYSTACK, 256, 4, seed=2, format="compact", first=6)
    assert (whole[6:] == part).all()
    assert not (whole == training_rows(CODEC, HAYSTACK, 256, 10, seed=3, format="compact")[0]).all(1).any()


@pytest.mark.parametrize(
    "config, message",
    [
        (RetrievalConfig(lengths=(128,), trials=1), "lengths = 128.*published.*>= .*format: compact"),
        (
            RetrievalConfig(format="compact", lengths=(512,), trials=1, rivals=(64,)),
            "retrieval.lengths = 512.*bindings with k = 64",
        ),
        (RetrievalConfig(format="compact", lengths=(20000,), trials=1, rivals=(1,)), "haystack has only"),
    ],
)
def test_impossible_length_is_one_error_at_once(config, message):
    with pytest.raises(StageError, match=message):
        next(evaluation_items(config, CODEC, HAYSTACK, seed=0))


@pytest.mark.parametrize(
    "field, value", [("depths", (0.5, 1.5)), ("rivals", (0,)), ("lengths", (64, 64)), ("rivals", (65,))]
)
def test_config_names_the_bad_field(field, value):
    with pytest.raises(ValidationError, match=f"{field} = "):
        RetrievalConfig(**{"lengths": (128,), "trials": 1, field: value})


@pytest.mark.parametrize(
    "text, number",
    [
        (" 37.\nThe", "37"),
        (" 371", "371"),
        ("is 007", "7"),
        ("none", ""),
        ("-12", "12"),
        ("a1b2", "1"),
        (" 12,345.", "12345"),
        ("1,234,567", "1234567"),
        ("12, 345", "12"),
        ("12,34", "12"),
        ("1,2345", "1"),
    ],
)
def test_first_number_is_the_answer(text, number):
    assert first_number(text) == number


def test_haystack_has_no_end_of_text_marks():
    documents = iter([("a", np.array([1, 2, 9], np.int32)), ("b", np.array([3, 9], np.int32))])
    assert haystack_of(documents, eos_id=9).tolist() == [1, 2, 3]
