"""What a retrieval task is: one record."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stages.data.tasks.haystack import Format, Haystack, Prompt, Trial
from stages.data.tasks.scoring import first_number, same

CONTROL = "_absent"
"""Ends the name under which a task's controls stand in a table."""


def text_there_is(haystack: Haystack, k: int) -> float:
    """Longest prompt of a task that is filled with held-out text."""
    return len(haystack.tokens)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A retrieval task.

    draw: (haystack, trial, random stream) -> the prompt, of at most ``trial.length`` tokens; the stream is the prompt's
    own, so a prompt depends on nothing that was drawn before it. shortest: (haystack, k) -> fewest tokens of a prompt,
    the answer aside; longest: most, with the answer. budget: tokens kept free for the answer and what ends it, or
    room: (haystack, k) -> the same, where the tokenizer and k count. composes: what it asks beyond finding one needle
    ("keys", "hops", ...), which makes it evidence of claim C4; "": nothing. ks: the
    k that are asked by default (number of needles, hops: the task's own size), largest: what a study may set it to at
    most. control_k: k of the control prompts, which ask for what stands nowhere; None: there are none. by_depth: its
    one needle lies at depths that are spread evenly (or a grid), not at random. told_needle: it asks for the needle
    that ``trial.needle`` names, in a text that does not depend on which. formats: wordings it has. chance:
    (wording, k) -> share right by a guess; None: answers are not uniform. read, score: from what a model said to its
    answer, and how right that is (0 to 1). version: raised whenever the same settings give other prompts or scores.
    """

    name: str
    sentence: str
    draw: Callable[[Haystack, Trial, random.Random], Prompt]
    shortest: Callable[[Haystack, int], int]
    budget: Callable[[Format], int] | None = None
    room: Callable[[Haystack, int], int] | None = None
    composes: str = ""
    longest: Callable[[Haystack, int], float] = text_there_is
    ks: tuple[int, ...] = (1,)
    largest: int = 1
    control_k: Callable[[int], int] | None = None
    by_depth: bool = False
    told_needle: bool = False
    formats: tuple[Format, ...] = ("published", "compact")
    chance: Callable[[Format, int], float] | None = None
    read: Callable[[str], str] = first_number
    score: Callable[[str, Sequence[str]], float] = same
    version: int = 1

    def __post_init__(self) -> None:
        if (self.budget is None) == (self.room is None):
            raise ValueError(f"task {self.name!r}: one of budget and room is needed. Fix: give one")

    def free(self, haystack: Haystack, k: int) -> int:
        """Tokens kept free for the answer and what ends it."""
        if self.room is not None:
            return self.room(haystack, k)
        assert self.budget is not None
        return self.budget(haystack.format)

    @property
    def most(self) -> int:
        """Largest k."""
        return max(self.largest, *self.ks)
