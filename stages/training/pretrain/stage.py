"""The two training stages: the shared short-context base, and its continual pretraining under each arm's mixer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from model.config import ModelConfig
from stages.stage import Artifact, Context, Execution, Resources, Summary
from stages.training.pretrain.config import (
    BaseConfig,
    BaseSettings,
    MixtureConfig,
    OptimSettings,
    PretrainConfig,
    PretrainSettings,
)
from stages.training.workers import Training

__all__ = [
    "BASE",
    "PRETRAIN",
    "Base",
    "BaseConfig",
    "BaseSettings",
    "MixtureConfig",
    "OptimSettings",
    "Pretrain",
    "PretrainConfig",
    "PretrainSettings",
]


class Base(Training[BaseConfig]):
    """One base and its seed. Inputs ``tokens``, ``tokenizer``. Scratch: full causal attention within the short context;
    hf: an import."""

    name: ClassVar[str] = "base"
    code_version: ClassVar[int] = 3
    inputs = ("tokens", "tokenizer")

    def resources(self, config: BaseConfig, execution: Execution) -> Resources:
        """Of the training, or of the import."""
        return super().resources(config, execution) if config.init == "scratch" else Resources(execution.task_cpus)

    def needs(self, config: BaseConfig, execution: Execution) -> Resources:
        return super().needs(config, execution) if config.init == "scratch" else self.resources(config, execution)

    def run(self, config: BaseConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """The model, its log, samples and cost. Raises StageError for lengths, vocabularies or shapes that disagree."""
        vocabulary = json.loads(inputs["tokenizer"].path("meta.json").read_text())["vocab_size"]
        if config.init == "hf":
            from stages.training.pretrain.imported import import_base

            return import_base(config, vocabulary, output, context)
        from stages.training.pretrain import recipe
        from stages.training.pretrain.run import run_job
        from stages.training.pretrain.worker import TrainingJob

        scratch = ModelConfig(trunk=config.trunk, mixer=recipe.base_mixer(config), vocab_size=vocabulary)
        job = TrainingJob(
            recipe=recipe.of_base(config),
            tokens=inputs["tokens"],
            tokenizer=inputs["tokenizer"],
            work_url=context.work_url,
            execution=context.execution,
            scratch=scratch,
        )
        return run_job(job, output, context)


class Pretrain(Training[PretrainConfig]):
    """One arm and seed. Inputs ``tokens``, ``tokenizer``, ``base``."""

    name: ClassVar[str] = "pretrain"
    code_version: ClassVar[int] = 4
    inputs = ("tokens", "tokenizer", "base")

    def run(self, config: PretrainConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """The trained model, its log, samples and cost. Raises StageError if lengths disagree or training diverges."""
        from stages.training.pretrain import recipe
        from stages.training.pretrain.run import check_tokens, run_job
        from stages.training.pretrain.worker import TrainingJob

        check_tokens(inputs["tokens"], config.sequence_length)
        job = TrainingJob(
            recipe=recipe.of_pretrain(config),
            tokens=inputs["tokens"],
            tokenizer=inputs["tokenizer"],
            work_url=context.work_url,
            execution=context.execution,
            base=inputs["base"],
            mixer=config.mixer,
            rope_theta=config.rope_theta,
            rope_scaling=config.rope_scaling,
        )
        return run_job(job, output, context)


BASE = Base()
PRETRAIN = Pretrain()
