"""Many needles, all of them asked (``needles``): how much of what was said in a long text is still there."""

from __future__ import annotations

import random

from stages.data.tasks.haystack import Format, Haystack, Prompt, Trial
from stages.data.tasks.recall import number_room
from stages.data.tasks.scoring import everything, whole_in
from stages.data.tasks.task import Task
from stages.data.tasks.texts import numbers

MOST = 512
FEW = 64
"""Needles whose terse numbers have two digits, of which there are 90."""

NEEDLE: dict[Format, str] = {
    "published": "\nOne of the secret numbers is {}.\n",
    "compact": "\nNumber {}.\n",
    "terse": "\nnumber {}",
}
QUESTION: dict[Format, str] = {
    "published": "\nWhat are all the secret numbers that the text names? The secret numbers are",
    "compact": "\nThe numbers are",
    "terse": "\nnumber",
}


def digits(format: Format, k: int) -> int:
    """Of each number."""
    return {"published": 5, "compact": 3, "terse": 2 if k <= FEW else 3}[format]


def draw(haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
    """k numbers in needles of their own; in any order they are the answer."""
    values = numbers(rng, digits(haystack.format, trial.k), trial.k)
    needles = [NEEDLE[haystack.format].format(value) for value in values]
    question = QUESTION[haystack.format]
    return haystack.hide(trial, rng, needles, question, answers=values, values=values, asked=range(trial.k))


def _shortest(haystack: Haystack, k: int) -> int:
    format = haystack.format
    value = haystack.widest(numbers(random.Random(0), digits(format, k), 64))
    return haystack.shortest([NEEDLE[format].format(value)] * k, QUESTION[format])


NEEDLES = Task(
    name="needles",
    sentence="all of k numbers in a long text",
    draw=draw,
    shortest=_shortest,
    room=lambda haystack, k: number_room(digits(haystack.format, k), k, haystack),
    composes="values",
    ks=(1, 4, 16),
    largest=MOST,
    formats=tuple(NEEDLE),
    read=everything,
    score=whole_in,
)
