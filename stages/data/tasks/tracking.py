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
SAMPLES = 64


@dataclass(frozen=True)
class TrackingWording:
    """Sentences of one format. ``line``: the assignment of ``source``, a value or a ``variable``; ``name``: letters of
    a variable, 0: variables are called by numbers too; ``digits``: of a value."""

    example: str
    question: str
    name: int
    digits: int
    line: str = "\nVAR {name} = {source}\n"
    variable: str = "VAR {name}"


WORDING: dict[Format, TrackingWording] = {
    "published": TrackingWording(
        example="Keep track of the variables that are assigned in the text below.\n\n",
        question="\nWhich variables have the value {value} in the text above? Following the assignments in the text "
        "above, {count} variables have the value {value}, they are:",
        name=5,
        digits=5,
    ),
    "compact": TrackingWording(example="", question="\nThe variables of {value} are", name=3, digits=2),
    # the source first: each name is then what stands behind the one before it, as a number behind its word
    "terse": TrackingWording(
        example="", question="\n{value}", name=0, digits=2, line="\n{source} {name}", variable="{name}"
    ),
}


def chain(wording: TrackingWording, names: list[str], value: str) -> list[str]:
    """The assignments of one chain, in order."""
    sources = [value, *(wording.variable.format(name=name) for name in names)]
    return [wording.line.format(name=name, source=source) for name, source in zip(names, sources, strict=False)]


def _drawn(wording: TrackingWording, rng: random.Random, names: int, values: int) -> tuple[list[str], list[str]]:
    """So many names and values, no two of them alike."""
    if wording.name:
        return letters(rng, wording.name, names), numbers(rng, wording.digits, values)
    both = numbers(rng, wording.digits, names + values)
    return both[:names], both[names:]


def draw(chains: int, haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
    """``chains`` chains of k hops, merged at random, each in its order; one of them is asked, all of its names.

    In the published wording a worked example of another chain stands in front.
    """
    wording, length = WORDING[haystack.format], trial.k + 1
    several = haystack.format == "published"
    names, values = _drawn(wording, rng, (chains + several) * length, chains + several)
    groups = [names[i * length : (i + 1) * length] for i in range(chains + several)]
    lines = [chain(wording, group, value) for group, value in zip(groups[:chains], values[:chains], strict=True)]
    order = [index for index in range(chains) for _ in range(length)]
    rng.shuffle(order)
    asked = rng.randrange(chains)
    left = [list(reversed(group)) for group in groups[:chains]]
    queues = [iter(group) for group in lines]
    instruction = wording.example
    if several:
        instruction += (
            "".join(chain(wording, groups[-1], values[-1]))
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
    wording = WORDING[haystack.format]
    widest, value = map(haystack.widest, _samples(wording))
    one = chain(wording, [widest] * (k + 1), value)
    question = wording.question.format(value=value, count=k + 1)
    example = ""
    if haystack.format == "published":
        example = wording.example + "".join(one) + question + f" {', '.join([widest] * (k + 1))}\n\n"
    return haystack.shortest(one * chains, question, example) + 2 * (k + 1) * bool(example)


def _room(haystack: Haystack, k: int) -> int:
    return answer_room(haystack, _samples(WORDING[haystack.format])[0], k + 1, BUDGET)


def _samples(wording: TrackingWording) -> tuple[list[str], list[str]]:
    """Names and values, to see how many tokens they take."""
    rng = random.Random(0)
    names = letters(rng, wording.name, SAMPLES) if wording.name else numbers(rng, wording.digits, SAMPLES)
    return names, numbers(rng, wording.digits, SAMPLES)


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
        formats=tuple(WORDING),
        read=everything,
        score=whole_in,
    )


TRACKING = (task("vt", 1), task("vt_2_chains", 2), task("vt_4_chains", 4))
