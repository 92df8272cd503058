"""RULER's needles in a haystack (Hsieh et al. 2024, arXiv:2404.06654): eight tasks, one record each.

They differ in the text around the needles (noise, held-out prose, nothing but needles), in what is key and value
(words, numbers, UUIDs), and in what there are several of: keys, values of the asked key, or asked keys.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from stages.data.tasks.haystack import BETWEEN, Format, Haystack, Prompt, Trial
from stages.data.tasks.scoring import everything, whole_in
from stages.data.tasks.task import Task, text_there_is
from stages.data.tasks.texts import NOISE, codes, keys, listed, numbers
from stages.data.tasks.words import CUES

BUDGET = 128
"""Tokens that RULER leaves for the answer."""

MOST = 64
SAMPLES = 64  # of values, to see how many tokens they take


@dataclass(frozen=True)
class NiahWording:
    """Sentences of one format. ``nouns``: what a value is called; ``digits``: of a number."""

    instruction: str
    needle: str
    one: str
    several: str
    nouns: dict[str, str]
    digits: int


WORDING: dict[Format, NiahWording] = {
    "published": NiahWording(
        instruction="Special magic {noun}s stand somewhere in the text below. Keep them in mind, you will be asked for "
        "them at the end.\n",
        needle="\nOne of the special magic {noun}s for {key} is: {value}.\n",
        one="\nWhat is the special magic {noun} for {keys} mentioned in the provided text? "
        "The special magic {noun} for {keys} mentioned in the provided text is",
        several="\nWhat are all the special magic {noun}s for {keys} mentioned in the provided text? "
        "The special magic {noun}s for {keys} mentioned in the provided text are",
        nouns={"number": "number", "code": "uuid"},
        digits=7,
    ),
    "compact": NiahWording(
        instruction="",
        needle="\nThe {noun} of {key} is {value}.\n",
        one="\nThe {noun} of {keys} is",
        several="\nThe {noun}s of {keys} are",
        nouns={"number": "number", "code": "code"},
        digits=2,
    ),
    "terse": NiahWording(
        instruction="",
        needle="\n{key} {value}",
        one="\n{keys}",
        several="\n{keys}",
        nouns={"number": ""},
        digits=2,
    ),
}


@dataclass(frozen=True)
class Niah:
    """One of the eight. ``several``: what there are k of. Codes have no terse wording: they are many tokens each."""

    text: Literal["noise", "prose", "needles"]
    key: Literal["word", "code"] = "word"
    value: Literal["number", "code"] = "number"
    several: Literal["", "keys", "values", "queries"] = ""

    def draw(self, haystack: Haystack, trial: Trial, rng: random.Random) -> Prompt:
        """Needles in random order; the asked key is any of them. Values of one key are answers in order of position."""
        wording, k = WORDING[haystack.format], trial.k
        noun = wording.nouns[self.value]
        instruction = wording.instruction.format(noun=noun)
        names = self._keys(haystack.format, rng)
        owners = list(islice(names, 1 if self.several == "values" else k))
        drawn = self._values(haystack.format, rng, k)
        needles = list(zip(owners * k if self.several == "values" else owners, drawn, strict=True))
        asked = owners if self.several == "queries" else [rng.choice(owners)]
        question = self._question(haystack.format, asked, k)
        lines = {pair: wording.needle.format(noun=noun, key=pair[0], value=pair[1]) for pair in needles}
        if self.text == "needles":
            room = trial.length - sum(len(haystack.encode(text)) for text in (instruction, question, *lines.values()))
            rivals = self._rivals(haystack.format, rng, names, set(drawn))
            all_lines = [
                *lines.values(),
                *haystack.fitting(room, (wording.needle.format(noun=noun, **r) for r in rivals)),
            ]
        else:
            all_lines = list(lines.values())
        rng.shuffle(all_lines)
        place = {line: index for index, line in enumerate(all_lines)}
        needles.sort(key=lambda pair: place[lines[pair]])
        right = {key: [value for owner, value in needles if owner == key] for key in asked}
        prompt = (haystack if self.text == "prose" else haystack.of(NOISE, trial.length)).hide(
            trial,
            rng,
            all_lines,
            question,
            answers=[value for key in asked for value in right[key]],
            asked=[place[lines[pair]] for pair in needles if pair[0] in right],
            instruction=instruction,
            places=in_front(len(all_lines)) if self.text == "needles" else None,
        )
        return replace(  # of the needles alone: the rivals that fill a haystack are text
            prompt,
            values=tuple(value for _, value in needles),
            asked=tuple(index for index, pair in enumerate(needles) if pair[0] in right),
            offsets=tuple(prompt.offsets[place[lines[pair]]] for pair in needles),
            depth=round(prompt.needle_end / len(prompt.tokens), 6) if self.text == "needles" else prompt.depth,
        )

    def shortest(self, haystack: Haystack, k: int) -> int:
        wording, rng, format = WORDING[haystack.format], random.Random(0), haystack.format
        noun = wording.nouns[self.value]
        values = self._values(format, rng, SAMPLES)
        owners = list(islice(self._keys(format, rng), len(CUES)))
        rivals = [{"key": haystack.widest(owners), "value": haystack.widest(values)}] * k
        question = self._question(format, [rivals[0]["key"]] * (k if self.several == "queries" else 1), k)
        needles = [wording.needle.format(noun=noun, **rival) for rival in rivals]
        return haystack.shortest(needles, question, wording.instruction.format(noun=noun))

    def room(self, haystack: Haystack, k: int) -> int:
        values = self._values(haystack.format, random.Random(0), SAMPLES)
        return answer_room(haystack, values, k if self.several in ("values", "queries") else 1, BUDGET)

    def chance(self, format: Format, k: int) -> float:
        digits = WORDING[format].digits
        return (
            1 / (9 * 10.0 ** (digits - 1)) if self.value == "number" else 16.0 ** (-4 if format == "compact" else -30)
        )

    def _keys(self, format: Format, rng: random.Random) -> Iterator[str]:
        return keys(rng) if self.key == "word" else codes(rng, format)

    def _values(self, format: Format, rng: random.Random, count: int) -> list[str]:
        if self.value == "number":
            return numbers(rng, WORDING[format].digits, count)
        return list(islice(codes(rng, format), count))

    def _rivals(
        self, format: Format, rng: random.Random, names: Iterator[str], taken: set[str]
    ) -> Iterator[dict[str, str]]:
        """Further keys with values that are no answer, as many as there are."""
        while True:
            for value in self._values(format, rng, SAMPLES):
                if value not in taken:
                    yield {"key": next(names), "value": value}

    def _question(self, format: Format, asked: list[str], k: int) -> str:
        wording = WORDING[format]
        several = k > 1 and self.several in ("values", "queries")
        sentence = wording.several if several else wording.one
        return sentence.format(noun=wording.nouns[self.value], keys=listed(asked, format))


def in_front(count: int) -> Callable[[int], list[int]]:
    """Places of ``count`` needles behind all of the haystack, which only fills the prompt up."""
    return lambda filler: [filler] * count


def answer_room(haystack: Haystack, samples: Sequence[str], count: int, least: int) -> int:
    """Tokens for ``count`` answers like ``samples`` with what stands between and what ends them; in the published
    wording at least as many as its authors leave."""
    between = BETWEEN[haystack.format].rstrip()
    most = max(len(haystack.encode(f" {sample}{between}")) for sample in samples)
    needed = count * most + 1 + most // 4
    return max(least, needed) if haystack.format == "published" else needed


def _task(name: str, sentence: str, record: Niah) -> Task:
    several = record.several
    return Task(
        name=name,
        sentence=sentence,
        draw=record.draw,
        shortest=record.shortest,
        room=record.room,
        composes=several or ("keys" if record.text == "needles" else ""),
        longest=text_there_is if record.text == "prose" else lambda haystack, k: math.inf,
        ks=(4,) if several else (1,),
        largest=MOST if several else 1,
        by_depth=not several and record.text != "needles",
        formats=("published", "compact") if "code" in (record.key, record.value) else tuple(WORDING),
        chance=None if several in ("values", "queries") else record.chance,
        read=everything,
        score=whole_in,
    )


SINGLE_1 = _task("niah_single_1", "one number in noise", Niah("noise"))
SINGLE_2 = _task("niah_single_2", "one number in prose", Niah("prose"))
SINGLE_3 = _task("niah_single_3", "one UUID in prose", Niah("prose", value="code"))
MULTIKEY_1 = _task("niah_multikey_1", "the number of one key among k in prose", Niah("prose", several="keys"))
MULTIKEY_2 = _task("niah_multikey_2", "the number of one key in a text of nothing but keys", Niah("needles"))
MULTIKEY_3 = _task(
    "niah_multikey_3", "the UUID of one UUID in a text of nothing but UUIDs", Niah("needles", key="code", value="code")
)
MULTIVALUE = _task("niah_multivalue", "all k numbers of one key in prose", Niah("prose", several="values"))
MULTIQUERY = _task("niah_multiquery", "the numbers of k keys in prose", Niah("prose", several="queries"))

NIAH = (SINGLE_1, SINGLE_2, SINGLE_3, MULTIKEY_1, MULTIKEY_2, MULTIKEY_3, MULTIVALUE, MULTIQUERY)
