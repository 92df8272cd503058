"""What the training loop needs to know, whichever stage asks: plain, picklable, free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from model.arms import reach_of
from model.config import MixerConfig
from stages.stage import Execution, StageError
from stages.training.pretrain.config import (
    BaseConfig,
    MixtureConfig,
    OptimSettings,
    PretrainConfig,
    PromptPhase,
    check_workers,
    ranks_of_a_sequence,
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. Learning rates are peaks; steps and warm-up in optimiser steps; lengths in tokens."""

    seed: int
    steps: int
    batch_sequences: int
    sequence_length: int
    lr: float
    gate_lr: float
    warmup_steps: int
    schedule: Literal["cosine", "constant", "wsd"]
    min_lr_share: float
    weight_decay: float
    clip: float
    dtype: Literal["fp32", "bf16"]
    checkpoint_every: int
    monitor_every: int
    mixture: MixtureConfig
    lengths: tuple[int, ...] = ()  # a curriculum's shorter sequences, in order, for equal shares of curriculum_steps
    curriculum_steps: int = 0
    chunk_tokens: int | None = None
    optimizer: Literal["adamw", "adafactor", "muon"] = "adamw"
    decay_share: float = 0.2
    z_loss: float = 0.0
    spike_nats: float | None = None
    carry_memory: bool = False

    @property
    def pieces(self) -> tuple[int, ...]:
        """Every length that text or prompts are read in, ascending."""
        lengths = {self.sequence_length, *(self.lengths if self.curriculum_steps else ())}
        for phase in self.mixture.prompts:
            lengths |= {phase.length} if phase.share else set()
            lengths |= {phase.text_length} if phase.text_length else set()
        return tuple(sorted(lengths))

    horizon: float = 1.0

    @property
    def decay_steps(self) -> int:
        """Steps at whose end the schedule has decayed; training may stop before."""
        return max(1, round(self.steps * self.horizon))

    def length_at(self, step: int) -> int:
        """Tokens of the pieces that text is read in at ``step`` (0-based): a curriculum's or the phase's, then whole
        sequences."""
        if step < self.curriculum_steps:
            return self.lengths[step * len(self.lengths) // self.curriculum_steps]
        phase = self.phase_at(step)
        return self.sequence_length if phase is None or phase.text_length is None else phase.text_length

    def whole_before(self, step: int) -> int:
        """How many steps just before ``step`` read text in whole sequences, as it does."""
        cut = min(step, self.curriculum_steps)
        for phase in self.mixture.prompts:
            if phase.text_length not in (None, self.sequence_length) and self._end(phase) <= step:
                cut = max(cut, self._end(phase))
        return step - cut

    def phase_at(self, step: int) -> PromptPhase | None:
        """The phase of prompts that ``step`` (0-based) is in; None where the mixture has none."""
        phases = self.mixture.prompts
        return next((phase for phase in phases if step < self._end(phase)), phases[-1] if phases else None)

    def prompt_length_at(self, step: int) -> int:
        """Tokens of a prompt at ``step``."""
        phase = self.phase_at(step)
        return self.sequence_length if phase is None else phase.length

    def share_at(self, step: int) -> float:
        """Share of the batch's tokens that are prompts at ``step``."""
        phase = self.phase_at(step)
        return 0.0 if phase is None else phase.share

    def prompt_rows_before(self, step: int) -> int:
        """Rows of prompts in all batches before ``step``; within a phase the batches' own counts differ by at most
        one."""
        rows, began, phases = 0.0, 0, self.mixture.prompts
        for phase in phases:
            end = step if phase is phases[-1] else min(step, self._end(phase))
            rows += (end - began) * self.batch_sequences * phase.share
            began = end
        return math.floor(rows + 1e-9)

    def _end(self, phase: PromptPhase) -> int:
        return round(phase.until * self.steps)


def check_execution(recipe: Recipe, mixer: MixerConfig, execution: Execution, batch: str = "the global batch") -> None:
    """Raises StageError unless the workers can share out the batch, with ``sequence_parallel`` the sequences, and the
    optimiser's work; ``batch``: what says the batch's size."""
    ranks, workers = ranks_of_a_sequence(execution, mixer), execution.train_workers
    check_workers(recipe.batch_sequences, workers, batch, together=ranks)
    if recipe.optimizer == "adafactor" and workers > 1:
        raise StageError(
            "torch's Adafactor does not step parameters that are sharded over workers",
            field="execution.train_workers",
            value=workers,
            allowed="1 with optimizer adafactor",
            fix="change one of them",
        )
    if ranks == 1:
        return
    unit = ranks * (mixer.segment_length if reach_of(mixer) else 1)
    for length in recipe.pieces:
        if length % unit:
            raise StageError(
                f"sequences or prompts of {length} tokens are read, of which {ranks} workers cannot have as many whole "
                "segments each",
                field="execution.sequence_parallel",
                value=ranks,
                allowed=f"with segments of {mixer.segment_length} tokens, divisors of {length // mixer.segment_length}",
                fix="change it, or the lengths of pretrain.mixture.prompts",
            )
    if recipe.chunk_tokens is not None:
        raise StageError(
            "pretrain.chunk_tokens reads rows in pieces, each after the one before",
            field="execution.sequence_parallel",
            value=ranks,
            allowed="1 with chunk_tokens",
            fix="leave chunk_tokens out: execution.recompute_activations bounds the memory",
        )
    if recipe.carry_memory:
        raise StageError(
            "pretrain.carry_memory leaves what a row holds with the worker that read all of it",
            field="execution.sequence_parallel",
            value=ranks,
            allowed="1 with carry_memory",
            fix="change one of them",
        )


def _optim(optim: OptimSettings) -> dict[str, Any]:
    return {name: getattr(optim, name) for name in OptimSettings.model_fields}


def base_mixer(config: BaseConfig) -> MixerConfig:
    """The base attends fully within its short context."""
    return MixerConfig(kind="full", segment_length=config.sequence_length or 1)


def of_base(config: BaseConfig) -> Recipe:
    """The recipe of a base trained from scratch."""
    assert config.lr and config.steps and config.batch_tokens and config.sequence_length  # checked by the config
    return Recipe(
        seed=config.seed,
        steps=config.steps,
        batch_sequences=config.batch_tokens // config.sequence_length,
        sequence_length=config.sequence_length,
        gate_lr=config.lr,
        monitor_every=config.steps + 1,
        mixture=config.mixture,
        **_optim(config),
    )


def of_pretrain(config: PretrainConfig) -> Recipe:
    """The recipe of one arm and seed."""
    return Recipe(
        seed=config.seed,
        steps=config.steps,
        batch_sequences=config.batch_sequences,
        sequence_length=config.sequence_length,
        gate_lr=config.gate_lr,
        monitor_every=config.monitor_every,
        mixture=config.mixture,
        lengths=curriculum(config.sequence_length, config.mixer.segment_length),
        curriculum_steps=round(config.steps * config.curriculum_share),
        chunk_tokens=config.chunk_tokens,
        horizon=config.horizon,
        carry_memory=config.carry_memory,
        **_optim(config),
    )


def curriculum(sequence_length: int, segment_length: int) -> tuple[int, ...]:
    """Lengths shorter than a sequence, in whole segments, that a sequence can be cut into: 8 segments into 1, 2, 4."""
    segments = sequence_length // segment_length
    return tuple(n * segment_length for n in range(1, segments) if segments % n == 0)
