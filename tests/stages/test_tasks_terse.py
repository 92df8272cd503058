"""The terse wording of further tasks: lines of a word and a number, answered by a reader of the lines alone."""

from __future__ import annotations

import hashlib
import itertools
import re

import numpy as np
import pytest

from stages.data.tasks import training_rows
from stages.data.tasks.registry import TASKS, worded
from stages.data.tasks.scoring import first_said
from stages.stage import StageError
from tests.stages.readers import Bytes
from tests.stages.test_tasks_ruler import Pieces, haystack, items_of

SETTINGS = {
    "niah_single_1": {},
    "niah_single_2": {},
    "niah_multikey_1": {"k": [4, 8]},
    "niah_multikey_2": {},
    "niah_multivalue": {"k": [2, 4]},
    "niah_multiquery": {"k": [2, 4]},
    "mqar": {"k": [2, 16]},
    "overwrite": {"k": [2, 4]},
    "needles": {"k": [1, 4, 64, 65]},
    "vt": {"k": [1, 2]},
    "vt_2_chains": {"k": [1, 2]},
    "vt_4_chains": {"k": [1, 16]},
}
"""What each is asked here."""


def solved(name: str, text: str, k: int) -> list[str]:
    """The answer by the task's definition, from the prompt's lines."""
    queries = k if name in ("niah_multiquery", "mqar") else 1
    lines = text.split("\n")
    told, asked = lines[:-queries], lines[-queries:]
    pairs = [found.groups() for line in told if (found := re.match(r"([\w-]+(?: =)?) (\d+)", line))]
    if name.startswith("vt"):
        reached = asked
        for source, variable in pairs:
            reached = [*reached, variable] if source in reached else reached
        return reached[1:]
    found = [value for one in asked for key, value in pairs if key == one]
    return found[-1:] if name == "overwrite" else found


def test_every_task_with_this_wording_is_asked_here() -> None:
    assert set(worded("terse")) == {"passkey", "passkey_filler", "bindings", *SETTINGS}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("codec", [Bytes, Pieces])
def test_prompts_are_full_and_a_reader_of_their_lines_answers_them(name: str, codec: type) -> None:
    codec, items = items_of(name, "terse", 1200, trials=4, codec=codec(), **SETTINGS[name])
    record = TASKS[name]
    assert len({item.item for item in items}) == len({item.prompt for item in items}) == len(items)
    for item in items:
        text = codec.decode(item.prompt)
        assert len(item.prompt) + item.budget == 1200 and len(item.answer_ids) < item.budget
        assert solved(name, text, item.k) == list(item.answers)
        said = codec.decode(item.answer_ids)
        assert said == f" {' '.join(item.answers)}"
        assert record.score(record.read(said), item.answers) == first_said(said, item.answers) == 1
        assert not any(a in b for a, b in itertools.permutations(item.answers, 2))
        ends = [*item.offsets[1:], len(item.prompt)]
        needles = [codec.decode(item.prompt[a:b]) for a, b in zip(item.offsets, ends, strict=True)]
        assert all(f" {value}" in needle for value, needle in zip(item.values, needles, strict=True))


def test_chains_share_no_number() -> None:
    """Variables are called by numbers too: one that stood in two chains would lead from one into the other."""
    for item in items_of("vt_4_chains", "terse", 2000, trials=10, k=[16])[1]:
        assert len(set(item.values)) == 4 * 17 and not set(item.values) & {Bytes().decode(item.prompt[-2:])}


def test_what_must_be_told_apart_is_asked_in_words_of_its_own() -> None:
    """All numbers of a key, or the last of them: a model that learns both cannot tell from the numbers."""
    codec, (newest,) = items_of("overwrite", "terse", 400, trials=1, k=[2])
    _, (every,) = items_of("niah_multivalue", "terse", 400, trials=1, k=[2])
    assert codec.decode(newest.prompt).endswith(" =") and not codec.decode(every.prompt).endswith(" =")


def test_the_bytes_of_the_prompts_are_what_they_were() -> None:
    """With others every result on them would change: then raise the task's version."""
    digest = hashlib.sha256()
    for name, settings in SETTINGS.items():
        for item in items_of(name, "terse", 1200, trials=2, seed=7, **settings)[1]:
            digest.update(repr((item.item, item.prompt, item.answers, item.values, item.offsets)).encode())
    assert digest.hexdigest()[:16] == "1d5d451fc2b5af7a"


@pytest.mark.parametrize("name", SETTINGS)
def test_the_shortest_length_that_is_allowed_holds_a_prompt(name: str) -> None:
    with pytest.raises(StageError, match=rf"the task {name}.* does not fit") as error:
        items_of(name, "terse", 8, **SETTINGS[name])
    least = int(re.search(r">= (\d+) tokens", str(error.value)).group(1))
    assert items_of(name, "terse", least, trials=20, **SETTINGS[name])[1]


def test_they_can_be_trained_on() -> None:
    codec = Bytes()
    tokens, mask = training_rows(
        codec, haystack(codec), 200, 4, seed=0, format="terse", tasks=("needles", "vt"), own_ks={"needles": (2,)}
    )
    said = [codec.decode(row[marks.astype(bool)].tolist()) for row, marks in zip(tokens, mask, strict=True)]
    assert [len(text.rstrip(".").split()) for text in said] == [2, 5, 2, 5]  # vt: four hops, its own
    assert np.count_nonzero(mask) == sum(map(len, said))
