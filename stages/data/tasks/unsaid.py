"""Needles that share no word with the question (``unsaid``): what someone does is told, their trade is asked.

The idea is NoLiMa's (Modarressi et al. 2025, arXiv:2502.05167); names, deeds and trades are our own.
"""

from __future__ import annotations

import random

from stages.data.tasks.haystack import Haystack, Prompt, Trial
from stages.data.tasks.niah import answer_room
from stages.data.tasks.scoring import everything, starts
from stages.data.tasks.task import Task

NAMES = tuple(
    (
        "Agnes Boris Clara Doris Edwin Fiona Georg Heidi Irvin Jonas Klara Lukas Mario Nadia Oscar Petra Quinn Ronja "
        "Silas Tessa Ulric Viola Wanda Xenia Yusuf Zelda"
    ).split()
)

TRADES = {
    "dentist": "pulled three aching teeth before noon",
    "pilot": "landed the big jet in thick fog",
    "cobbler": "put new soles on forty old boots",
    "judge": "sent the thief to prison for two years",
    "chef": "fried onions for ninety guests tonight",
    "surgeon": "opened the patient's chest and closed it again",
    "violinist": "tightened the bow and tuned all four strings",
    "shepherd": "counted the flock before the wolves came",
    "astronomer": "watched Saturn through the big telescope until dawn",
    "miner": "came up from the coal pit with black hands",
    "barber": "trimmed nine beards and swept up the hair",
    "plumber": "stopped the leak under the kitchen sink",
    "librarian": "put the borrowed novels back on their shelves",
    "glazier": "fitted fresh panes where the windows were broken",
    "beekeeper": "lifted the combs out of all six hives",
    "cartographer": "drew the coastline with every bay and cape",
    "midwife": "held the newborn twins first of all",
    "goalkeeper": "caught both penalties with wet gloves",
}
QUESTION = "\nWho is likely a {}? This person is called"


def draw(haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
    """k people and what each did; one trade is asked."""
    names, trades = rng.sample(NAMES, trial.k), rng.sample(list(TRADES), trial.k)
    needles = [sentence_of(name, trade) for name, trade in zip(names, trades, strict=True)]
    asked = rng.randrange(trial.k)
    return haystack.hide(
        trial,
        rng,
        needles,
        QUESTION.format(trades[asked]),
        answers=[names[asked]],
        values=names,
        asked=(asked,),
    )


def sentence_of(name: str, trade: str) -> str:
    return f"\n{name} {TRADES[trade]}.\n"


def _shortest(haystack: Haystack, k: int) -> int:
    name = haystack.widest(NAMES)
    needle = haystack.widest(sentence_of(name, trade) for trade in TRADES)
    return haystack.shortest([needle] * k, haystack.widest(QUESTION.format(trade) for trade in TRADES))


UNSAID = Task(
    name="unsaid",
    sentence="who of k people has a trade that only their deeds tell",
    draw=draw,
    shortest=_shortest,
    room=lambda haystack, k: answer_room(haystack, NAMES, 1, 0),
    composes="inference",
    ks=(1, 4),
    largest=len(TRADES),
    chance=lambda format, k: 1 / k,
    read=everything,
    score=starts,
)
