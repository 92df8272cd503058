"""RULER's questions about documents (``qa_1``, ``qa_2``), on documents that are made here and whose facts are known.

``qa_1`` asks for what one document says, ``qa_2`` for what takes two of them; all others are distractors. Questions
about documents of one's own are a task from a file (``evaluate.retrieval.files``).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from stages.data.tasks.haystack import Format, Haystack, Prompt, Trial
from stages.data.tasks.niah import answer_room, in_front
from stages.data.tasks.scoring import any_whole_in, everything
from stages.data.tasks.task import Task
from stages.data.tasks.texts import NOISE, made_up

BUDGET = 32
TRADES = ("baker", "carpenter", "clerk", "gardener", "nurse", "printer", "saddler", "tailor", "weaver")
GOODS = ("barrels", "bells", "candles", "clocks", "gloves", "kites", "lamps", "ropes", "violins")


@dataclass(frozen=True)
class QuestionWording:
    """Sentences of one format: a person's and a firm's document, the question about one and about two of them."""

    instruction: str
    person: str
    firm: str
    one: str
    two: str


WORDING: dict[Format, QuestionWording] = {
    "published": QuestionWording(
        instruction="Answer the question at the end from the documents below. Give the answer alone, no other words.\n",
        person="\nDocument: {name}\n{name} was born in the town of {town} in {year}, learned the trade of a {trade} "
        "and spent the later years beside the river {river}.\n",
        firm="\nDocument: {firm}\n{firm} is a workshop that has made {goods} since {year}. It was founded by {name}.\n",
        one="\nQuestion: In which town was {name} born? Answer:",
        two="\nQuestion: In which town was the founder of {firm} born? Answer:",
    ),
    "compact": QuestionWording(
        instruction="",
        person="\n{name} is from {town}.\n",
        firm="\n{firm} is led by {name}.\n",
        one="\nThe town of {name} is",
        two="\nThe town of the leader of {firm} is",
    ),
}


class Cast:
    """People and firms whose names are all different."""

    def __init__(self, format: Format, rng: random.Random) -> None:
        self.format, self._rng, self._words = format, rng, made_up(rng)

    def name(self) -> str:
        """One made-up name, in the published wording two."""
        names = [next(self._words).capitalize() for _ in range(1 if self.format == "compact" else 2)]
        return " ".join(names)

    def person(self, name: str, town: str) -> str:
        """The document of one person."""
        return WORDING[self.format].person.format(
            name=name, town=town, year=self._year(), trade=self._rng.choice(TRADES), river=self.name().split()[0]
        )

    def firm(self, firm: str, name: str) -> str:
        """The document of the firm that ``name`` founded."""
        return WORDING[self.format].firm.format(firm=firm, name=name, year=self._year(), goods=self._rng.choice(GOODS))

    def town(self) -> str:
        return next(self._words).capitalize()

    def rivals(self, hops: int) -> Iterator[str]:
        """Documents of others, as many as there are; among two hops every other one of a firm."""
        while True:
            yield self.person(self.name(), self.town())
            if hops > 1:
                yield self.firm(self.name(), self.name())

    def _year(self) -> int:
        return self._rng.randrange(1700, 1950)


def draw(hops: int, haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
    """Documents in random order, as many as fit; one or two of them hold the answer."""
    wording, world = WORDING[haystack.format], Cast(haystack.format, rng)
    name, town, firm = world.name(), world.town(), world.name()
    needed = [world.person(name, town), world.firm(firm, name)][:hops]
    question = (wording.one if hops == 1 else wording.two).format(name=name, firm=firm)
    room = trial.length - sum(len(haystack.encode(text)) for text in (wording.instruction, question, *needed))
    documents = [*needed, *haystack.fitting(room, world.rivals(hops))]
    rng.shuffle(documents)
    needed.sort(key=documents.index)
    places = [documents.index(one) for one in needed]
    prompt = haystack.of(NOISE, trial.length).hide(
        trial,
        rng,
        documents,
        question,
        answers=[town],
        asked=places,
        instruction=wording.instruction,
        places=in_front(len(documents)),
    )
    return replace(
        prompt,
        values=tuple(town if town in one else name for one in needed),
        asked=tuple(range(hops)),
        offsets=tuple(prompt.offsets[place] for place in places),
        depth=round(prompt.needle_end / len(prompt.tokens), 6),
    )


def _shortest(hops: int, haystack: Haystack, k: int) -> int:
    wording = WORDING[haystack.format]
    world = Cast(haystack.format, random.Random(0))
    people = [world.person(world.name(), world.town()) for _ in range(64)]
    firms = [world.firm(world.name(), world.name()) for _ in range(64)]
    question = (wording.one if hops == 1 else wording.two).format(name=world.name(), firm=world.name())
    return (
        haystack.shortest([haystack.widest(people), haystack.widest(firms)][:hops], question, wording.instruction) + 4
    )


def _room(haystack: Haystack, k: int) -> int:
    world = Cast(haystack.format, random.Random(0))
    return answer_room(haystack, [world.town() for _ in range(64)], 1, BUDGET)


def _task(name: str, sentence: str, hops: int) -> Task:
    return Task(
        name=name,
        sentence=sentence,
        draw=partial(draw, hops),
        shortest=partial(_shortest, hops),
        room=_room,
        composes="questions",
        longest=lambda haystack, k: math.inf,
        read=everything,
        score=any_whole_in,
    )


QUESTIONS = (
    _task("qa_1", "a question that one document among others answers", 1),
    _task("qa_2", "a question that takes two documents among others", 2),
)
