"""Associative recall in text: every key asked (``mqar``), a key that was given new values (``overwrite``)."""

from __future__ import annotations

import random
from functools import partial
from itertools import islice

from stages.data.tasks.haystack import Format, Haystack, Prompt, Trial
from stages.data.tasks.niah import answer_room
from stages.data.tasks.scoring import everything, first_number, in_order
from stages.data.tasks.task import Task
from stages.data.tasks.texts import keys, listed, numbers

MOST = 64
DIGITS: dict[Format, int] = {"published": 5, "compact": 2}
NEEDLE = "\nThe number of {key} is {value}.\n"
SEVERAL, ONE = "\nThe numbers of {keys}, in this order, are", "\nThe number of {keys} is"
NOW, NOW_ASKED = "\nThe number of {key} is now {value}.\n", "\nThe number of {key} is now"
EXPONENT = 0.1  # of the gaps' density, gap^(EXPONENT - 1), as in Arora et al. (2023)


def mqar(haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
    """k keys with a number each; all are asked once, in random order. From needle to question the gaps follow a power
    law, so most needles are near and a few are far (multi-query associative recall, Arora et al. 2023,
    arXiv:2312.04927)."""
    names, values = list(islice(keys(rng), trial.k)), numbers(rng, DIGITS[haystack.format], trial.k)
    order = rng.sample(range(trial.k), trial.k)
    return haystack.hide(
        trial,
        rng,
        [NEEDLE.format(key=key, value=value) for key, value in zip(names, values, strict=True)],
        (SEVERAL if trial.k > 1 else ONE).format(keys=listed([names[index] for index in order])),
        answers=[values[index] for index in order],
        values=values,
        asked=range(trial.k),
        places=partial(_by_power_law, rng, trial.k),
    )


def _by_power_law(rng: random.Random, count: int, filler: int) -> list[int]:
    gaps = (filler * rng.random() ** (1 / EXPONENT) for _ in range(count))
    return sorted(filler - int(gap) for gap in gaps)


def overwrite(haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
    """Two keys, each given k numbers one after the other; one key's last number is asked."""
    k = trial.k
    names, values = list(islice(keys(rng), 2)), numbers(rng, DIGITS[haystack.format], 2 * k)
    owners = [0, 1] * k
    rng.shuffle(owners)
    asked = rng.randrange(2)
    last = max(place for place, owner in enumerate(owners) if owner == asked)
    return haystack.hide(
        trial,
        rng,
        [NOW.format(key=names[owner], value=value) for owner, value in zip(owners, values, strict=True)],
        NOW_ASKED.format(key=names[asked]),
        answers=[values[last]],
        values=values,
        asked=(last,),
    )


def _samples(haystack: Haystack, needle: str) -> tuple[str, str]:
    """The key, and the needle, with the most tokens."""
    rng = random.Random(0)
    values = numbers(rng, DIGITS[haystack.format], 64)
    key = haystack.widest(islice(keys(rng), 143))
    return key, needle.format(key=key, value=haystack.widest(values))


def _shortest_mqar(haystack: Haystack, k: int) -> int:
    key, needle = _samples(haystack, NEEDLE)
    return haystack.shortest([needle] * k, SEVERAL.format(keys=listed([key] * k)))


def _shortest_overwrite(haystack: Haystack, k: int) -> int:
    key, needle = _samples(haystack, NOW)
    return haystack.shortest([needle] * 2 * k, NOW_ASKED.format(key=key))


def number_room(digits: dict[Format, int], count: int, haystack: Haystack) -> int:
    """Tokens for so many numbers."""
    return answer_room(haystack, numbers(random.Random(0), digits[haystack.format], 64), count, 0)


def _guess(format: Format, k: int) -> float:
    return 1 / (9 * 10.0 ** (DIGITS[format] - 1))


MQAR = Task(
    name="mqar",
    sentence="the numbers of k keys in the order asked, most of them near and a few far",
    draw=mqar,
    shortest=_shortest_mqar,
    room=lambda haystack, k: number_room(DIGITS, k, haystack),
    composes="queries",
    ks=(4, 16),
    largest=MOST,
    read=everything,
    score=in_order,
)
OVERWRITE = Task(
    name="overwrite",
    sentence="the last of k numbers that a key was given",
    draw=overwrite,
    shortest=_shortest_overwrite,
    room=lambda haystack, k: number_room(DIGITS, 1, haystack),
    composes="updates",
    ks=(2, 4),
    largest=32,
    chance=_guess,
    read=first_number,
)
