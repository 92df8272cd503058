"""The two training stages: the shared short-context base, and its continual pretraining under each arm's mixer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from model.config import ModelConfig
from stages.stage import Artifact, Context, Execution, Resources, Stage, Summary
from stages.training.pretrain.config import (
    BaseConfig,
    BaseSettings,
    MixtureConfig,
    OptimSettings,
    PretrainConfig,
    PretrainSettings,
)

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


class Base(Stage[BaseConfig]):
    """One base and its seed. Inputs ``tokens``, ``tokenizer``. Scratch: full causal attention within the short context;
    hf: an import."""

    name: ClassVar[str] = "base"
    code_version: ClassVar[int] = 3
    inputs = ("tokens", "tokenizer")
    deterministic: ClassVar[bool] = False  # tokens per second are in the log

    def resources(self, config: BaseConfig, execution: Execution) -> Resources:
        """Of the training, or of the import."""
        return _own(execution) if config.init == "scratch" else Resources(cpus=execution.task_cpus)

    def needs(self, config: BaseConfig, execution: Execution) -> Resources:
        return _workers(execution) if config.init == "scratch" else self.resources(config, execution)

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


class Pretrain(Stage[PretrainConfig]):
    """One arm and seed. Inputs ``tokens``, ``tokenizer``, ``base``."""

    name: ClassVar[str] = "pretrain"
    code_version: ClassVar[int] = 4
    inputs = ("tokens", "tokenizer", "base")
    deterministic: ClassVar[bool] = False

    def resources(self, config: PretrainConfig, execution: Execution) -> Resources:
        return _own(execution)

    def needs(self, config: PretrainConfig, execution: Execution) -> Resources:
        return _workers(execution)

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


def _own(execution: Execution) -> Resources:
    """A single worker is the step itself; with several the step only waits for them, they ask for their own."""
    return _workers(execution) if execution.train_workers == 1 else Resources(cpus=0.0)


def _workers(execution: Execution) -> Resources:
    """All workers of one training run together."""
    count = execution.train_workers
    return Resources(cpus=count * execution.cpus_per_worker, gpus=count * execution.gpus_per_worker)


BASE = Base()
PRETRAIN = Pretrain()
