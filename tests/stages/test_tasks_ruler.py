"""RULER's thirteen tasks: every prompt is full, and a reader of its text alone answers it by the definition."""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections import Counter

import numpy as np
import pytest

from stages.data.tasks.config import RetrievalConfig
from stages.data.tasks.counting import counts
from stages.data.tasks.prompts import evaluation_items
from stages.data.tasks.registry import RULER, TASKS
from stages.data.tasks.texts import keys, made_up
from stages.data.tasks.words import CUES
from stages.stage import StageError
from tests.stages.readers import Bytes

NAMES = [task.name for task in RULER]
TRACKED = ["vt_2_chains", "vt_4_chains"]


class Pieces:
    """A token for every four letters, and for every other character."""

    begin = ()

    def __init__(self):
        self.known: dict[str, int] = {}
        self.texts: list[str] = []

    def encode(self, text):
        return [self._id(piece) for piece in re.findall(r" ?[A-Za-z]{1,4}|(?s:.)", text)]

    def decode(self, ids):
        return "".join(self.texts[i] for i in ids)

    def _id(self, piece):
        if piece not in self.known:
            self.known[piece] = len(self.texts)
            self.texts.append(piece)
        return self.known[piece]


@functools.cache
def prose():
    rng = np.random.default_rng(5)
    return " ".join("".join(chr(97 + c) for c in rng.integers(0, 26, rng.integers(2, 9))) for _ in range(16000))


def haystack(codec):
    return np.array(codec.encode(prose()), np.int32)


def items_of(name, format, length, trials=3, codec=None, seed=0, **settings):
    codec = codec or Bytes()
    config = RetrievalConfig(format=format, lengths=(length,), trials=trials, tasks={name: settings})
    return codec, list(evaluation_items(config, codec, haystack(codec), seed, grids=config.further))


def solved(name, text):
    """The answer by the task's definition, from the prompt's text in the published wording."""
    if name.startswith("niah"):
        asked = re.search(r"special magic \w+ for ([^?]+?) mentioned in the provided text (?:is|are)$", text).group(1)
        needles = re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.\n", text)
        return [value for key in re.split(r", | and ", asked) for owner, value in needles if owner == key]
    if name.startswith("vt"):
        reached = [re.search(r"have the value (\d+), they are:$", text).group(1)]
        for variable, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text):
            reached += [variable] if source in reached else []
        return reached[1:]
    if name == "cwe":
        count = Counter(re.findall(r"\d+\. ([a-z]{6})\b", text.split("common words of the list are:")[1]))
        assert (
            len({n for _, n in count.most_common(10)}) == 1
            and count.most_common(11)[10][1] < count.most_common(1)[0][1]
        )
        return [one for one, _ in count.most_common(10)]
    if name == "fwe":
        count = Counter(
            re.findall(r" ([a-z]{6})\b(?! words| in)", text.split("every coded word.\n")[1].split("\nQuestion")[0])
        )
        assert count.most_common(4)[2][1] > count.most_common(4)[3][1]
        return [one for one, _ in count.most_common(3)]
    asked = re.search(r"In which town was (.+?) born\? Answer:$", text).group(1)
    if asked.startswith("the founder of "):
        firm = asked.removeprefix("the founder of ")
        asked = re.search(rf"\n{firm} is a workshop .* It was founded by (.+)\.\n", text).group(1)
    return [re.search(rf"\n{asked} was born in the town of (\w+) in", text).group(1)]


@pytest.mark.parametrize("name", NAMES + TRACKED)
@pytest.mark.parametrize("codec", [Bytes, Pieces])
def test_a_reader_of_the_text_answers_by_the_definition(name, codec):
    codec, items = items_of(name, "published", 8192, codec=codec())
    assert len({item.prompt for item in items}) == 3
    for item in items:
        found = solved(name, codec.decode(item.prompt))
        assert sorted(found) == sorted(item.answers), item.item
        if name not in ("cwe", "fwe"):
            assert len(found) == {
                "vt": 5,
                "vt_2_chains": 5,
                "vt_4_chains": 5,
                "niah_multivalue": 4,
                "niah_multiquery": 4,
            }.get(name, 1)


@pytest.mark.parametrize(
    ("length", "listed", "shown"),
    [(3000, (6, 1), (20, 3, 1)), (4096, (30, 3), (40, 10, 3)), (16384, (30, 3), (40, 10, 3))],
)
def test_common_words_stand_as_often_as_ruler_says(length, listed, shown):
    """RULER's generator: 10 words 30 times and others 3 times, from 4,096 tokens on; 6 times and once below. Its worked
    example has 40 words, 10 times and 3 times; below 20, 3 times and once."""
    codec, items = items_of("cwe", "published", length, codec=Pieces())
    for item in items:
        example, text = codec.decode(item.prompt).split("common words of the list are:")[:2]
        common, other = listed
        seen = Counter(re.findall(r"\d+\. ([a-z]{6})\b", text))
        assert set(seen.values()) == {common, other} and list(seen.values()).count(common) == 10
        seen = Counter(re.findall(r"\d+\. ([a-z]{6})\b", example))
        assert (len(seen), max(seen.values()), min(seen.values())) == shown


@pytest.mark.parametrize("name", NAMES + TRACKED)
@pytest.mark.parametrize(
    ("format", "length"), [("compact", 1500), ("compact", 4096), ("published", 4096), ("published", 20000)]
)
@pytest.mark.parametrize("codec", [Bytes, Pieces])
def test_every_prompt_is_full_and_says_where_its_needles_are(name, format, length, codec):
    codec, items = items_of(name, format, length, codec=codec())
    assert len({item.item for item in items}) == len(items) == 3
    record, texts = TASKS[name], [codec.decode(item.prompt) for item in items]
    for item, text in zip(items, texts, strict=True):
        assert len(item.prompt) + item.budget == length and len(item.answer_ids) < item.budget
        assert record.score(record.read(codec.decode(item.answer_ids)), item.answers) == 1
        assert not any(a in b for a, b in itertools.permutations(item.answers, 2))
        assert all(answer in text for answer in item.answers)
        starts = [codec.decode(item.prompt[offset:]) for offset in item.offsets]
        if name not in ("cwe", "fwe"):
            ends = [*item.offsets[1:], len(item.prompt)]
            needles = [codec.decode(item.prompt[a:b]) for a, b in zip(item.offsets, ends, strict=True)]
            assert all(value in needle for value, needle in zip(item.values, needles, strict=True))
            assert all(start.startswith("\n") for start in starts)
        assert item.offsets[item.asked_rank] < item.needle_end <= len(item.prompt)
        far = item.segments(64)
        assert (far > 0) == item.beyond_local(64) and far == (len(item.prompt) - 1) // 64 - (item.needle_end - 1) // 64
    if name not in ("cwe", "fwe"):  # their answers stand all over
        assert len({item.needle_end for item in items}) > 1


def test_the_bytes_of_the_prompts_are_what_they_were():
    """With others every result on them would change: then raise the task's version."""
    found = {}
    for format in ("compact", "published"):
        digest = hashlib.sha256()
        for name in NAMES + TRACKED:
            for item in items_of(name, format, 4096, trials=2, seed=7)[1]:
                digest.update(repr((item.item, item.prompt, item.answers, item.values, item.offsets)).encode())
        found[format] = digest.hexdigest()[:16]
    assert found == {"compact": "1234f3bbf68d4c47", "published": "867e5244f0280c24"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("format", ["compact", "published"])
def test_a_length_that_holds_no_prompt_is_refused_at_once(name, format):
    with pytest.raises(StageError, match=rf"the task {name}.* does not fit.*allowed: >= \d+ tokens"):
        items_of(name, format, 48 if format == "compact" else 180)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("format", ["compact", "published"])
def test_the_shortest_length_that_is_allowed_holds_a_prompt(name, format):
    try:
        items_of(name, format, 8)
    except StageError as error:
        least = int(re.search(r">= (\d+) tokens", str(error)).group(1))
    assert len(items_of(name, format, least, trials=20)[1]) == 20


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("niah_multikey_1", {"k": [2, 16]}),
        ("niah_multivalue", {"k": [8]}),
        ("niah_multiquery", {"k": [8]}),
        ("vt", {"k": [1, 8]}),
        ("cwe", {"k": [3]}),
        ("fwe", {"k": [1, 5]}),
    ],
)
def test_the_size_of_a_task_is_its_k(name, settings):
    items = items_of(name, "published", 16384, **settings)[1]
    size = {"niah_multikey_1": lambda k: 1, "vt": lambda k: k + 1}.get(name, lambda k: k)
    assert all(len(item.answers) == size(item.k) and len(item.prompt) + item.budget == 16384 for item in items)


def test_frequencies_follow_the_zeta_distribution():
    found = counts(100_000)
    assert found[:4] == [60792, 15198, 6754, 3799] and found[-1] >= 1
    assert sum(found) == pytest.approx(100_000, rel=0.01)


def test_no_asked_place_is_better_than_another():
    asked = [item for item in items_of("niah_multikey_1", "compact", 512, trials=400)[1]]
    for rank in range(4):
        assert 70 < sum(item.asked_rank == rank for item in asked) < 130  # 100 expected, standard deviation 8.7
    alone = [item.depth for item in items_of("niah_multikey_2", "compact", 1024, trials=200)[1]]
    assert max(abs(depth - (n + 0.5) / 200) for n, depth in enumerate(sorted(alone))) < 0.15


def test_keys_and_made_up_words_never_repeat():
    import random

    drawn = list(itertools.islice(keys(random.Random(1)), 30_000))
    assert len(set(drawn)) == 30_000 and set(drawn[: len(CUES)]) == set(CUES)
    assert len(set(itertools.islice(made_up(random.Random(1)), 30_000))) == 30_000


def test_a_million_tokens_fit_in_own_text():
    (item,) = items_of("niah_multikey_2", "published", 1_000_000, trials=1)[1]
    assert len(item.prompt) + item.budget == 1_000_000
