"""Needles side by side where a prompt begins, one of them asked some segments later: what recall is measured with.

One needle is the passkey, several are bindings, in their own words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from stages.data.tasks import needles
from stages.data.tasks.haystack import Haystack, Prompt, Trial
from stages.data.tasks.prompts import PromptMaker
from stages.data.tasks.task import Task


def draw(segment: int, haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
    """The needles evenly over the first segment (in a row where they are more than it holds), then text alone."""
    task = needles.PASSKEY if trial.k == 1 else needles.BINDINGS

    def places(filler: int) -> Sequence[int]:
        written = trial.length - filler  # instruction, needles and question
        free = max(0, min(filler, segment - written))
        return [round(free * (number + 0.5) / trial.k) for number in range(trial.k)]

    return task.draw(_Placed(haystack, places), replace(trial, depth=None), rng)


class _Placed(Haystack):
    """A haystack whose needles lie where ``places`` says."""

    def __init__(self, haystack: Haystack, places: Callable[[int], Sequence[int]]) -> None:
        self.__dict__.update(haystack.__dict__)
        self._places = places

    def hide(self, *args: Any, **options: Any) -> Prompt:
        return super().hide(*args, **options | {"places": self._places})


def task_of(segment: int) -> Task:
    """The record of the probe's prompts."""
    return Task(
        name="recall",
        sentence="one of k needles of the first segment, some segments later",
        draw=partial(draw, segment),
        shortest=lambda haystack, k: (needles.PASSKEY if k == 1 else needles.BINDINGS).shortest(haystack, k),
        budget=needles.budget,
        largest=needles.MOST_RIVALS,
        told_needle=True,
        formats=tuple(needles.WORDING),
    )


def length_of(maker: PromptMaker, task: Task, k: int, segments: int, segment: int) -> int:
    """Tokens of a prompt whose question ends ``segments`` segments behind the first, with its answer's budget."""
    return (1 + segments) * segment + task.free(maker.haystack, k)


def check(maker: PromptMaker, items: Iterable[int], segments: Iterable[int], segment: int, *, field: str) -> None:
    """StageError, naming ``field``, unless every prompt fits."""
    task, shortest = task_of(segment), min(segments)
    for k in items:
        maker.check(task, length_of(maker, task, k, shortest, segment), k, field=field)
