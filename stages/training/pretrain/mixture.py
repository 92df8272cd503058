"""Global batches: text windows in the seed's order, and rows of retrieval prompts where the recipe asks for them.

A row of prompts holds as many of the phase's length as a sequence has room for, one after the other; the loop cuts it
into prompts again. So a batch has the same number of tokens at every step, whatever the prompts' length.

With ``mixture.order: documents`` a row of the batch is a lane that reads documents window after window, and ``before``
counts those the same row read of its document in the batches before. Rows keep their place, so the rank (of a given
world size) that has a lane at one step has it at the next. What is a target is the same in both orders: the
first token of a window is none, also where it continues, so losses compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stages.training.pretrain.config import PromptPhase
from stages.training.pretrain.data import DocumentOrder, SampleOrder, Windows, generator
from stages.training.pretrain.recipe import Recipe

# (phase, count, first) -> tokens [count, length] and mask of answer tokens [count, length], with the phase's length;
# prompt i depends on the phase and first + i alone
PromptRows = Callable[[PromptPhase, int, int], tuple[NDArray[np.int32], NDArray[np.uint8]]]


@dataclass(frozen=True)
class Batch:
    """One global batch. tokens int64 [B, T]; mask bool [B, T] marks target tokens (the first is never one); answers
    bool [B] marks rows of prompts; ids int64 [B]: window ids, and -1 - n for the n-th row of prompts; before
    int64 [B]: windows of the row's document that this row read in the batches just before, where its text goes on (0 in
    the shuffled order)."""

    tokens: NDArray[np.int64]
    mask: NDArray[np.bool_]
    answers: NDArray[np.bool_]
    ids: NDArray[np.int64]
    before: NDArray[np.int64]

    @property
    def continues(self) -> NDArray[np.bool_]:
        """bool [B]: the row's text goes on where that row ended in the batch before."""
        return self.before > 0


class BatchSource(Protocol):
    """step (0-based) -> global batch, all of them of one number of rows."""

    def __getitem__(self, step: int) -> Batch: ...


class Batches:
    """step -> global batch, a pure function of the recipe, the rows and the step."""

    def __init__(self, recipe: Recipe, windows: Windows, prompts: PromptRows | None = None) -> None:
        groups, shares = windows.groups(recipe.mixture.sources)
        self.recipe, self.windows, self.prompts = recipe, windows, prompts
        self.order = SampleOrder(groups, shares, recipe.seed)
        self.lanes: DocumentOrder | None = None
        if recipe.mixture.order == "documents":
            # the config has seen to it that every batch has as many rows of prompts as the first
            lanes = recipe.batch_sequences - recipe.prompt_rows_before(1)
            self.lanes = DocumentOrder(windows, groups, shares, recipe.seed, lanes)

    def __getitem__(self, step: int) -> Batch:
        size, first = self.recipe.batch_sequences, self.recipe.prompt_rows_before(step)
        count = self.recipe.prompt_rows_before(step + 1) - first
        before = np.zeros(size, np.int64)
        if self.lanes is None:
            ids = self.order.ids(step * size - first, size - count)
        else:
            ids, before[: size - count] = self.lanes.at(step)
        tokens, mask = self.windows.batch(ids)
        answers = np.zeros(size, np.bool_)
        if count:
            phase = self.recipe.phase_at(step)
            assert self.prompts is not None and phase is not None
            answers[size - count :] = True
            each = tokens.shape[1] // phase.length
            made = self.prompts(phase, count * each, first * each)
            prompt_tokens, prompt_mask = (part.reshape(count, -1) for part in made)
            ids = np.concatenate([ids, -1 - np.arange(first, first + count)])
            tokens = np.concatenate([tokens, prompt_tokens.astype(np.int64)])
            mask = np.concatenate([mask, prompt_mask.astype(np.bool_)])
            # ranks and micro-batches take consecutive rows: spread the prompts over them
            place = generator(self.recipe.seed, "places", step if self.lanes is None else 0).permutation(size)
            tokens, mask, answers, ids = tokens[place], mask[place], answers[place], ids[place]
            before = before[place]
        mask[:, 0] = False
        return Batch(tokens, mask, answers, ids, before)


def loss_weights(batch: Batch, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights [B, T] of the nll of each token in the text loss and in the answer loss; each sums to 1 over the global
    batch, or to 0 where it has no such token. The training loss is (1 - r) text + r answer for a share r of prompts, so
    neither the split into ranks nor into micro-batches changes it. Nothing predicts the first token of each ``length``
    tokens of text."""
    text = batch.mask & ~batch.answers[:, None]
    text[:, ::length] = False
    answer = batch.mask & batch.answers[:, None]
    return tuple((part / max(1, part.sum())).astype(np.float32) for part in (text, answer))
