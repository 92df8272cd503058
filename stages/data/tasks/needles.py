"""The tasks of the claims: one passkey in a long text, and one binding among k rivals.

In ``bindings`` the asked needle is any of the k, so that no position gives the answer away.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from stages.data.tasks.haystack import Format, Haystack, Prompt, Trial
from stages.data.tasks.task import Task
from stages.data.tasks.words import CUES

MOST_RIVALS = 64
"""Largest k of the bindings task (claim C5 asks 1..64); there are 90 compact numbers and 143 cue words."""


@dataclass(frozen=True)
class NeedleWording:
    """Sentences of one format. ``numbers``: inclusive range of the answers."""

    instruction: str
    passkey: str
    passkey_question: str
    binding: str
    binding_question: str
    numbers: tuple[int, int]
    binding_numbers: tuple[int, int]


WORDING: dict[Format, NeedleWording] = {
    "published": NeedleWording(
        instruction="There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
        "I will quiz you about the important information there.\n",
        passkey="\nThe pass key is {value}. Remember it. {value} is the pass key.\n",
        passkey_question="\nWhat is the pass key? The pass key is",
        binding="\nThe passkey associated with the word {cue} is {value}.\n",
        binding_question="\nWhat is the passkey associated with the word {cue}? "
        "The passkey associated with the word {cue} is",
        numbers=(1, 50000),
        binding_numbers=(10000, 50000),  # one width: no number is part of another
    ),
    "compact": NeedleWording(
        instruction="",
        passkey="\nThe pass key is {value}.\n",
        passkey_question="\nThe pass key is",
        binding="\nThe key of {cue} is {value}.\n",
        binding_question="\nThe key of {cue} is",
        numbers=(10, 99),
        binding_numbers=(10, 99),
    ),
    "terse": NeedleWording(
        instruction="",
        passkey="\npass key {value}",
        passkey_question="\npass key",
        binding="\n{cue} {value}",
        binding_question="\n{cue}",
        numbers=(10, 99),
        binding_numbers=(10, 99),
    ),
}


def budget(format: Format) -> int:
    """One token per character of the longest " number" and one that ends it."""
    return len(f" {WORDING[format].numbers[1]}") + 1


def passkey(haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
    """One needle with a number; in a control none, and the number drawn stands nowhere."""
    wording = WORDING[haystack.format]
    values = draw_numbers(rng, wording.numbers, 1)
    needles = [wording.passkey.format(value=value) for value in values[: trial.k]]
    return haystack.hide(
        trial,
        rng,
        needles,
        wording.passkey_question,
        answers=values,
        values=values[: trial.k],
        instruction=wording.instruction,
    )


def bindings(haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
    """k needles, each a cue word and its number. In a control the asked word is in none of them and the answer is the
    number of one rival drawn at random: a model that knows the set but no binding is right 1/k of the time."""
    wording, k = WORDING[haystack.format], trial.k
    values = draw_numbers(rng, wording.binding_numbers, k)
    cues = rng.sample(CUES, k + 1)
    rank = rng.randrange(k)  # drawn in any case: what is drawn after it is the same whichever is asked
    rank = rank if trial.needle is None else trial.needle
    return haystack.hide(
        trial,
        rng,
        [wording.binding.format(cue=cue, value=value) for cue, value in zip(cues, values, strict=False)],
        wording.binding_question.format(cue=cues[k if trial.absent else rank]),
        answers=values[rank : rank + 1],
        values=values,
        asked=(rank,),
        instruction=wording.instruction,
    )


def draw_numbers(rng: random.Random, numbers: tuple[int, int], count: int) -> list[str]:
    """``count`` distinct numbers of an inclusive range."""
    low, high = numbers
    return [str(value) for value in rng.sample(range(low, high + 1), count)]


def _shortest_passkey(haystack: Haystack, k: int) -> int:
    wording = WORDING[haystack.format]
    needle = wording.passkey.format(value=max(wording.numbers) - 1)
    return haystack.shortest([needle], wording.passkey_question, wording.instruction)


def _shortest_bindings(haystack: Haystack, k: int) -> int:
    wording = WORDING[haystack.format]

    def tokens(text: str) -> int:
        return len(haystack.encode(text))

    needles = [wording.binding.format(cue=cue, value=max(wording.numbers) - 1) for cue in CUES]
    questions = [wording.binding_question.format(cue=cue) for cue in CUES]
    return haystack.shortest([max(needles, key=tokens)] * k, max(questions, key=tokens), wording.instruction)


def _chance(numbers: tuple[int, int]) -> float:
    low, high = numbers
    return 1 / (high - low + 1)


PASSKEY = Task(
    name="passkey",
    sentence="one number in a long text",
    draw=passkey,
    shortest=_shortest_passkey,
    budget=budget,
    control_k=lambda k: 0,
    by_depth=True,
    formats=tuple(WORDING),
    chance=lambda format, k: _chance(WORDING[format].numbers),
)
BINDINGS = Task(
    name="bindings",
    sentence="the number of one word among k words with numbers",
    draw=bindings,
    shortest=_shortest_bindings,
    budget=budget,
    ks=(1, 2, 4, 8),
    largest=MOST_RIVALS,
    control_k=lambda k: k,
    told_needle=True,
    formats=tuple(WORDING),
    chance=lambda format, k: _chance(WORDING[format].binding_numbers),
)
