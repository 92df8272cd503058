"""Tasks as records: what a study may ask for, what its keys say of them, how answers of several strings are scored."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import StudyError
from pipeline.study.graph import expand
from pipeline.study.load import load
from stages.data.tasks import Prompt, Task, register, registry, training_rows
from stages.data.tasks.config import RetrievalConfig
from stages.data.tasks.needles import PASSKEY
from stages.data.tasks.prompts import evaluation_items
from stages.data.tasks.scoring import all_in, any_in, everything
from stages.evidence.evaluate import retrieval, tables
from stages.stage import StageError
from tests.stages.readers import Bytes
from tests.tiny import write_study

CODEC = Bytes()
HAYSTACK = np.random.default_rng(5).integers(97, 123, 20_000).astype(np.int32)
COLOURS = ("red", "green", "blue", "white", "black")


def draw_colours(haystack, trial, rng):
    """k colours in needles of their own; all are asked for."""
    colours = rng.sample(COLOURS, trial.k)
    needles = [f"\nOne colour is {colour}.\n" for colour in colours]
    return haystack.hide(
        trial, rng, needles, "\nThe colours are", answers=colours, values=colours, asked=range(trial.k)
    )


COLOUR_TASK = Task(
    name="colours",
    sentence="every colour that the text names",
    draw=draw_colours,
    shortest=lambda haystack, k: haystack.shortest(["\nOne colour is white.\n"] * k, "\nThe colours are"),
    budget=lambda format: 24,
    ks=(1, 3),
    largest=3,
    read=everything,
    score=all_in,
)


@pytest.fixture
def colours(monkeypatch):
    monkeypatch.setattr(registry, "TASKS", dict(registry.TASKS))
    register(COLOUR_TASK)


def asked(**settings):
    return RetrievalConfig(
        format="compact", lengths=(256, 512), trials=4, binding_trials=0, control_trials=0, tasks={"colours": settings}
    )


def items_of(config):
    return list(evaluation_items(config, CODEC, HAYSTACK, 0, grids=config.further))


def test_golden_prompts():
    """Prompts of passkeys and bindings, in evaluation and training: with others, every result on them would change."""
    found = {}
    for format, length in (("compact", 512), ("published", 2048)):
        config = RetrievalConfig(format=format, lengths=(length,), trials=3, binding_trials=2, control_trials=1)
        digest = hashlib.sha256()
        for item in evaluation_items(config, CODEC, HAYSTACK, seed=1):
            digest.update(repr((item.item, item.prompt, item.expected, item.needle_end, item.asked_rank)).encode())
        rows = training_rows(CODEC, HAYSTACK, length, 6, seed=1, format=format)
        digest.update(b"".join(part.tobytes() for part in rows))
        found[format] = digest.hexdigest()[:16]
    assert found == {"compact": "ebee0005a22c2f5e", "published": "aab3644abbacbd14"}


def test_a_further_task_is_asked_at_its_own_lengths_and_k(colours):
    items = items_of(asked())
    assert [(i.length, i.k) for i in items[::4]] == [(256, 1), (256, 3), (512, 1), (512, 3)]
    assert all(len(i.prompt) + 24 == i.length and len(i.answers) == i.k for i in items)
    few = items_of(asked(lengths=[300], trials=2, k=[2]))
    assert [(i.length, i.k) for i in few] == [(300, 2)] * 2
    for item in items:  # the last of the needles is what must lie beyond a segment
        text = CODEC.decode(item.prompt)
        assert item.needle_end == text.index("\n", text.index(item.values[-1])) + 1
        assert item.depth == pytest.approx(item.needle_end / len(text), abs=0.35)


def test_its_score_may_be_a_share_of_several_answers(colours):
    item = next(i for i in items_of(asked()) if i.k == 3)
    row = retrieval.task_row(item, f" {item.answers[0].upper()}, {item.answers[2]} and more", 0.5, 32, "compact")
    assert list(row) == tables.TASKS.names
    assert row["score"] == pytest.approx(2 / 3) and row["chance"] is None and row["answers"] == list(item.answers)
    assert CODEC.decode(item.answer_ids) == f" {', '.join(item.answers)}"
    assert [CODEC.decode([t]) for t, c in zip(item.answer_ids, item.counted, strict=True) if not c].count(",") == 2


@pytest.mark.parametrize(
    ("rule", "said", "score"),
    [
        (all_in, "It is Red", 0.5),
        (any_in, "it is red", 1),
        (any_in, "none", 0),
    ],
)
def test_rules_for_answers_of_several_strings(rule, said, score):
    assert rule(said, ("red", "blue")) == score


def test_it_can_be_trained_on(colours):
    tokens, mask = training_rows(CODEC, HAYSTACK, 256, 4, seed=0, format="compact", tasks=("colours", "passkey"))
    said = [CODEC.decode(row[marks.astype(bool)].tolist()) for row, marks in zip(tokens, mask, strict=True)]
    assert [text.count(",") for text in said] == [0, 0, 2, 0] and all(text.endswith(".") for text in said)


def test_a_task_may_have_text_of_its_own_and_prompts_shorter_than_asked(colours, monkeypatch):
    def count(haystack, trial, rng):
        tokens = haystack.encode("red red blue\nThe most frequent is")
        return Prompt(tokens, ("red",), needle_end=12, depth=1.0)

    own = replace(COLOUR_TASK, draw=count, shortest=lambda haystack, k: 32, longest=lambda haystack, k: math.inf)
    monkeypatch.setitem(registry.TASKS, "colours", own)
    config = asked(lengths=[100_000])  # more than the haystack has
    assert {(len(i.prompt), i.length, i.distance) for i in items_of(config)} == {(33, 100_000, 21)}
    (row,), (marks,) = training_rows(CODEC, HAYSTACK, 128, 1, seed=0, format="compact", tasks=("colours",))
    assert CODEC.decode(row[:38].tolist()) == "red red blue\nThe most frequent is red."
    assert np.flatnonzero(marks).tolist() == list(range(33, 38)) and len(set(row[38:].tolist())) > 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": [4]}, r"colours\.k = \[4\]: allowed are distinct numbers from 1 to 3"),
        ({"lengths": [64, 64]}, r"colours\.lengths = "),
        ({"control_trials": 2}, r"colours\.control_trials = 2: the task has no controls"),
    ],
)
def test_settings_that_it_cannot_have_are_named(colours, settings, message):
    with pytest.raises(ValidationError, match=message):
        asked(**settings)


def test_a_length_that_does_not_hold_it_is_one_error_at_once(colours):
    message = r"evaluate\.retrieval\.tasks\.colours\.lengths = 100: .*colours with k = 3 does not fit"
    with pytest.raises(StageError, match=message):
        items_of(asked(lengths=[100]))


def test_a_task_that_miscounts_is_named(colours, monkeypatch):
    long = replace(COLOUR_TASK, draw=lambda haystack, trial, rng: Prompt((97,) * (trial.length + 1), ("red",), 0, 0.0))
    monkeypatch.setitem(registry.TASKS, "colours", long)
    with pytest.raises(StageError, match=r"colours drew a prompt of 233 .*at most 232 \(trial\.length\)"):
        items_of(asked())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("evaluate.retrieval.tasks={colors: {}}", r"task 'colors': allowed are .*did you mean 'colours'"),
        ("evaluate.retrieval.tasks={passkey: {}}", r"passkey: is asked anyway"),
        ("evaluate.retrieval.tasks={colours: {trails: 2}}", r"colours\.trails: unknown key; did you mean 'trials'"),
        ("ablate.retrieval.tasks={colours: {}}", r"retrieval\.tasks = \['colours'\]: the knock-outs are asked"),
        ("pretrain.mixture.retrieval_tasks=[colors]", r"retrieval_tasks = \['colors'\]: .*did you mean 'colours'"),
    ],
)
def test_a_study_that_names_it_wrongly_is_one_error(colours, tmp_path, change, message):
    with pytest.raises(StudyError, match=message) as caught:
        load(write_study(tmp_path), [change], environment={})
    assert len(str(caught.value).splitlines()) == 1


def test_keys_say_of_tasks_what_differs_and_nothing_where_there_are_none(colours, tmp_path, monkeypatch):
    study = write_study(tmp_path)
    named = ["evaluate.retrieval.tasks={colours: {}}", "pretrain.mixture.retrieval_tasks=[colours]"]

    def keys(*changes):
        plan = expand(load(study, list(changes), environment={}), None)
        return [plan[step].key for step in ("pretrain/local/0", "evaluate/base/0", "ablate/infini-delta/0")]

    plain, with_task = keys(), keys(*named)
    assert "tasks" not in expand(load(study, environment={}), None)["evaluate/local/0"].config.key_fields()["retrieval"]
    assert [a == b for a, b in zip(plain, with_task, strict=True)] == [False, False, False]
    monkeypatch.setitem(registry.TASKS, "colours", replace(COLOUR_TASK, version=2))
    assert keys() == plain and not set(keys(*named)) & set(with_task)


def test_names_are_taken_once(colours):
    with pytest.raises(ValueError, match="'passkey': there is such a task already"):
        register(replace(PASSKEY))
    with pytest.raises(ValueError, match="'_absent' ends the names of controls"):
        register(replace(PASSKEY, name="my_absent"))
