"""The stage ``finetune``: a trained arm, or a base, goes on with retrieval prompts or with summaries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from stages.stage import Artifact, Context, StageError, Summary
from stages.training.finetune.config import FinetuneConfig, FinetuneSettings
from stages.training.tuning import run as tuning
from stages.training.workers import Training

__all__ = ["FINETUNE", "FINETUNE_ON_PAIRS", "Finetune", "FinetuneConfig", "FinetuneSettings"]


class Finetune(Training[FinetuneConfig]):
    """Inputs: ``model`` (pretrain or base), ``tokens``, ``tokenizer``. Outputs: those of pretrain, and data.json."""

    name: ClassVar[str] = "finetune"
    code_version: ClassVar[int] = 1
    inputs: ClassVar[tuple[str, ...] | None] = ("model", "tokens", "tokenizer")

    def missing(self, config: FinetuneConfig, *, at_once: bool) -> StageError | None:
        """Rows of the pairs that can be trained on."""
        if config.pairs is None:
            return None
        from stages.training.finetune.pairs import fault

        return fault(config.pairs)

    def run(self, config: FinetuneConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """The tuned model, its log and cost. Raises StageError for pairs or lengths that cannot be trained on, or if
        training diverges."""
        if config.tasks is not None:
            from stages.training.finetune.tasks import TaskData

            recipe = tuning.recipe_of(config, seed=config.seed, length=config.length, mixture=config.tasks.mixture)
            summary = tuning.tune(config, recipe, TaskData(config.tasks), inputs, output, context, config.mixer)
            tuning.note_data(output, {"kind": "tasks", "prompts": _prompts(config)})
            return summary
        from cluster.storage import join
        from stages.data.tokens.load import load_tokenizer
        from stages.training.finetune.pairs import read_pairs
        from stages.training.tuning.data import ExampleData
        from stages.training.tuning.rows import write_examples
        from stages.training.tuningaudit.match import left_out

        assert config.pairs is not None
        read = read_pairs(config.pairs, load_tokenizer(inputs["tokenizer"]), left_out(inputs["audit"]))
        read.report(context, "pairs")
        write_examples(url := join(context.work_url, "examples.parquet"), read.examples)
        recipe = tuning.recipe_of(config, seed=config.seed, length=config.length)
        summary = tuning.tune(config, recipe, ExampleData(url), inputs, output, context, config.mixer)
        tuning.note_data(output, {"kind": "pairs", **read.facts})
        return summary


def _prompts(config: FinetuneConfig) -> int:
    """Prompts of all steps."""
    assert config.tasks is not None
    from stages.training.tuning.run import recipe_of

    recipe = recipe_of(config, seed=config.seed, length=config.length, mixture=config.tasks.mixture)
    rows = [recipe.prompt_rows_before(step + 1) - recipe.prompt_rows_before(step) for step in range(config.steps)]
    return sum(count * (config.length // recipe.prompt_length_at(step)) for step, count in enumerate(rows))


class FinetuneOnPairs(Finetune):
    """On pairs: the input ``audit`` says which of them hold text of what is asked, and are left out."""

    code_version: ClassVar[int] = 2
    inputs = (*(Finetune.inputs or ()), "audit")


FINETUNE, FINETUNE_ON_PAIRS = Finetune(), FinetuneOnPairs()
