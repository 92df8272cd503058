"""Batches of retrieval prompts with their answers, and of training text beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from model.decoder import Decoder
from stages.data.tasks.training import training_rows
from stages.data.tokens.load import load_tokenizer
from stages.training.finetune.config import TaskMixture, TaskPhase
from stages.training.pretrain.data import TokenRows, Windows
from stages.training.pretrain.mixture import Batch, Batches, PromptRows
from stages.training.pretrain.objective import LIKELIHOOD, Objective
from stages.training.pretrain.recipe import Recipe
from stages.training.pretrain.worker import TrainingJob, training_haystack

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class TaskData:
    """Prompts of ``mixture``, hidden in training text."""

    mixture: TaskMixture

    def open(self, job: TrainingJob, decoder: Decoder, device: torch.device) -> tuple[TaskBatches, Objective]:
        rows = TokenRows(job.tokens.path("train"))
        codec = load_tokenizer(job.tokenizer)
        haystack = training_haystack(rows, codec)

        def prompts_of(phase: TaskPhase) -> PromptRows:
            return lambda of, count, first: training_rows(
                codec,
                haystack,
                of.length,
                count,
                job.recipe.seed,
                format=self.mixture.format,
                tasks=self.mixture.in_turn,
                first=first,
                field="finetune.tasks.phases length",
                namespace="finetuning",  # neither the evaluation's prompts nor those of pretraining again
                own_ks=phase.k,
            )

        windows = Windows(rows, job.recipe.sequence_length) if self.mixture.text_share else None
        return TaskBatches(job.recipe, self.mixture.phases, prompts_of, windows), LIKELIHOOD


class TaskBatches:
    """step -> global batch, a function of recipe, text and step."""

    def __init__(
        self,
        recipe: Recipe,
        phases: tuple[TaskPhase, ...],
        prompts_of: Callable[[TaskPhase], PromptRows],
        windows: Windows | None,
    ) -> None:
        self.recipe = recipe
        self.prompts = dict(zip(recipe.mixture.prompts, map(prompts_of, phases), strict=True))
        self.mixed = None if windows is None else Batches(recipe, windows)

    def __getitem__(self, step: int) -> Batch:
        phase = self.recipe.phase_at(step)
        assert phase is not None
        if self.mixed is not None:
            self.mixed.prompts = self.prompts[phase]
            return self.mixed[step]
        size, length = self.recipe.batch_sequences, self.recipe.sequence_length
        each, first = length // phase.length, step * size
        tokens, mask = self.prompts[phase](phase, size * each, first * each)
        targets = mask.reshape(size, length).astype(np.bool_)
        targets[:, 0] = False
        ids = -1 - np.arange(first, first + size)
        everything = np.ones(size, np.bool_)
        nothing = np.zeros(size, np.int64)
        return Batch(tokens.reshape(size, length).astype(np.int64), targets, everything, ids, nothing)
