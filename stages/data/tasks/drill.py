"""Rows that teach binding before prompts do: words and their numbers in pairs, and the same words asked again.

A row is k pairs, ``word number word number``, and then words of these pairs at random, each with its number, to the
end; every number behind the k pairs is an answer. A small model finds the circuit that binds (a head that looks back to
the word, and one in a layer above that looks for the same word) where words and numbers are few, are one token each,
and a row has many answers. With all of them at once, or in prompts with one answer, it learns which numbers were said
and stays there (docs/results/quickstart.md). What it found then reaches more words, words of several tokens, and the
prompts, if each is a step of its own.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from stages.data.tasks.needles import WORDING
from stages.data.tasks.words import CUES
from stages.stage import StageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stages.data.tokens.load import StudyTokenizer

DrillWords = int | Literal["cues"]
LETTERS = 3
"""Fewest letters of a word of one token: shorter ones are mostly parts of words."""


class Drill:
    """Makes rows with one tokenizer; pure in (seed, length, words, ks, number of the row).

    ``words``: so many different words and as many numbers in all rows, of one token each, a space with them; or
    ``cues``: the cue words of the bindings task, each on a line of its own, and all of its compact numbers.
    """

    def __init__(self, codec: StudyTokenizer, seed: int) -> None:
        texts = [codec.decode([token]) for token in range(codec.vocab_size)]
        low, high = WORDING["compact"].binding_numbers
        self.seed = seed
        self.cues = [codec.encode(f"\n{cue}") for cue in CUES]
        self.numbers = [codec.encode(f" {number}") for number in range(low, high + 1)]
        self.single = [
            [i] for i, text in enumerate(texts) if text[:1] == " " and text[1:].isalpha() and len(text) > LETTERS
        ]
        """Tokens that are a space and a word, in the vocabulary's order: frequent ones first."""

    def rows(
        self, length: int, count: int, first: int, *, words: DrillWords, ks: Sequence[int], field: str
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """``count`` rows of ``length`` tokens: (tokens [count, length] int32, mask of answers [count, length] uint8).

        ``ks``: pairs of a row, in turn. Row i depends on first + i, not on ``first`` or ``count``. Raises StageError,
        naming ``field``, if the tokenizer has fewer words or numbers of one token, or k pairs fill the length.
        """
        import numpy as np

        known, numbers = self._of(words, field)
        tokens, mask = np.zeros((count, length), np.int32), np.zeros((count, length), np.uint8)
        for row in range(count):
            name = f"drill/{self.seed}/{length}/{words}/{first + row}"
            rng = random.Random(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big"))
            k = ks[(first + row) % len(ks)]
            pairs = list(zip(rng.sample(known, k), rng.sample(numbers, k), strict=True))
            said = [token for word, number in pairs for token in (*word, *number)]
            answers: list[int] = []
            while len(said) < length:
                # with replacement: were each asked once, the last answers could be told from those before them
                word, number = rng.choice(pairs)
                answers += range(len(said) + len(word), len(said) + len(word) + len(number))
                said += [*word, *number]
            answers = [place for place in answers if place < length]
            if not answers:
                raise StageError(
                    f"the {k} pairs of a drill fill the length",
                    field=field.replace("words", "k"),
                    value=k,
                    fix="fewer pairs, or longer rows",
                )
            tokens[row], mask[row, answers] = said[:length], 1
        return tokens, mask

    def _of(self, words: DrillWords, field: str) -> tuple[list[list[int]], list[list[int]]]:
        """The words and numbers of all rows, as tokens."""
        if words == "cues":
            return self.cues, self.numbers
        numbers = [number for number in self.numbers if len(number) == 1]
        most = min(len(self.single), len(numbers))
        if words > most:
            raise StageError(
                "a drill needs words and numbers that are one token each, and this tokenizer has fewer",
                field=field,
                value=words,
                allowed=f"cues, or at most {most} with this tokenizer",
                fix="fewer words, or a tokenizer with number_digits: 2 and a larger vocabulary",
            )
        return self.single[:words], numbers[:words]
