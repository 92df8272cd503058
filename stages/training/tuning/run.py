"""From settings to a tuned model, by the loop of pretraining: its resume points, its workers, its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from model.config import MixerConfig
from stages.stage import Artifact, Context, Summary
from stages.training.pretrain.config import MixtureConfig, OptimSettings, check_workers
from stages.training.pretrain.recipe import Recipe
from stages.training.tuning.config import TuningSettings, padded_to


def recipe_of(
    config: TuningSettings, *, seed: int, length: int, rows: int = 1, mixture: MixtureConfig | None = None
) -> Recipe:
    """The loop's recipe. ``length``: most tokens of a row; ``rows``: of an example; ``mixture``: of prompts and text,
    where the data are not examples."""
    return Recipe(
        seed=seed,
        steps=config.steps,
        batch_sequences=config.batch_sequences * rows,
        sequence_length=length if mixture is not None else padded_to(length),
        gate_lr=config.gate_lr,
        monitor_every=config.monitor_every,
        mixture=mixture or MixtureConfig(),
        chunk_tokens=config.chunk_tokens,
        **{name: getattr(config, name) for name in OptimSettings.model_fields},
    )


def tune(
    config: TuningSettings,
    recipe: Recipe,
    data: object,
    inputs: Mapping[str, Artifact],
    output: Path,
    context: Context,
    mixer: MixerConfig | None = None,
) -> Summary:
    """Train ``inputs["model"]`` on ``data`` (a ``TrainingData``) and put model, log and cost below ``output``.
    ``mixer``: what a base, which has none of the arms', is trained under."""
    from stages.training.pretrain.run import run_job
    from stages.training.pretrain.worker import TrainingJob

    check_workers(config.batch_sequences, context.execution.train_workers)
    job = TrainingJob(
        recipe=recipe,
        tokens=inputs["tokens"],
        tokenizer=inputs["tokenizer"],
        work_url=context.work_url,
        execution=context.execution,
        base=inputs["model"],
        mixer=mixer,
        data=data,  # type: ignore[arg-type]  # checked where it is made: here torch is not imported
    )
    return run_job(job, output, context)


def note_data(output: Path, facts: Mapping[str, object]) -> None:
    """data.json: what was trained on, in numbers."""
    (output / "data.json").write_text(json.dumps(dict(facts), indent=1, sort_keys=True) + "\n")
