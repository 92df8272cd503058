"""RULER's variable tracking (``vt``): variables that were given a value, directly or through others, among noise."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import partial

from stages.data.tasks.haystack import Format, Haystack, Prompt, Trial
from stages.data.tasks.niah import answer_room
from stages.data.tasks.scoring import everything, whole_in
from stages.data.tasks.task import Task
from stages.data.tasks.texts import NOISE, letters, numbers

BUDGET = 30
MOST_HOPS = 16


@dataclass(frozen=True)
class TrackingWording:
    """Sentences of one format. ``name``: letters of a variable; ``digits``: of a value."""

    example: str
    question: str
    name: int
    digits: int


WORDING: dict[Format, TrackingWording] = {
    "published": TrackingWording(
        example="Keep track of the variables that are assigned in the text below.\n\n",
        question="\nWhich variables have the value {value} in the text above? Following the assignments in the text "
        "above, {count} variables have the value {value}, they are:",
        name=5,
        digits=5,
    ),
    "compact": TrackingWording(example="", question="\nThe variables of {value} are", name=3, digits=2),
}


def chain(names: list[str], value: str) -> list[str]:
    """The assignments of one chain, in order."""
    sources = [value, *(f"VAR {name}" for name in names)]
    return [f"\nVAR {name} = {source}\n" for name, source in zip(names, sources, strict=False)]


def draw(chains: int, haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
    """``chains`` chains of k hops, merged at random, each in its order; one of them is asked, all of its names.

    In the published wording a worked example of another chain stands in front.
    """
    wording, length = WORDING[haystack.format], trial.k + 1
    several = haystack.format == "published"
    names = letters(rng, wording.name, (chains + several) * length)
    values = numbers(rng, wording.digits, chains + several)
    groups = [names[i * length : (i + 1) * length] for i in range(chains + several)]
    lines = [chain(group, value) for group, value in zip(groups[:chains], values[:chains], strict=True)]
    order = [index for index in range(chains) for _ in range(length)]
    rng.shuffle(order)
    asked = rng.randrange(chains)
    left = [list(reversed(group)) for group in groups[:chains]]
    queues = [iter(group) for group in lines]
    instruction = wording.example
    if several:
        instruction += (
            "".join(chain(groups[-1], values[-1]))
            + wording.question.format(value=values[-1], count=length)
            + f" {', '.join(groups[-1])}\n\n"
        )
    return haystack.of(NOISE, trial.length).hide(
        trial,
        rng,
        [next(queues[index]) for index in order],
        wording.question.format(value=values[asked], count=length),
        answers=groups[asked],
        values=[left[index].pop() for index in order],
        asked=[place for place, index in enumerate(order) if index == asked],
        instruction=instruction,
    )


def _shortest(chains: int, haystack: Haystack, k: int) -> int:
    wording, rng = WORDING[haystack.format], random.Random(0)
    names = letters(rng, wording.name, 64)
    widest = haystack.widest(names)
    value = haystack.widest(numbers(rng, wording.digits, 64))
    one = chain([widest] * (k + 1), value)
    question = wording.question.format(value=value, count=k + 1)
    example = ""
    if haystack.format == "published":
        example = wording.example + "".join(one) + question + f" {', '.join([widest] * (k + 1))}\n\n"
    return haystack.shortest(one * chains, question, example) + 2 * (k + 1) * bool(example)


def _room(haystack: Haystack, k: int) -> int:
    names = letters(random.Random(0), WORDING[haystack.format].name, 64)
    return answer_room(haystack, names, k + 1, BUDGET)


def task(name: str, chains: int) -> Task:
    """The record of so many chains; k: hops."""
    sentence = "all variables with one value, through k hops"
    return Task(
        name=name,
        sentence=sentence if chains == 1 else f"{sentence}, among {chains} chains",
        draw=partial(draw, chains),
        shortest=partial(_shortest, chains),
        room=_room,
        composes="hops",
        longest=lambda haystack, k: math.inf,
        ks=(4,),
        largest=MOST_HOPS,
        read=everything,
        score=whole_in,
    )


TRACKING = (task("vt", 1), task("vt_2_chains", 2), task("vt_4_chains", 4))
