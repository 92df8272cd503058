"""Global batches: text windows in the seed's order, and retrieval prompts where the recipe asks for them.

With ``mixture.order: documents`` a row of the batch is a lane that reads documents window after window, and
``continues`` marks the rows that go on where the same row of the batch before ended. Rows keep their place, so the rank
(of a given world size) that has a lane at one step has it at the next. What is a target is the same in both orders: the
first token of a window is none, also where it continues, so losses compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.pretrain.data import DocumentOrder, SampleOrder, Windows, generator
from stages.pretrain.recipe import Recipe

# (count, first) -> tokens [count, T] and mask of answer tokens [count, T]; row i depends on first + i alone
PromptRows = Callable[[int, int], tuple[NDArray[np.int32], NDArray[np.uint8]]]


@dataclass(frozen=True)
class Batch:
    """One global batch. tokens int64 [B, T]; mask bool [B, T] marks target tokens (the first is never one); answers
    bool [B] marks prompts; ids int64 [B]: window ids, and -1 - n for the n-th prompt; continues bool [B]: the row's
    text goes on where that row ended in the batch before (never in the shuffled order)."""

    tokens: NDArray[np.int64]
    mask: NDArray[np.bool_]
    answers: NDArray[np.bool_]
    ids: NDArray[np.int64]
    continues: NDArray[np.bool_]


class Batches:
    """step -> global batch, a pure function of the recipe, the rows and the step."""

    def __init__(self, recipe: Recipe, windows: Windows, prompts: PromptRows | None = None) -> None:
        groups, shares = windows.groups(recipe.mixture.sources)
        self.recipe, self.windows, self.prompts = recipe, windows, prompts
        self.order = SampleOrder(groups, shares, recipe.seed)
        self.lanes: DocumentOrder | None = None
        if recipe.mixture.order == "documents":
            # the config has seen to it that every batch has as many prompts as the first
            self.lanes = DocumentOrder(windows, groups, shares, recipe.seed, recipe.batch_sequences - self._prompts(0))

    def prompts_before(self, step: int) -> int:
        """Prompts in all batches before ``step``; a batch's own count differs by at most one between steps."""
        return math.floor(step * self.recipe.batch_sequences * self.recipe.mixture.retrieval_share + 1e-9)

    def __getitem__(self, step: int) -> Batch:
        size, first, count = self.recipe.batch_sequences, self.prompts_before(step), self._prompts(step)
        continues = np.zeros(size, np.bool_)
        if self.lanes is None:
            ids = self.order.ids(step * size - first, size - count)
        else:
            ids, continues[: size - count] = self.lanes.at(step)
        tokens, mask = self.windows.batch(ids)
        answers = np.zeros(size, np.bool_)
        if count:
            assert self.prompts is not None
            answers[size - count :] = True
            prompt_tokens, prompt_mask = self.prompts(count, first)
            ids = np.concatenate([ids, -1 - np.arange(first, first + count)])
            tokens = np.concatenate([tokens, prompt_tokens.astype(np.int64)])
            mask = np.concatenate([mask, prompt_mask.astype(np.bool_)])
            # ranks and micro-batches take consecutive rows: spread the prompts over them
            place = generator(self.recipe.seed, "places", step if self.lanes is None else 0).permutation(size)
            tokens, mask, answers, ids = tokens[place], mask[place], answers[place], ids[place]
            continues = continues[place]
        mask[:, 0] = False
        return Batch(tokens, mask, answers, ids, continues)

    def _prompts(self, step: int) -> int:
        return self.prompts_before(step + 1) - self.prompts_before(step)


def loss_weights(batch: Batch, retrieval_share: float, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights [B, T] of the nll of each token in the text loss and in the answer loss; each sums to 1 over the global
    batch, or to 0 where it has no such token. The training loss is (1 - r) text + r answer, so neither the split into
    ranks nor into micro-batches changes it. Nothing predicts the first token of each ``length`` tokens of text."""
    text = batch.mask & ~batch.answers[:, None]
    text[:, ::length] = False
    answer = batch.mask & batch.answers[:, None]
    return tuple((part / max(1, part.sum())).astype(np.float32) for part in (text, answer))
