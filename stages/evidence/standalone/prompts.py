"""The prompts of the questions: the study's own, by the checkpoint's tokenizer, within its chat template if asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from stages.data.tasks.checked import Checked
from stages.data.tasks.config import Grid
from stages.data.tasks.files import file_items, prompts_of
from stages.data.tasks.prompts import Item, PromptMaker
from stages.data.tokens.chat import Around
from stages.evidence.evaluate.forward import PASS_TOKENS
from stages.evidence.standalone.config import Questions
from stages.stage import StageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stages.evidence.standalone.tokenizer import CheckpointTokenizer


FIX = "leave the task out, or use a checkpoint whose tokenizer has these characters"


class Prompts:
    """Checked prompts of ``questions``, in blocks that are answered together."""

    def __init__(self, questions: Questions, tokenizer: CheckpointTokenizer, haystack: NDArray[np.int32]) -> None:
        """``haystack`` [tokens]. Raises StageError for a length that a task does not fit, a haystack that is too
        short, text that the tokenizer cannot write, a chat template that is not there."""
        self.questions = questions
        self.around: Around = tokenizer.around() if questions.chat_template else ((), ())
        codec = tokenizer.in_chat() if questions.chat_template else tokenizer
        self.maker = PromptMaker(codec, haystack, questions.format, questions.seed, "evaluation")
        self._check(Checked(codec, "--tasks", FIX), haystack)
        self.of_files = [
            item
            for name, file in questions.files.items()
            for item in file_items(prompts_of(name, file, "--prompts"), self.maker.haystack.codec, self.around)
        ]

    @property
    def wrapped(self) -> int:
        """Tokens of the chat template around a prompt."""
        return sum(map(len, self.around))

    @property
    def tokens(self) -> int:
        """Of all prompts, at most."""
        return sum(grid.tokens for grid in self.questions.grids) + sum(item.length for item in self.of_files)

    def blocks(self, tokens: int = PASS_TOKENS["cpu"]) -> Iterator[list[Item]]:
        """All prompts, those of one task, length and k in order of their number, ``tokens`` of them together (one
        prompt at least). The batch that a prompt sits in may change the last bit of its likelihood, so blocks are kept
        or asked again as wholes: an evaluation that goes on gives the rows of one that did not stop."""
        for grid in self.questions.grids:
            for length in grid.lengths:
                size = max(1, tokens // length)
                for k in grid.ks:
                    for first in range(0, grid.trials, size):
                        trials = range(first, min(first + size, grid.trials))
                        yield [self.item(grid, length, k, trial) for trial in trials]
        for _, of_file in groupby(self.of_files, key=lambda item: item.task):
            items = list(of_file)
            size = max(1, tokens // items[0].length)
            for first in range(0, len(items), size):
                yield items[first : first + size]

    def item(self, grid: Grid, length: int, k: int, trial: int) -> Item:
        """One prompt of ``length`` tokens with its answer's budget, chat template included."""
        item = self.maker.item(grid.task, length - self.wrapped, k, trial, grid.depth_of(trial))
        if not self.questions.chat_template:
            return item
        before, behind = self.around
        return replace(
            item,
            item=f"{item.item}/chat",
            length=length,
            prompt=(*before, *item.prompt, *behind),
            needle_end=item.needle_end + len(before),
            offsets=tuple(offset + len(before) for offset in item.offsets),
        )

    def _check_lengths(self, maker: PromptMaker) -> None:
        """All tasks that the shortest length cannot hold, in one error where they are several."""
        least = {grid.task.name: maker.least(grid.task, max(grid.ks)) + self.wrapped for grid in self.questions.grids}
        shortest = min((length for grid in self.questions.grids for length in grid.lengths), default=0)
        short = {name: tokens for name, tokens in least.items() if shortest < tokens}
        if len(short) > 1:
            each = ", ".join(f"{name} takes {tokens}" for name, tokens in sorted(short.items(), key=lambda one: one[1]))
            raise StageError(
                f"{self.questions.format} prompts of {len(short)} tasks do not fit: {each} tokens with this tokenizer",
                field="--lengths",
                value=shortest,
                allowed=f">= {max(short.values())} for all of them",
                fix="raise the length, leave tasks out"
                + (", or set --format compact" if self.questions.format == "published" else ""),
            )

    def _check(self, codec: Checked, haystack: NDArray[np.int32]) -> None:
        """Every task at its shortest and longest, before any work; one prompt of each shows what a tokenizer lacks."""
        checked = PromptMaker(codec, haystack, self.questions.format, self.questions.seed, "evaluation")
        self._check_lengths(checked)
        for grid in self.questions.grids:
            for length in grid.lengths:
                room = max(1, length - self.wrapped)
                checked.check(grid.task, room, max(grid.ks), field="--lengths")
            for k in grid.ks:
                checked.item(grid.task, max(1, grid.lengths[0] - self.wrapped), k, 0, grid.depth_of(0))
