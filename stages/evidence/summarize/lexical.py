"""What can be counted of a summary: how much is copied, new, repeated; are its names and numbers those of the text?

None of it is a score of quality by itself, but a summary that is copied, repeats itself or names people the book does
not know is seen here, whatever ROUGE says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from stages.evidence.summarize.rouge import KINDS, MEAN, rouge

COPIED_WORDS = 8
DESCRIBED = ("words", "copied", "novel", "repeated", "names_true", "numbers_true")
"""Columns that describe and do not rank; null where there is nothing to count."""
LEXICAL = (*KINDS, MEAN, "names_kept")
"""Columns that rank: more is more like the references."""
COLUMNS = (*LEXICAL, *DESCRIBED)

_SMALL = tuple(
    (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty"
    ).split()
)
_ROUND = {"thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "hundred": "100", "thousand": "1000"}
_NUMBERS = {word: str(value) for value, word in enumerate(_SMALL)} | _ROUND
_NOT_NAMES = frozenset(
    ("I", "I'm", "I'll", "I've", "I'd", "Mr", "Mrs", "Miss", "Dr", "Sir", "Lady", "Lord", "St", "Chapter", "The", "A")
)


@dataclass(frozen=True)
class SourceText:
    """What is looked up of a text: its n-grams, names and numbers. Made once per text, as books are long."""

    long_grams: frozenset[int]
    pairs: frozenset[int]
    names: frozenset[str]
    numbers: frozenset[str]

    @classmethod
    def of(cls, text: str) -> SourceText:
        said = words(text)
        capitals = frozenset(re.findall(r"\b[A-Z][\w'’]+", text))
        return cls(frozenset(_grams(said, COPIED_WORDS)), frozenset(_grams(said, 2)), capitals, numbers(text))


def measured(references: Sequence[str], hypothesis: str, source: SourceText) -> dict[str, float | None]:
    """The value of each of COLUMNS.

    words: of the summary. copied: share of its word 8-grams that stand in the text. novel: share of its bigrams that do
    not. repeated: share of its trigrams that it has had before. names_true, numbers_true: share of its names and
    numbers that the text has. names_kept: share of the names in the first reference that it has.
    """
    said = words(hypothesis)
    long, two, three = _grams(said, COPIED_WORDS), _grams(said, 2), _grams(said, 3)
    own_names, own_numbers = names(hypothesis), numbers(hypothesis)
    known = names(references[0])
    counted: dict[str, float | None] = {
        "names_kept": _share(len(known & frozenset(re.findall(r"[\w'’]+", hypothesis))), len(known)),
        "words": float(len(said)),
        "copied": _share(sum(gram in source.long_grams for gram in long), len(long)),
        "novel": _share(sum(gram not in source.pairs for gram in two), len(two)),
        "repeated": _share(len(three) - len(set(three)), len(three)),
        "names_true": _share(len(own_names & source.names), len(own_names)),
        "numbers_true": _share(len(own_numbers & source.numbers), len(own_numbers)),
    }
    return {**rouge(references, hypothesis), **counted}


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return re.findall(r"\w+(?:['’]\w+)*", text.lower())


def names(text: str) -> frozenset[str]:
    """Capitalised words that do not begin a sentence (a name that only ever begins sentences is missed)."""
    found = re.finditer(r"(?<![.!?\"“”‘:;\n_*-])(?<!^)[ \t]+([A-Z][\w'’]*[a-z][\w'’]*)", text)
    return frozenset(re.sub(r"['’]s$", "", m.group(1)) for m in found) - _NOT_NAMES


def numbers(text: str) -> frozenset[str]:
    """Numbers in digits or in words up to twenty and the round ones above, as digits."""
    digits = {found.replace(",", "").rstrip(".") for found in re.findall(r"\d[\d,]*(?:\.\d+)?", text)}
    return frozenset(digits | {_NUMBERS[word] for word in words(text) if word in _NUMBERS})


def _grams(said: Sequence[str], n: int) -> list[int]:
    return [hash(tuple(said[i : i + n])) for i in range(len(said) - n + 1)]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
