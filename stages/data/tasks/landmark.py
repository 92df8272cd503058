"""The passkey of Landmark Attention (Mohtashami and Jaggi 2023, arXiv:2305.16300) with its own filler, not held-out
text: the same five sentences over and over around the line that holds the key."""

from __future__ import annotations

import math
import random

from stages.data.tasks.haystack import Haystack, Prompt, Trial
from stages.data.tasks.needles import WORDING, draw_numbers
from stages.data.tasks.needles import budget as budget_of
from stages.data.tasks.scoring import first_number
from stages.data.tasks.task import Task

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


def draw(haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
    """One needle with a number; in a control none, and the number drawn stands nowhere."""
    wording = WORDING[haystack.format]
    values = draw_numbers(rng, wording.numbers, 1)
    needles = [wording.passkey.format(value=value) for value in values[: trial.k]]
    return haystack.of(FILLER, trial.length).hide(
        trial,
        rng,
        needles,
        wording.passkey_question,
        answers=values,
        values=values[: trial.k],
        instruction=wording.instruction,
    )


def _shortest(haystack: Haystack, k: int) -> int:
    wording = WORDING[haystack.format]
    needle = wording.passkey.format(value=max(wording.numbers) - 1)
    return haystack.shortest([needle], wording.passkey_question, wording.instruction)


PASSKEY_IN_FILLER = Task(
    name="passkey_filler",
    sentence="one number among the five sentences of Landmark Attention, over and over",
    draw=draw,
    shortest=_shortest,
    budget=budget_of,
    longest=lambda haystack, k: math.inf,
    control_k=lambda k: 0,
    by_depth=True,
    chance=lambda format, k: 1 / (WORDING[format].numbers[1] - WORDING[format].numbers[0] + 1),
    read=first_number,
)
