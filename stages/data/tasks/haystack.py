"""What a prompt is hidden in: held-out text as tokens, into which a task's sentences are spliced.

Sentences are encoded by themselves and spliced between haystack tokens, so every length is known beforehand and what is
asked has the same tokens in the needle and in the answer.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import BeforeValidator, PlainSerializer, SerializationInfo

from stages.stage import StageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BEFORE = {"published": "landmark"}
"""What formats were called before. It stays in what is recorded (keys, names and random streams of prompts): artifacts
keep their keys, prompts their bytes. Study files may say it."""


def recorded(format: str) -> str:
    """The format's name in keys, in the names of prompts and in their random streams."""
    return BEFORE.get(format, format)


def format_of(name: str) -> str:
    """The format that has this name, or had it before."""
    return next((format for format, before in BEFORE.items() if name == before), name)


def _dumped(format: str, info: SerializationInfo) -> str:
    return format if (info.context or {}).get("shown") else recorded(format)


Format = Annotated[
    Literal["published", "compact", "terse"], BeforeValidator(format_of), PlainSerializer(_dumped, when_used="json")
]
"""Wording of needle and question: ``published``, as in the paper of each task; ``compact``, one short sentence and
small numbers; ``terse``, of tasks that ask for numbers: a line of the word and its number, and the word again, several
answers side by side. Models of two layers that read eight tokens at a time bind in it, not in longer sentences."""

BETWEEN: dict[Format, str] = {"published": ", ", "compact": ", ", "terse": " "}
"""What stands between several answers."""

MIN_FILLER = 16
"""Fewest haystack tokens: below it the depth of a needle means nothing."""

MOST_ENCODED = 1 << 16  # sentences whose tokens are kept


class Codec(Protocol):
    """What the tasks need of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    @property
    def begin(self) -> Sequence[int]:
        """What every document, and so every prompt, begins with; nothing where the tokenizer has no such token."""


@dataclass(frozen=True)
class Trial:
    """One prompt to be drawn: ``length`` tokens with a task's ``k``. ``depth``: where its needle lies, 0 (start) to 1
    (end); None: needles lie at random places. ``absent``: a control, whose answer stands nowhere. ``needle``: which of
    them is asked for, of a task that can be told (None: any)."""

    length: int
    k: int
    depth: float | None = None
    absent: bool = False
    needle: int | None = None


@dataclass(frozen=True)
class Prompt:
    """What a task has drawn.

    ``tokens``: all of it, haystack and question. ``answers``: the known answer, in as many strings as it has. ``said``:
    a right answer as a model would go on with it; "": a space and the answers, ``BETWEEN`` them. ``values``: what
    every needle holds, in order of position; ``asked``: which of them the answer needs (0: the first), none in a
    control. ``needle_end``: index of the first token after the last needle that is needed (where it would be, in a
    control without one). ``depth``: the place of that needle in the haystack, 0 (start) to 1 (end). ``offsets``: index
    of the first token of every needle.
    """

    tokens: tuple[int, ...]
    answers: tuple[str, ...]
    needle_end: int
    depth: float
    values: tuple[str, ...] = ()
    asked: tuple[int, ...] = ()
    said: str = ""
    offsets: tuple[int, ...] = ()


class Haystack:
    """Text that needles are hidden in, ``tokens`` [tokens], and the tokenizer it was encoded with."""

    def __init__(self, codec: Codec, tokens: NDArray[np.int32], format: Format) -> None:
        self.codec, self.tokens, self.format = codec, tokens, format
        # bounded: a prompt of a million tokens may be made of 100,000 sentences of its own
        self.encode = lru_cache(MOST_ENCODED)(self._encode)
        """Tokens of a sentence by itself; () for none."""

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.codec.encode(text)) if text else ()

    def of(self, text: str, length: int) -> Haystack:
        """A haystack of ``text`` over and over, long enough for prompts of ``length`` tokens from any of its places."""
        import numpy as np

        once = np.array(self.encode(text), np.int32)
        other = copy.copy(self)
        other.tokens = np.resize(once, length + len(once))
        return other

    def widest(self, texts: Iterable[str]) -> str:
        """The text with the most tokens."""
        return max(texts, key=lambda text: len(self.encode(text)))

    def fitting(self, room: int, texts: Iterable[str]) -> list[str]:
        """The first of ``texts``, as many as ``room`` tokens hold with some haystack between them."""
        chosen, left = [], room - MIN_FILLER
        for text in texts:
            left -= len(self.encode(text))
            if left < 0:
                break
            chosen.append(text)
        return chosen

    def shortest(self, needles: Sequence[str], question: str, instruction: str = "") -> int:
        """Tokens of the shortest prompt that holds all of these; two spare for each needle, whose numbers may differ
        in tokens from those drawn."""
        sentences = len(self.codec.begin) + len(self.encode(instruction)) + len(self.encode(question))
        return sentences + sum(len(self.encode(needle)) + 2 for needle in needles) + MIN_FILLER

    def hide(
        self,
        trial: Trial,
        rng: random.Random,
        needles: Sequence[str | Sequence[int]],
        question: str,
        *,
        answers: Sequence[str],
        values: Sequence[str] = (),
        asked: Sequence[int] = (0,),
        instruction: str = "",
        said: str = "",
        places: Callable[[int], Sequence[int]] | None = None,
    ) -> Prompt:
        """Instruction, haystack with the needles in it, in their order, and the question: ``trial.length`` tokens.

        ``asked``: the needles that the answer needs; in a control the one whose value stands for it. A single needle
        lies at ``trial.depth``, all others at places that ``rng`` draws, as it does the stretch of haystack, or at
        those that ``places`` gives for so many tokens of it, ascending. A needle may be tokens already. Raises
        StageError if they do not fit, or the haystack is too short.
        """
        start, end = (*self.codec.begin, *self.encode(instruction)), self.encode(question)
        spliced = [self.encode(needle) if isinstance(needle, str) else needle for needle in needles]
        filler = trial.length - len(start) - len(end) - sum(map(len, spliced))
        if not MIN_FILLER <= filler <= len(self.tokens):
            raise StageError(
                "the needles of a prompt do not fit", field="length", value=trial.length, fix="raise the length"
            )
        if trial.depth is not None:
            at: Sequence[int] = [round(trial.depth * filler)]
        elif places is not None:
            at = places(filler)
        else:
            at = sorted(rng.randint(0, filler) for _ in range(max(1, len(spliced))))
        first = rng.randint(0, len(self.tokens) - filler)
        text = self.tokens[first : first + filler].tolist()
        last = max(asked)
        prompt, done, needle_end, offsets = list(start), 0, len(start) + at[0], []
        for index, needle in enumerate(spliced):
            prompt += text[done : at[index]]
            offsets.append(len(prompt))
            prompt += needle
            done = at[index]
            if index == last:
                needle_end = len(prompt)
        prompt += text[done:]
        prompt += end
        return Prompt(
            tokens=tuple(prompt),
            answers=tuple(answers),
            needle_end=needle_end,
            depth=round(at[last] / filler, 6) if trial.depth is None else trial.depth,
            values=tuple(values),
            asked=() if trial.absent else tuple(asked),
            said=said,
            offsets=tuple(offsets),
        )
