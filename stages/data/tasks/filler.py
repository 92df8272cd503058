"""The passkey of Landmark Attention (Mohtashami and Jaggi 2023, arXiv:2305.16300) with its own filler, not held-out
text: the same five sentences over and over around the line that holds the key."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from stages.data.tasks.haystack import Haystack, Prompt, Trial
from stages.data.tasks.needles import PASSKEY

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


def draw(haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
    """One needle with a number; in a control none, and the number drawn stands nowhere."""
    return PASSKEY.draw(haystack.of(FILLER, trial.length), trial, rng)


PASSKEY_IN_FILLER = replace(
    PASSKEY,
    name="passkey_filler",
    sentence="one number among the five sentences of Landmark Attention, over and over",
    draw=draw,
    longest=lambda haystack, k: math.inf,
)
