"""The n-th of several identical requests (``nth``): which reply came when, as multi-round coreference resolution asks
(Vodrahalli et al. 2024, arXiv:2409.12640); the texts are our own."""

from __future__ import annotations

import random

from stages.data.tasks.haystack import Haystack, Prompt, Trial
from stages.data.tasks.scoring import everything, starts
from stages.data.tasks.task import Task
from stages.data.tasks.words import CUES

MOST = 16
REQUEST = "\nRequest: a line about the {topic}.\nReply: {reply}.\n"
QUESTION = "\nReply number {n} of those about the {topic}, again: the line is:"
TOPICS = ("autumn", "bakery", "circle", "future", "market", "number", "school", "signal")


def draw(haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
    """k identical requests about one topic and as many about another, each with a reply of its own; one is asked."""
    k = trial.k
    topics = rng.sample(TOPICS, 2)
    cues = rng.sample(CUES, 6 * k)
    replies = [" ".join(cues[3 * place : 3 * place + 3]) for place in range(2 * k)]
    owners = [0, 1] * k
    rng.shuffle(owners)
    n = rng.randrange(k)
    place = [index for index, owner in enumerate(owners) if owner == 0][n]
    return haystack.hide(
        trial,
        rng,
        [REQUEST.format(topic=topics[owner], reply=reply) for owner, reply in zip(owners, replies, strict=True)],
        QUESTION.format(n=n + 1, topic=topics[0]),
        answers=[replies[place]],
        values=replies,
        asked=(place,),
    )


def _shortest(haystack: Haystack, k: int) -> int:
    topic, cue = haystack.widest(TOPICS), haystack.widest(CUES)
    needle = REQUEST.format(topic=topic, reply=" ".join([cue] * 3))
    return haystack.shortest([needle] * 2 * k, QUESTION.format(n=MOST, topic=topic))


def _room(haystack: Haystack, k: int) -> int:
    return 3 * max(len(haystack.encode(f" {cue}")) for cue in CUES) + 2


NTH = Task(
    name="nth",
    sentence="the reply to the n-th of k identical requests",
    draw=draw,
    shortest=_shortest,
    room=_room,
    composes="order",
    ks=(2, 4),
    largest=MOST,
    chance=lambda format, k: 1 / k,
    read=everything,
    score=starts,
)
