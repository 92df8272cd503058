"""What tasks are made of: numbers, codes, made-up words, keys and the text between them.

Answers drawn together are distinct and equally long, so that none is part of another.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator

from stages.data.tasks.haystack import Format
from stages.data.tasks.words import CUES

NOISE = (
    "The road is long. A gate stands open. The rain has stopped. We walk on for a while. Nothing moves in the field. "
    "Later we turn back home. "
)
"""Text that says nothing, over and over."""

_CONSONANTS, _VOWELS = "bdfghjklmnprstv", "aeiou"
_SYLLABLES = tuple(c + v for c in _CONSONANTS for v in _VOWELS)
MOST_WORDS = len(_SYLLABLES) ** 3


def word(number: int) -> str:
    """A made-up word of three syllables; another for each number from 0 to ``MOST_WORDS`` - 1."""
    first, rest = divmod(number, len(_SYLLABLES) ** 2)
    second, third = divmod(rest, len(_SYLLABLES))
    return _SYLLABLES[first] + _SYLLABLES[second] + _SYLLABLES[third]


def words(rng: random.Random, count: int) -> list[str]:
    """Distinct made-up words of six letters."""
    return [word(number) for number in rng.sample(range(MOST_WORDS), count)]


def made_up(rng: random.Random) -> Iterator[str]:
    """Distinct made-up words, as many as there are."""
    seen: set[int] = set()
    while len(seen) < MOST_WORDS:
        number = rng.randrange(MOST_WORDS)
        if number not in seen:
            seen.add(number)
            yield word(number)


def numbers(rng: random.Random, digits: int, count: int) -> list[str]:
    """Distinct numbers of so many digits."""
    return [str(number) for number in rng.sample(range(10 ** (digits - 1), 10**digits), count)]


def codes(rng: random.Random, format: Format) -> Iterator[str]:
    """Distinct random UUIDs without end; compact: four hexadecimal digits, as many as there are."""
    seen: set[int] = set()
    while format == "published" or len(seen) < 16**4:
        number = rng.getrandbits(16 if format == "compact" else 128)
        if number not in seen:
            seen.add(number)
            yield f"{number:04x}" if format == "compact" else str(uuid.UUID(int=number, version=4))


def letters(rng: random.Random, length: int, count: int) -> list[str]:
    """Distinct names of so many capital letters."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=length))] = None
    found.pop("VAR", None)
    return list(found) if len(found) == count else letters(rng, length, count)


def keys(rng: random.Random) -> Iterator[str]:
    """Distinct keys without end: the cue words in random order, then two of them, then three."""
    yield from rng.sample(CUES, len(CUES))
    seen: set[str] = set()
    parts = 2
    while True:
        key = "-".join(rng.sample(CUES, parts))
        if key not in seen:
            seen.add(key)
            yield key
        if len(seen) > 10_000:  # half of all pairs
            parts = 3


def listed(names: list[str], format: Format) -> str:
    """One, two and three; terse: each on a line, as in its needle."""
    if format == "terse":
        return "\n".join(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
