"""Associative recall in text: every key asked (``mqar``), a key that was given new values (``overwrite``)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from itertools import islice

from stages.data.tasks.haystack import Format, Haystack, Prompt, Trial
from stages.data.tasks.niah import answer_room
from stages.data.tasks.scoring import everything, first_number, in_order
from stages.data.tasks.task import Task
from stages.data.tasks.texts import keys, listed, numbers

MOST = 64


@dataclass(frozen=True)
class RecallWording:
    """Sentences of one format. ``now``: a key's new number, and ``now_asked`` for it; ``digits``: of a number."""

    digits: int
    needle: str = "\nThe number of {key} is {value}.\n"
    several: str = "\nThe numbers of {keys}, in this order, are"
    one: str = "\nThe number of {keys} is"
    now: str = "\nThe number of {key} is now {value}.\n"
    now_asked: str = "\nThe number of {key} is now"


WORDING: dict[Format, RecallWording] = {
    "published": RecallWording(digits=5),
    "compact": RecallWording(digits=2),
    "terse": RecallWording(
        digits=2,
        needle="\n{key} {value}",
        several="\n{keys}",
        one="\n{keys}",
        now="\n{key} = {value}",
        now_asked="\n{key} =",
    ),
}
EXPONENT = 0.1  # of the gaps' density, gap^(EXPONENT - 1), as in Arora et al. (2023)


def mqar(haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
    """k keys with a number each; all are asked once, in random order. From needle to question the gaps follow a power
    law, so most needles are near and a few are far (multi-query associative recall, Arora et al. 2023,
    arXiv:2312.04927)."""
    wording = WORDING[haystack.format]
    names, values = list(islice(keys(rng), trial.k)), numbers(rng, wording.digits, trial.k)
    order = rng.sample(range(trial.k), trial.k)
    return haystack.hide(
        trial,
        rng,
        [wording.needle.format(key=key, value=value) for key, value in zip(names, values, strict=True)],
        _question(haystack.format, [names[index] for index in order]),
        answers=[values[index] for index in order],
        values=values,
        asked=range(trial.k),
        places=partial(_by_power_law, rng, trial.k),
    )


def _question(format: Format, names: list[str]) -> str:
    wording = WORDING[format]
    return (wording.several if len(names) > 1 else wording.one).format(keys=listed(names, format))


def _by_power_law(rng: random.Random, count: int, filler: int) -> list[int]:
    gaps = (filler * rng.random() ** (1 / EXPONENT) for _ in range(count))
    return sorted(filler - int(gap) for gap in gaps)


def overwrite(haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
    """Two keys, each given k numbers one after the other; one key's last number is asked."""
    wording, k = WORDING[haystack.format], trial.k
    names, values = list(islice(keys(rng), 2)), numbers(rng, wording.digits, 2 * k)
    owners = [0, 1] * k
    rng.shuffle(owners)
    asked = rng.randrange(2)
    last = max(place for place, owner in enumerate(owners) if owner == asked)
    return haystack.hide(
        trial,
        rng,
        [wording.now.format(key=names[owner], value=value) for owner, value in zip(owners, values, strict=True)],
        wording.now_asked.format(key=names[asked]),
        answers=[values[last]],
        values=values,
        asked=(last,),
    )


def _samples(haystack: Haystack, needle: str) -> tuple[str, str]:
    """The key, and the needle, with the most tokens."""
    rng = random.Random(0)
    values = numbers(rng, WORDING[haystack.format].digits, 64)
    key = haystack.widest(islice(keys(rng), 143))
    return key, needle.format(key=key, value=haystack.widest(values))


def _shortest_mqar(haystack: Haystack, k: int) -> int:
    wording = WORDING[haystack.format]
    key, needle = _samples(haystack, wording.needle)
    return haystack.shortest([needle] * k, wording.several.format(keys=listed([key] * k, haystack.format)))


def _shortest_overwrite(haystack: Haystack, k: int) -> int:
    wording = WORDING[haystack.format]
    key, needle = _samples(haystack, wording.now)
    return haystack.shortest([needle] * 2 * k, wording.now_asked.format(key=key))


def number_room(digits: int, count: int, haystack: Haystack) -> int:
    """Tokens for so many numbers."""
    return answer_room(haystack, numbers(random.Random(0), digits, 64), count, 0)


def _guess(format: Format, k: int) -> float:
    return 1 / (9 * 10.0 ** (WORDING[format].digits - 1))


MQAR = Task(
    name="mqar",
    sentence="the numbers of k keys in the order asked, most of them near and a few far",
    draw=mqar,
    shortest=_shortest_mqar,
    room=lambda haystack, k: number_room(WORDING[haystack.format].digits, k, haystack),
    composes="queries",
    ks=(4, 16),
    largest=MOST,
    formats=tuple(WORDING),
    read=everything,
    score=in_order,
)
OVERWRITE = Task(
    name="overwrite",
    sentence="the last of k numbers that a key was given",
    draw=overwrite,
    shortest=_shortest_overwrite,
    room=lambda haystack, k: number_room(WORDING[haystack.format].digits, 1, haystack),
    composes="updates",
    ks=(2, 4),
    largest=32,
    formats=tuple(WORDING),
    chance=_guess,
    read=first_number,
)
