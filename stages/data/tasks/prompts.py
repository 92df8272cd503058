"""Retrieval prompts over real text: a task's prompt, its number among many, exact lengths in tokens.

A prompt plus its generation budget is ``length`` tokens, *exactly* where a haystack fills it up. Every trial has a
random stream of its own, which draws the stretch of haystack, what is hidden in it and where.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stages.data.tasks.config import Asked, Grid, RetrievalConfig, spread
from stages.data.tasks.haystack import BETWEEN, Codec, Format, Haystack, Trial, recorded
from stages.data.tasks.registry import task_of, worded
from stages.data.tasks.task import CONTROL, Task
from stages.data.tokens.load import StudyTokenizer
from stages.stage import StageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Namespace = Literal["evaluation", "training", "finetuning"]
"""Prompts of two namespaces come from unrelated random streams, whatever the seeds are."""


@dataclass(frozen=True)
class Item:
    """One prompt. ``needle_end``: index of the first token after the last needle that the answer needs (where it would
    be, if absent).

    ``task``: with ``_absent`` behind it for a control, whose answer stands nowhere. ``length``: tokens that were asked
    for, ``budget`` of them kept free for the answer. ``k``: the task's, in most the needles of the prompt. ``answers``:
    the known answer, in as many strings as it has. ``values``: what each needle holds, in order of position;
    ``asked_rank``: which of them is asked for last (0: the first in the prompt), -1 where the answer is absent.
    ``depth``: place of that needle in the haystack, 0 (start) to 1 (end). ``answer_ids``: a right answer, teacher
    forced; ``counted``: which of its tokens hold a letter or digit; a space of its own would water the likelihood
    down. ``offsets``: index of the first token of every needle. ``source``: the record, where the registry has none.
    """

    task: str
    item: str
    length: int
    budget: int
    depth: float
    k: int
    prompt: tuple[int, ...]
    answers: tuple[str, ...]
    answer_ids: tuple[int, ...]
    counted: tuple[bool, ...]
    needle_end: int
    values: tuple[str, ...]
    asked_rank: int
    offsets: tuple[int, ...] = ()
    source: Task | None = None

    @property
    def expected(self) -> str:
        """The answer of a task that has one."""
        return self.answers[0]

    @property
    def record(self) -> Task:
        """The task that it is a prompt, or a control, of."""
        return self.source or task_of(self.task.removesuffix(CONTROL))

    @property
    def distance(self) -> int:
        """Tokens between the end of the needle and the first answer token."""
        return len(self.prompt) - self.needle_end

    def segments(self, segment_length: int) -> int:
        """Segments between the needle's last token and the prompt's last token, where the answer is read off."""
        return (len(self.prompt) - 1) // segment_length - max(0, self.needle_end - 1) // segment_length

    def beyond_local(self, segment_length: int) -> bool:
        """True if no token of the needle is in the segment of the prompt's last token, where the answer is read off."""
        return self.needle_end <= (len(self.prompt) - 1) // segment_length * segment_length


def evaluation_items(
    config: RetrievalConfig,
    codec: Codec,
    haystack: NDArray[np.int32],
    seed: int,
    section: str = "evaluate",
    grids: Sequence[Grid] | None = None,
) -> Iterator[Item]:
    """Every prompt of ``grids`` (default: passkeys and bindings), in a fixed order: the same for all arms and seeds of
    a study.

    ``haystack`` [tokens]: held-out text. ``section``: of the study file, for errors. Raises StageError at the first
    call of next() if a length cannot hold its needles or the haystack is shorter than the longest prompt.
    """
    grids = config.needles if grids is None else grids
    maker = PromptMaker(codec, haystack, config.format, seed, "evaluation")
    maker.check_grids(grids, f"{section}.retrieval")
    for grid in grids:
        for asked in grid.prompts():
            yield maker.asked(grid, asked)


class PromptMaker:
    """Makes prompts of one format from one haystack; pure in (namespace, seed, task, length, depth, k, trial)."""

    def __init__(
        self, codec: Codec, haystack: NDArray[np.int32], format: Format, seed: int, namespace: Namespace
    ) -> None:
        chat = codec.chat if isinstance(codec, StudyTokenizer) and namespace == "evaluation" else None
        self.around: tuple[Sequence[int], Sequence[int]] = chat or ((), ())
        inner = codec.in_chat() if chat and isinstance(codec, StudyTokenizer) else codec
        self.haystack, self.format = Haystack(inner, haystack, format), format
        self.seed, self.namespace = seed, namespace

    @property
    def wrapped(self) -> int:
        """Tokens that stand around every prompt: the tokenizer's chat template."""
        return sum(map(len, self.around))

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The full stop after an answer, a training target: without it "37" would go on as "371"."""
        return self.haystack.encode(".")

    def check_grids(self, grids: Sequence[Grid], section: str) -> None:
        """StageError unless every prompt of ``grids`` fits; those of the longest k of each length."""
        for grid in grids:
            if grid.trials or grid.control_trials:
                for length in grid.lengths:
                    self.check(grid.task, length, max(grid.ks), field=f"{section}.{grid.field}")

    def check(self, task: Task, length: int, k: int, *, field: str) -> None:
        """StageError unless a prompt of ``length`` holds what the task puts into it, its budget and some haystack."""
        if self.format not in task.formats:
            raise StageError(
                f"the task {task.name} has no wording of this format",
                field="format",
                value=self.format,
                allowed=", ".join(task.formats),
                fix=f"another format, or one of the tasks that have it: {', '.join(worded(self.format))}",
            )
        if length < (least := self.least(task, k)):
            what = f" with k = {k}" if task.most > 1 else ""
            raise StageError(
                f"a {self.format} prompt of the task {task.name}{what} does not fit",
                field=field,
                value=length,
                allowed=f">= {least} tokens with this tokenizer",
                fix="raise the length" + (" or set format: compact" if self.format == "published" else ""),
            )
        most = task.longest(self.haystack, k) + self.wrapped
        if most < length:
            raise StageError(
                f"the {self.namespace} haystack has only {len(self.haystack.tokens)} tokens",
                field=field,
                value=length,
                allowed=f"<= {most:.0f} for the task {task.name}",
                fix="shorten the prompts or add held-out documents",
            )

    def least(self, task: Task, k: int) -> int:
        """Tokens of the shortest prompt that holds the task with k, its budget and some haystack."""
        return task.shortest(self.haystack, k) + task.free(self.haystack, k) + self.wrapped

    def asked(self, grid: Grid, asked: Asked) -> Item:
        """One prompt of a grid."""
        text, needle = grid.shared_by(asked)
        depth = grid.depth_of(asked.trial)
        return self.item(
            grid.task, asked.length, asked.k, asked.trial, depth, absent=asked.absent, text=text, needle=needle
        )

    def item(
        self,
        task: Task,
        length: int,
        k: int,
        trial: int,
        depth: float | None = None,
        *,
        absent: bool = False,
        text: int | None = None,
        needle: int | None = None,
    ) -> Item:
        """One prompt of a task, or one of its controls. ``depth``: what the item says of its place, and where the
        needle lies of a task that does not draw that (default: spread evenly over the trials). ``text``: number of the
        haystack that the prompt has in common with others (None: one of its own), ``needle``: which it asks for there.
        """
        if task.control_k is not None and absent:
            k = task.control_k(k)
        place = (spread(trial) if depth is None else depth) if task.by_depth else None
        known = task.name + (CONTROL if absent else "")
        name = f"{known}/{recorded(self.format)}/{length}/{'' if place is None else f'{place:g}/'}{k}/{trial}"
        stream = name if text is None else f"{known}/{recorded(self.format)}/{length}/{k}/text/{text}"
        digest = hashlib.sha256(f"{self.namespace}/{self.seed}/{stream}".encode()).digest()
        rng = random.Random(int.from_bytes(digest[:16], "big"))
        budget = task.free(self.haystack, k)
        room = length - budget - self.wrapped
        prompt = task.draw(self.haystack, Trial(room, k, place, absent, needle), rng)
        answer = self.haystack.encode(prompt.said or f" {BETWEEN[self.format].join(prompt.answers)}")
        if len(prompt.tokens) > room or len(answer) > budget:
            raise StageError(
                f"the task {task.name} drew a prompt of {len(prompt.tokens)} and an answer of {len(answer)} tokens",
                field="length",
                value=length,
                allowed=f"at most {room} (trial.length) and {budget} (its budget)",
                fix=f"mend the task {task.name}",
            )
        before, behind = self.around
        return Item(
            task=known,
            item=f"{name}/chat" if self.wrapped else name,
            length=length,
            budget=budget,
            depth=prompt.depth if depth is None else depth,
            k=k,
            prompt=(*before, *prompt.tokens, *behind),
            answers=prompt.answers,
            answer_ids=answer,
            counted=tuple(any(c.isalnum() for c in self.haystack.codec.decode([i])) for i in answer),
            needle_end=prompt.needle_end + len(before),
            values=prompt.values,
            asked_rank=max(prompt.asked, default=-1),
            offsets=tuple(offset + len(before) for offset in prompt.offsets),
        )


def haystack_of(
    documents: Iterator[tuple[str, NDArray[np.int32]]], eos_id: int, bos_id: int | None = None
) -> NDArray[np.int32]:
    """Documents end to end without the marks of their begin and end, [tokens] int32."""
    import numpy as np

    marks = [eos_id] if bos_id is None else [eos_id, bos_id]
    parts = [tokens[~np.isin(tokens, marks)] for _, tokens in documents]
    return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)
