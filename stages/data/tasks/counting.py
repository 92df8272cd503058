"""RULER's aggregation: the most common words of a list (``cwe``), the most frequent ones of a coded text (``fwe``)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import islice

from stages.data.tasks.haystack import MIN_FILLER, Haystack, Prompt, Trial
from stages.data.tasks.niah import answer_room
from stages.data.tasks.scoring import everything, whole_in
from stages.data.tasks.task import Task
from stages.data.tasks.texts import NOISE, made_up, words
from stages.stage import StageError

COMMON_BUDGET, FREQUENT_BUDGET = 120, 50
LONG_FROM, LONG, SHORT = 4096, (30, 3), (6, 1)
"""From so many tokens on the common words stand 30 times and the others 3 times, before 6 times and once."""

SAMPLE = words(random.Random(0), 64)
"""Words by which tokens are estimated."""

DOTS = " ..."
EXPONENT = 2.0  # of the word frequencies


# --- common words -------------------------------------------------------------------------------------------------
def common(haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
    """A numbered list in random order, k words of it ten (or six) times as often as the others; as many others as fit.

    In the published wording a worked example with other words stands in front.
    """
    k, draw = trial.k, made_up(rng)
    long = _long(haystack, trial)
    often, seldom = LONG if long else SHORT
    answers = list(islice(draw, k))
    question, instruction = _common_question(haystack, k), ""
    if haystack.format == "published":
        instruction = _example(haystack, draw, k, long, rng)
    entries = answers * often
    left = _left(haystack, trial, instruction, question)
    left -= sum(len(haystack.encode(f" {one}")) for one in entries)
    left -= sum(len(haystack.encode(_number(place))) for place in range(1, len(entries) + 1))
    for other in draw:
        left -= seldom * len(haystack.encode(f" {other}"))
        left -= sum(len(haystack.encode(_number(len(entries) + place))) for place in range(1, seldom + 1))
        if left < 0:
            break
        entries += [other] * seldom
    rng.shuffle(entries)
    tokens: list[int] = []
    for place, one in enumerate(entries, 1):
        tokens += haystack.encode(_number(place))
        tokens += haystack.encode(f" {one}")
    return _whole(haystack.of(NOISE, trial.length), trial, rng, tokens, question, answers, instruction)


def _example(haystack: Haystack, draw: Iterator[str], k: int, long: bool, rng: random.Random) -> str:
    often, seldom, others = (10, 3, 30) if long else (3, 1, 10)
    answers = list(islice(draw, k))
    entries = answers * often + list(islice(draw, others)) * seldom
    rng.shuffle(entries)
    return (
        "Below is a numbered list of words, some of which stand in it more often than others.\n"
        + "".join(f"{_number(place)} {one}" for place, one in enumerate(entries, 1))
        + _common_question(haystack, k)
        + f" {', '.join(answers)}\n\n"
    )


def _long(haystack: Haystack, trial: Trial) -> bool:
    """Is the prompt long enough for the frequencies of long ones?"""
    asked = trial.length + _common_room(haystack, trial.k)
    return asked >= LONG_FROM and trial.length >= _least(haystack, trial.k, long=True)


def _number(place: int) -> str:
    return f" {place}."


def _common_question(haystack: Haystack, k: int) -> str:
    if haystack.format == "compact":
        return f"\nThe {k} most common words are"
    return (
        f"\nQuestion: Which {k} words stand most often in the list above? "
        f"Answer: The {k} most common words of the list are:"
    )


def _least(haystack: Haystack, k: int, *, long: bool) -> int:
    """Tokens of a list that has every word of the answer and one other."""
    often, seldom = LONG if long else SHORT
    widest = haystack.widest([f" {one}" for one in SAMPLE])
    entries = often * k + seldom
    total = len(haystack.encode(widest)) * entries + sum(len(haystack.encode(_number(n + 1))) for n in range(entries))
    example = ""
    if haystack.format == "published":
        rng = random.Random(0)
        example = _example(haystack, made_up(rng), k, long, rng)
    return total + len(haystack.encode(example)) * 11 // 10 + haystack.shortest(["\n"], _common_question(haystack, k))


def _shortest_common(haystack: Haystack, k: int) -> int:
    return _least(haystack, k, long=False)


def _common_room(haystack: Haystack, k: int) -> int:
    return answer_room(haystack, SAMPLE, k, COMMON_BUDGET)


# --- frequent words -----------------------------------------------------------------------------------------------
def frequent(haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
    """Coded words with the frequencies of a zeta distribution (exponent 2), in random order. The most frequent is
    "..."; asked are the k that follow it."""
    k, question = trial.k, _frequent_question(haystack, trial.k)
    instruction = _frequent_instruction(haystack)
    room = _left(haystack, trial, instruction, question)
    most = ranks(room) + 1  # a token a word at least
    coded = [DOTS, *(f" {one}" for one in words(rng, most))]
    cost = [len(haystack.encode(one)) for one in coded]
    low, high = 0, room
    while low < high:
        total = (low + high + 1) // 2
        if sum(n * c for n, c in zip(counts(total), cost, strict=False)) <= room:
            low = total
        else:
            high = total - 1
    frequencies = counts(low)
    if len(frequencies) <= k + 1 or frequencies[k] == frequencies[k + 1]:
        raise StageError("the words of a prompt do not fit", field="length", value=trial.length, fix="raise the length")
    text = [one for one, n in zip(coded, frequencies, strict=False) for _ in range(n)]
    rng.shuffle(text)
    tokens = [token for one in text for token in haystack.encode(one)]
    answers = [one.strip() for one in coded[1 : k + 1]]
    return _whole(haystack.of(DOTS, trial.length), trial, rng, tokens, question, answers, instruction)


def counts(total: int) -> list[int]:
    """How often each rank stands in ``total`` words: total / (zeta(2) rank^2), those that stand once at least."""
    scale = total / (math.pi**2 / 6)
    return [int(scale / rank**EXPONENT) for rank in range(1, ranks(total) + 1)]


def ranks(total: int) -> int:
    """Ranks that stand at least once in ``total`` words."""
    return math.isqrt(max(0, int(total / (math.pi**2 / 6))))


def _frequent_instruction(haystack: Haystack) -> str:
    if haystack.format == "compact":
        return ""
    return "Read the coded text below and keep count of every coded word.\n"


def _frequent_question(haystack: Haystack, k: int) -> str:
    if haystack.format == "compact":
        return f"\nThe {k} most frequent words are"
    return (
        f"\nQuestion: Which {k} words are the most frequent in the coded text above? The dots '...' are no word. "
        f"Answer: The {k} most frequent words of the coded text are:"
    )


def _shortest_frequent(haystack: Haystack, k: int) -> int:
    total = 1
    while len(found := counts(total)) <= k + 1 or found[k] == found[k + 1]:
        total += 1
    widest = len(haystack.encode(haystack.widest([f" {one}" for one in SAMPLE])))
    text = found[0] * len(haystack.encode(DOTS)) + sum(found[1:]) * (widest + 1)
    return text + haystack.shortest(["\n"], _frequent_question(haystack, k), _frequent_instruction(haystack))


def _frequent_room(haystack: Haystack, k: int) -> int:
    return answer_room(haystack, SAMPLE, k, FREQUENT_BUDGET)


def _whole(
    haystack: Haystack,
    trial: Trial,
    rng: random.Random,
    tokens: Sequence[int],
    question: str,
    answers: Sequence[str],
    instruction: str,
) -> Prompt:
    """A prompt all of whose text is needed: its one needle is the text, between line ends."""
    end = haystack.encode("\n")
    return haystack.hide(
        trial,
        rng,
        [[*end, *tokens, *end]],
        question,
        answers=answers,
        values=[" ".join(answers)],
        instruction=instruction,
    )


def _left(haystack: Haystack, trial: Trial, *texts: str) -> int:
    """Tokens for the text between line ends."""
    return trial.length - sum(len(haystack.encode(text)) for text in ("\n", "\n", *texts)) - MIN_FILLER


COMMON = Task(
    name="cwe",
    sentence="the k most common words of a list",
    draw=common,
    shortest=_shortest_common,
    room=_common_room,
    composes="aggregation",
    longest=lambda haystack, k: math.inf,
    ks=(10,),
    largest=10,
    read=everything,
    score=whole_in,
)
FREQUENT = Task(
    name="fwe",
    sentence="the k most frequent words of a coded text",
    draw=frequent,
    shortest=_shortest_frequent,
    room=_frequent_room,
    composes="aggregation",
    longest=lambda haystack, k: math.inf,
    ks=(3,),
    largest=5,
    read=everything,
    score=whole_in,
)
