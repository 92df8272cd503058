"""The other compositional tasks: full prompts, and a reader of the text alone answers them by the definition."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from pipeline.errors import StudyError
from pipeline.study.load import load
from stages.data.tasks.facts import Event, simulate
from stages.data.tasks.filler import FILLER
from stages.data.tasks.registry import TASKS
from stages.data.tasks.unsaid import NAMES, QUESTION, TRADES, sentence_of
from stages.stage import StageError
from tests.stages.readers import Bytes
from tests.stages.test_tasks_ruler import Pieces, items_of
from tests.tiny import write_study

OWN = ["passkey_filler", "mqar", "overwrite", "unsaid", "nth", "facts", "needles"]
NTH = re.compile(r"Reply number (\d+) of those about the (\w+), again")


def solved(name, text):
    """The answer by the task's definition, from the prompt's text."""
    told, _, asked = text.rpartition("\n")
    if name == "passkey_filler":
        return [re.search(r"[pP]ass key is (\d+)\.", told).group(1)]
    if name == "mqar":
        keys = re.split(r", | and ", re.search(r"numbers of (.*), in this order", asked).group(1))
        return [re.search(rf"The number of {key} is (\w+)\.", told).group(1) for key in keys]
    if name == "overwrite":
        key = re.search(r"number of (\S+) is now", asked).group(1)
        return [re.findall(rf"The number of {key} is now (\w+)\.", told)[-1]]
    if name == "unsaid":
        trade = re.search(r"Who is likely a (\w+)\?", asked).group(1)
        return [re.search(rf"\n(\w+) {re.escape(TRADES[trade])}", told).group(1)]
    if name == "nth":
        n, topic = NTH.search(asked).groups()
        return [re.findall(rf"a line about the {topic}\.\nReply: (.+)\.\n", told)[int(n) - 1]]
    if name == "needles":
        return re.findall(r"(?:numbers is|Number) (\d+)\.\n", told)
    return [place_of(re.search(r"Where is (?:the )?(\w+) now", asked).group(1), told)]


def place_of(one, told):
    """By reading backwards, unlike the simulator: who or what moved last decides."""
    found = re.findall(
        rf"\n(?:{one} went to the (?P<place>\w+)|(?P<taker>\w+) took the {one}"
        rf"|\w+ put the {one} into the (?P<into>\w+)|\w+ gave the {one} to (?P<to>\w+))\.\n",
        re.sub(r"\n", "\n\n", told),
    )
    place, *holders = found[-1]
    return place or place_of(next(filter(None, holders)), told)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(("format", "length"), [("compact", 2048), ("published", 6000)])
@pytest.mark.parametrize("codec", [Bytes, Pieces])
def test_prompts_are_full_and_a_reader_of_the_text_answers_them(name, format, length, codec):
    codec, items = items_of(name, format, length, codec=codec(), trials=4)
    record = TASKS[name]
    assert len({item.item for item in items}) == len({item.prompt for item in items}) == len(items)
    for item in items:
        text = codec.decode(item.prompt)
        assert len(item.prompt) + item.budget == length and len(item.answer_ids) < item.budget
        found = solved(name, text)
        assert (found if name != "needles" else sorted(found)) == (
            list(item.answers) if name != "needles" else sorted(item.answers)
        )
        assert record.score(record.read(codec.decode(item.answer_ids)), item.answers) == 1
        assert record.score(record.read(" nothing"), item.answers) == 0
        assert not any(a in b for a, b in itertools.permutations(item.answers, 2))
        assert len(item.offsets) == len(item.values) and item.segments(64) >= 0
        ends = [*item.offsets[1:], len(item.prompt)]
        needles = [codec.decode(item.prompt[a:b]) for a, b in zip(item.offsets, ends, strict=True)]
        assert all(value in needle for value, needle in zip(item.values, needles, strict=True))


def test_the_filler_is_landmark_attentions_word_for_word():
    (item,) = items_of("passkey_filler", "published", 2000, trials=1)[1]
    text = Bytes().decode(item.prompt)
    rest = text.partition("I will quiz you about the important information there.\n")[2]
    needle = f"\nThe pass key is {item.expected}. Remember it. {item.expected} is the pass key.\n"
    before, _, after = rest.partition(needle)
    assert rest.endswith("\nWhat is the pass key? The pass key is")
    assert before + after.removesuffix("\nWhat is the pass key? The pass key is") in FILLER * 40
    assert FILLER == "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
    assert TASKS["passkey_filler"].read(" 12,345") == "12345"


def test_needle_and_question_share_no_word():
    for trade in TRADES:
        asked = set(re.findall(r"\w+", QUESTION.format(trade).lower()))
        for deed in TRADES:
            for name in NAMES:
                assert not asked & set(re.findall(r"\w+", sentence_of(name, deed).lower()))
        stem = trade[:4]
        assert stem not in TRADES[trade]


def test_gaps_follow_a_power_law():
    """P(gap > x) = 1 - x^0.1 in shares of the haystack: most are short, some reach over all of it."""
    items = items_of("mqar", "compact", 8000, trials=60, k=[16])[1]
    gaps = np.sort([(len(i.prompt) - offset) / len(i.prompt) for i in items for offset in i.offsets])
    assert np.mean(gaps < 0.1) > 0.4 and 0.02 < np.mean(gaps > 0.5) < 0.15
    assert np.mean(gaps > 0.5) == pytest.approx(1 - 0.5**0.1, abs=0.03)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_so_many_facts_support_the_answer(k):
    for item in items_of("facts", "compact", 2048, trials=20, k=[k])[1]:
        text = Bytes().decode(item.prompt)
        events = [parsed(value) for value in item.values]
        subject = re.search(r"Where is (?:the )?(\w+) now", text).group(1)
        place, support = simulate(events).find(subject)
        assert place == item.expected and len(support) == k
        assert item.needle_end == item.offsets[max(support)] + len(item.values[max(support)]) + 2


def parsed(text):
    for kind, form in (
        ("go", r"(\w+) went to the ()(\w+)\."),
        ("take", r"(\w+) took the (\w+)()\."),
        ("put", r"(\w+) put the (\w+) into the (\w+)\."),
        ("give", r"(\w+) gave the (\w+) to (\w+)\."),
    ):
        if found := re.fullmatch(form, text):
            return Event(kind, *found.groups())
    raise AssertionError(text)


def test_up_to_512_needles_are_all_asked():
    (item,) = items_of("needles", "published", 24000, trials=1, k=[512], codec=Pieces())[1]
    assert len(set(item.answers)) == 512 and len(item.prompt) + item.budget == 24000


def test_naming_the_set_is_not_binding():
    """All numbers in any order count for the task of the set, at their own place only for associative recall."""
    item = items_of("mqar", "compact", 1024, trials=1, k=[16])[1][0]
    assert TASKS["mqar"].score(", ".join(sorted(item.answers)), item.answers) < 0.5
    item = items_of("unsaid", "compact", 1024, trials=1, k=[4])[1][0]
    assert TASKS["unsaid"].score(", ".join(item.values), item.answers) in (0, 1)
    everyone = [
        TASKS["unsaid"].score(", ".join(i.values), i.answers)
        for i in items_of("unsaid", "compact", 1024, trials=80, k=[4])[1]
    ]
    assert 0.1 < np.mean(everyone) < 0.45


@pytest.mark.parametrize("name", OWN)
def test_a_length_that_holds_no_prompt_is_refused_at_once(name):
    with pytest.raises(StageError, match=rf"the task {name}.* does not fit.*allowed: >= \d+ tokens"):
        items_of(name, "compact", 24)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("format", ["compact", "published"])
def test_the_shortest_length_that_is_allowed_holds_a_prompt(name, format):
    with pytest.raises(StageError) as error:
        items_of(name, format, 8)
    least = int(re.search(r">= (\d+) tokens", str(error.value)).group(1))
    assert items_of(name, format, least, trials=20)[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{tasks: [vt]}", r"claims\.compositional\.tasks = 'vt': not measured \(allowed: .* \['facts'\]\)"),
        ("{length: 4096}", r"claims\.compositional\.length = 4096: not measured \(allowed: .* = \[2048\]\)"),
    ],
)
def test_a_rule_for_what_is_not_asked_is_refused(tmp_path, change, message):
    asked = "evaluate.retrieval.tasks={facts: {lengths: [2048]}}"
    with pytest.raises(StudyError, match=message):
        load(write_study(tmp_path), [asked, f"claims.compositional={change}"], environment={})
    load(write_study(tmp_path), [asked, "claims.compositional={tasks: [facts], length: 2048}"], environment={})
