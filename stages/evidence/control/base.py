"""The work of ``control-base``: full attention learns to recall within its own reach."""

from __future__ import annotations

from pathlib import Path

from model import checkpoint
from model.config import MixerConfig, ModelConfig
from model.decoder import Decoder
from stages.evidence.control import tables
from stages.evidence.control.config import ControlBaseConfig
from stages.evidence.control.sequences import BASE_TRAINING, EVALUATION, draw
from stages.evidence.control.training import ask, train
from stages.stage import Context, Summary

TRIALS = 500
"""Sequences per k at the end, of a stream of their own."""


def build(config: ControlBaseConfig) -> Decoder:
    """The untrained base of a seed."""
    mixer = MixerConfig(kind="full", segment_length=config.segment_length)
    return Decoder(ModelConfig(trunk=config.trunk, mixer=mixer, vocab_size=config.vocabulary), seed=config.seed)


def run(config: ControlBaseConfig, output: Path, context: Context) -> Summary:
    """Train, score, write model/ and control.parquet."""
    recipe, decoder = config.recipe, build(config)
    steps, seen = train(
        decoder,
        config,
        recipe,
        segments=recipe.segments,
        pairs=recipe.pairs,
        asked=recipe.asked,
        stream=(config.seed, BASE_TRAINING),
        field="control.base",
        context=context,
    )
    rows = [tables.row(config, score, step=step, k=k, segments=recipe.segments) for step, k, score in seen]
    ends: dict[int, float] = {}
    for k in recipe.asked:
        score = ask(decoder, draw(config, TRIALS, (k,), config.seed, EVALUATION, k), config, recipe.segments)
        rows.append(tables.row(config, score, step=steps, k=k, segments=recipe.segments))
        ends[k] = score.accuracy
    context.metrics(steps, **{f"accuracy_k{k}": accuracy for k, accuracy in ends.items()})
    said = ", ".join(f"k={k} {accuracy:.0%}" for k, accuracy in ends.items())
    if min(ends.values()) < recipe.learned:
        context.warn(
            f"the control's base of seed {config.seed} has not learned to recall: {said} after {steps} steps "
            f"(control.base.learned = {recipe.learned:g}); its arms cannot show what a memory adds. Fix: raise "
            "control.base.steps"
        )
    checkpoint.save(decoder, output / "model")
    return Summary(
        f"recall {said} after {steps} steps",
        {"accuracy": min(ends.values()), "steps": steps, "learned": float(min(ends.values()) >= recipe.learned)}
        | {f"accuracy_k{k}": accuracy for k, accuracy in ends.items()},
        tables.write(output, rows, min(ends.values())),
    )
