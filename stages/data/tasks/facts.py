"""Fact chains (``facts``) from a small world: where a thing is follows from 1 to 5 facts, told in order among others.

In the manner of bAbI (Weston et al. 2015, arXiv:1502.05698), with a simulator and words of our own: people go to places
(two arguments), take things, put one thing into another and give things to others (three arguments).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from stages.data.tasks.haystack import Haystack, Prompt, Trial
from stages.data.tasks.niah import answer_room
from stages.data.tasks.scoring import everything, starts
from stages.data.tasks.task import Task

PEOPLE = ("Anton", "Berta", "Carla", "David", "Elena", "Frida", "Gustav", "Hanna")
PLACES = ("attic", "bakery", "cellar", "garden", "kitchen", "library", "office", "stable")
THINGS = ("bag", "box", "crate", "drawer", "jar", "lamp", "purse", "ring", "trunk", "watch")
MOST = 5


@dataclass(frozen=True)
class Event:
    """``who`` goes to ``to``, takes ``what``, puts ``what`` into ``to``, or gives ``what`` to ``to``."""

    kind: str
    who: str
    what: str = ""
    to: str = ""

    @property
    def text(self) -> str:
        sentence = {
            "go": "{who} went to the {to}.",
            "take": "{who} took the {what}.",
            "put": "{who} put the {what} into the {to}.",
            "give": "{who} gave the {what} to {to}.",
        }[self.kind]
        return sentence.format(who=self.who, what=self.what, to=self.to)


@dataclass
class World:
    """Where everything is, and by which event (its number): a person at a place, a thing with a person or in a
    thing."""

    at: dict[str, tuple[str, int]] = field(default_factory=dict)

    def tell(self, event: Event, number: int) -> None:
        """After this event the moved one is elsewhere."""
        if event.kind == "go":
            self.at[event.who] = (event.to, number)
        else:
            self.at[event.what] = (event.who if event.kind == "take" else event.to, number)

    def find(self, one: str) -> tuple[str, list[int]]:
        """The place where ``one`` is and the events that say so, or what is known last of it."""
        support = []
        while one in self.at:
            one, number = self.at[one]
            support.append(number)
        return one, support


def simulate(events: Sequence[Event]) -> World:
    """The world after all of the events."""
    world = World()
    for number, event in enumerate(events):
        world.tell(event, number)
    return world


def draw(haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
    """Twelve and more facts about all people, k of which say where a person (k = 1) or a thing is."""
    subject, events = _story(trial.k, rng)
    place, support = simulate(events).find(subject)
    return haystack.hide(
        trial,
        rng,
        [f"\n{event.text}\n" for event in events],
        _question(subject),
        answers=[place],
        values=[event.text for event in events],
        asked=sorted(support),
    )


def _story(k: int, rng: random.Random) -> tuple[str, list[Event]]:
    """What is asked and the events: a chain of k in random order, what it overwrites before it, others around it."""
    people, places, things = rng.sample(PEOPLE, 6), rng.sample(PLACES, 6), rng.sample(THINGS, 8)
    hero, carried, others = people[0], things[: k - 1], things[k - 1 :]
    chain = [Event("go", hero, to=places[0])]
    if carried:  # the last of them is in the hero's hands, each of the others in the next
        giver = rng.choice(people[1:])
        in_hand = carried[-1]
        chain.append(Event("take", hero, in_hand) if rng.random() < 0.5 else Event("give", giver, in_hand, hero))
        chain += [Event("put", rng.choice(people[1:]), inner, outer) for inner, outer in pairwise(carried)]
    rng.shuffle(chain)
    early = [Event("go", hero, to=rng.choice(places[1:]))]
    early += [Event("take", rng.choice(people[1:]), thing) for thing in carried]
    rng.shuffle(early)
    around = [Event("go", person, to=rng.choice(places)) for person in people[1:]]
    around += [
        Event("take", rng.choice(people[1:]), others[0]),
        Event("put", rng.choice(people[1:]), others[0], others[1]),
    ]
    rng.shuffle(around)
    told, queues = [], [early + chain, around]
    while any(queues):  # merged at random, each in its order
        queue = rng.choices(queues, weights=[len(one) for one in queues])[0]
        told.append(queue.pop(0))
    return (carried[0] if carried else hero), told


def _question(subject: str) -> str:
    name = subject if subject in PEOPLE else f"the {subject}"
    return f"\nWhere is {name} now? {name[0].upper()}{name[1:]} is in the"


def _shortest(haystack: Haystack, k: int) -> int:
    events = max((_story(k, random.Random(seed))[1] for seed in range(8)), key=len)
    person, thing, place = haystack.widest(PEOPLE), haystack.widest(THINGS), haystack.widest(PLACES)
    needle = haystack.widest(
        f"\n{Event(kind, person, thing, to).text}\n" for kind, to in (("go", place), ("put", thing), ("give", person))
    )
    return haystack.shortest([needle] * len(events), _question(thing))


FACTS = Task(
    name="facts",
    sentence="where someone or something is, which k facts say",
    draw=draw,
    shortest=_shortest,
    room=lambda haystack, k: answer_room(haystack, PLACES, 1, 0),
    composes="facts",
    ks=(1, 2, 3, 4, 5),
    largest=MOST,
    chance=lambda format, k: 1 / 6,
    read=everything,
    score=starts,
)
