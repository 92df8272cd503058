"""Retrieval prompts over real text: a needle, a haystack of held-out tokens, a question, exact lengths in tokens.

A prompt plus its generation budget is *exactly* ``length`` tokens. Sentences are encoded by themselves and spliced
between haystack tokens, so every length is known beforehand and the asked number has the same tokens in the needle
and in the answer. Every trial draws its own stretch of haystack, numbers, cue words and needle positions; in
``bindings`` the asked needle is any of the k, so that no position gives the answer away.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from stages.data.tasks.config import Format, RetrievalConfig, Task, spread
from stages.data.tasks.words import CUES
from stages.stage import StageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Namespace = Literal["evaluation", "training"]
"""Prompts of the two namespaces come from unrelated random streams, whatever the seeds are."""

MIN_FILLER = 16
"""Fewest haystack tokens: below it the depth of a needle means nothing."""


class Codec(Protocol):
    """What the tasks need of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Wording:
    """Sentences of one format. ``numbers``: inclusive range of the answers."""

    instruction: str
    passkey: str
    passkey_question: str
    binding: str
    binding_question: str
    numbers: tuple[int, int]
    binding_numbers: tuple[int, int]


WORDING: dict[Format, Wording] = {
    "landmark": Wording(
        instruction="There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
        "I will quiz you about the important information there.\n",
        passkey="\nThe pass key is {value}. Remember it. {value} is the pass key.\n",
        passkey_question="\nWhat is the pass key? The pass key is",
        binding="\nThe passkey associated with the word {cue} is {value}.\n",
        binding_question="\nWhat is the passkey associated with the word {cue}? "
        "The passkey associated with the word {cue} is",
        numbers=(1, 50000),
        binding_numbers=(10000, 50000),  # one width: no number is part of another
    ),
    "compact": Wording(
        instruction="",
        passkey="\nThe pass key is {value}.\n",
        passkey_question="\nThe pass key is",
        binding="\nThe key of {cue} is {value}.\n",
        binding_question="\nThe key of {cue} is",
        numbers=(10, 99),
        binding_numbers=(10, 99),
    ),
}


@dataclass(frozen=True)
class Item:
    """One prompt. ``needle_end``: index of the first token after the asked needle (where it would be, if absent).

    ``expected``: the number as text. For ``bindings_absent`` the asked word is in no needle and ``expected`` is the
    number of one rival drawn at random: a model that knows the set but no binding is right 1/k of the time.
    For ``passkey_absent`` there is no needle at all. ``values``: the number of each needle, in order of position;
    ``asked_rank``: which of them is asked for (0: the first in the prompt), -1 in the tasks whose answer is absent.
    ``depth``: place of the asked (``bindings_absent``: expected) needle in the haystack, 0 (start) to 1 (end).
    ``digits``: which answer tokens hold a digit; a space of its own would water the likelihood down.
    """

    task: Task
    item: str
    length: int
    depth: float
    rivals: int
    prompt: tuple[int, ...]
    expected: str
    answer_ids: tuple[int, ...]
    digits: tuple[bool, ...]
    needle_end: int
    values: tuple[str, ...]
    asked_rank: int

    @property
    def distance(self) -> int:
        """Tokens between the end of the needle and the first answer token."""
        return len(self.prompt) - self.needle_end

    def beyond_local(self, segment_length: int) -> bool:
        """True if no token of the needle is in the segment of the prompt's last token, where the answer is read off."""
        return self.needle_end <= (len(self.prompt) - 1) // segment_length * segment_length


def evaluation_items(
    config: RetrievalConfig, codec: Codec, haystack: NDArray[np.int32], seed: int, section: str = "evaluate"
) -> Iterator[Item]:
    """Every prompt of the grid, in a fixed order: the same for all arms and seeds of a study.

    ``haystack`` [tokens]: held-out text. ``section``: of the study file, for errors. Raises StageError at the first
    call of next() if a length cannot hold its needles or the haystack is shorter than the longest prompt.
    """
    maker = PromptMaker(codec, haystack, config.format, seed, "evaluation")
    for length in config.lengths:
        maker.check(length, 1, field=f"{section}.retrieval.lengths", bindings=False)
    if config.binding_trials or config.control_trials:
        field = f"{section}.retrieval." + ("lengths" if config.binding_lengths is None else "binding_lengths")
        for length in config.lengths_of_bindings:
            maker.check(length, max(config.rivals), field=field, bindings=True)
    cells: list[tuple[Task, int, int, int]] = []
    for length in config.lengths:
        cells.append(("passkey", length, 1, config.trials_per_length))
        cells.append(("passkey_absent", length, 0, config.control_trials))
    for length in config.lengths_of_bindings:
        for k in config.rivals:
            cells.append(("bindings", length, k, config.binding_trials))
            cells.append(("bindings_absent", length, k, config.control_trials))
    for task, length, k, trials in cells:
        for trial in range(trials):
            yield maker.item(task, length, k, trial, config.depth_of(trial))


class PromptMaker:
    """Makes prompts of one format from one haystack; pure in (namespace, seed, task, length, depth, k, trial)."""

    def __init__(
        self, codec: Codec, haystack: NDArray[np.int32], format: Format, seed: int, namespace: Namespace
    ) -> None:
        self.codec, self.haystack, self.wording = codec, haystack, WORDING[format]
        self.format, self.seed, self.namespace = format, seed, namespace
        instruction = codec.encode(self.wording.instruction) if self.wording.instruction else ()
        self._instruction = (*getattr(codec, "begin", ()), *instruction)  # a prompt begins as documents do
        self._encoded: dict[str, tuple[int, ...]] = {}

    @property
    def budget(self) -> int:
        """Tokens kept free for the answer: one per character of the longest " number" and one that ends it."""
        return len(f" {self.wording.numbers[1]}") + 1

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The full stop after an answer, a training target: without it "37" would go on as "371"."""
        return self._encode(".")

    def check(self, length: int, k: int, *, field: str, bindings: bool) -> None:
        """StageError unless a prompt of ``length`` holds ``k`` needles, question, budget and MIN_FILLER of haystack."""
        number = max(self.wording.numbers) - 1
        if bindings:
            needle = max(len(self._encode(self.wording.binding.format(cue=c, value=number))) for c in CUES)
            question = max(len(self._encode(self.wording.binding_question.format(cue=c))) for c in CUES)
        else:
            needle = len(self._encode(self.wording.passkey.format(value=number)))
            question = len(self._encode(self.wording.passkey_question))
        least = len(self._instruction) + k * (needle + 2) + question + self.budget + MIN_FILLER
        if length < least:
            what = f"{k} binding needle(s)" if bindings else "the passkey lines"
            raise StageError(
                f"a {self.format} prompt with {what} does not fit",
                field=field,
                value=length,
                allowed=f">= {least} tokens with this tokenizer",
                fix="raise the length" + ("" if self.format == "compact" else " or set format: compact"),
            )
        if len(self.haystack) < length:
            raise StageError(
                f"the {self.namespace} haystack has only {len(self.haystack)} tokens",
                field=field,
                value=length,
                allowed=f"<= {len(self.haystack)}",
                fix="shorten the prompts or add held-out documents",
            )

    def item(self, task: Task, length: int, k: int, trial: int, depth: float | None = None) -> Item:
        """One prompt; ``k`` counts the needles in it (0 for ``passkey_absent``).

        ``depth``: where the passkey lies. The needles of the bindings tasks all lie at uniform places, and the asked
        one is drawn among them; they have no use for it.
        """
        bindings = task in ("bindings", "bindings_absent")
        if depth is None and not bindings:
            depth = spread(trial)
        at = "" if bindings else f"{depth:g}/"
        name = f"{task}/{self.format}/{length}/{at}{k}/{trial}"
        digest = hashlib.sha256(f"{self.namespace}/{self.seed}/{name}".encode()).digest()
        rng = random.Random(int.from_bytes(digest[:16], "big"))
        low, high = self.wording.binding_numbers if bindings else self.wording.numbers
        values = [str(v) for v in rng.sample(range(low, high + 1), max(k, 1))]
        if bindings:
            cues = rng.sample(CUES, k + 1)
            rank = rng.randrange(k)
            sentences = [self.wording.binding.format(cue=c, value=v) for c, v in zip(cues, values, strict=False)]
            question = self.wording.binding_question.format(cue=cues[k if task == "bindings_absent" else rank])
        else:
            rank = 0
            sentences = [self.wording.passkey.format(value=values[0])][:k]
            question = self.wording.passkey_question
        needles = [self._encode(sentence) for sentence in sentences]
        asked = self._encode(question)
        filler = length - self.budget - len(self._instruction) - len(asked) - sum(map(len, needles))
        if filler < MIN_FILLER or filler > len(self.haystack):
            self.check(length, k, field="length", bindings=bindings)
            raise StageError("the needles of a prompt do not fit", field="length", value=length, fix="raise the length")
        places = sorted(rng.randint(0, filler) for _ in needles) if bindings else [round((depth or 0.0) * filler)]
        start = rng.randint(0, len(self.haystack) - filler)
        text = self.haystack[start : start + filler].tolist()
        prompt, done, needle_end = list(self._instruction), 0, len(self._instruction) + places[0]
        for index, needle in enumerate(needles):
            prompt += text[done : places[index]]
            prompt += needle
            done = places[index]
            if index == rank:
                needle_end = len(prompt)
        prompt += text[done:]
        prompt += asked
        answer = self._encode(f" {values[rank]}")
        return Item(
            task=task,
            item=name,
            length=length,
            depth=round(places[rank] / filler, 6) if depth is None else depth,
            rivals=k,
            prompt=tuple(prompt),
            expected=values[rank],
            answer_ids=answer,
            digits=tuple(any(c.isdigit() for c in self.codec.decode([i])) for i in answer),
            needle_end=needle_end,
            values=tuple(values[:k]),
            asked_rank=rank if task in ("passkey", "bindings") else -1,
        )

    def _encode(self, text: str) -> tuple[int, ...]:
        if text not in self._encoded:
            self._encoded[text] = tuple(self.codec.encode(text))
        return self._encoded[text]


def first_integer(text: str) -> str:
    """The first whole number in ``text`` without leading zeros, "" if there is none: the scored answer."""
    found = re.search(r"\d+", text)
    return str(int(found.group())) if found else ""


def haystack_of(
    documents: Iterator[tuple[str, NDArray[np.int32]]], eos_id: int, bos_id: int | None = None
) -> NDArray[np.int32]:
    """Documents end to end without the marks of their begin and end, [tokens] int32."""
    import numpy as np

    marks = [eos_id] if bos_id is None else [eos_id, bos_id]
    parts = [tokens[~np.isin(tokens, marks)] for _, tokens in documents]
    return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)
