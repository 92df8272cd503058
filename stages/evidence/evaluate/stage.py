"""The stage ``evaluate``: one trained model, or a base, on held-out text, the same items for every arm and seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stages.data.tasks.config import PromptsConfig
from stages.evidence.evaluate.config import EvaluateConfig, EvaluateSettings, PerplexityConfig, pinned_prompts
from stages.record import Record
from stages.stage import Artifact, Context, Execution, Resources, Stage, StageError, Summary

if TYPE_CHECKING:
    from stages.data.tasks.prompts import Item
    from stages.data.tokens.load import StudyTokenizer

__all__ = ["STAGE", "Evaluate", "EvaluateConfig", "EvaluateSettings", "PerplexityConfig"]


class Evaluate(Stage[EvaluateConfig]):
    """Inputs: ``model`` (pretrain or base), ``tokens`` (tokenize), ``tokenizer``, ``prompts``. Outputs: perplexity and
    retrieval, and tasks where the config has further ones."""

    name = "evaluate"
    code_version = 5
    inputs = ("model", "documents", "tokens", "tokenizer", "prompts")

    def resources(self, config: EvaluateConfig, execution: Execution) -> Resources:
        """With GPUs the step itself only waits for its workers, who have them."""
        return Resources(cpus=execution.task_cpus)

    def needs(self, config: EvaluateConfig, execution: Execution) -> Resources:
        return Resources(cpus=execution.task_cpus, gpus=execution.gpus_per_worker)

    def run(self, config: EvaluateConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        from stages.data.tokens.load import document_tokens, load_tokenizer
        from stages.evidence.evaluate import perplexity, retrieval, tables
        from stages.evidence.evaluate.spreading import Evaluation

        tokenizer = load_tokenizer(inputs["tokenizer"])
        evaluation = Evaluation(config, inputs, tokenizer, context)
        documents: list[perplexity.ScoredDocument] = []
        for split in config.perplexity.splits:
            found, short = perplexity.choose(
                document_tokens(inputs["tokens"], split), split, config.perplexity, tokenizer.eos_id
            )
            context.log(
                f"{split}: {len(found)} documents scored, {short} shorter than "
                f"{config.perplexity.min_tokens_per_document} tokens left out"
            )
            documents += found
        if not documents:
            raise StageError(
                "no held-out document is long enough",
                field="evaluate.perplexity.min_tokens_per_document",
                value=config.perplexity.min_tokens_per_document,
                fix="lower it, or add documents to the splits " + ", ".join(config.perplexity.splits),
            )
        items, more = _prompts(config, inputs, tokenizer)
        further = config.retrieval.further
        found_rows = evaluation.rows(documents, list(items), more, sum(grid.tokens for grid in further))
        scored, asked, answered = (found_rows[name] for name in ("perplexity", "retrieval", "tasks"))
        tables.write(output / "perplexity.parquet", scored, tables.PERPLEXITY)
        tables.write(output / "retrieval.parquet", asked, tables.RETRIEVAL)

        text = perplexity.totals(scored)
        metrics = text | perplexity.totals_by_source(scored) | retrieval.summarise(asked)
        made = {"perplexity": "perplexity.parquet", "retrieval": "retrieval.parquet"}
        if further or config.retrieval.files:
            tables.write(output / "tasks.parquet", answered, tables.TASKS)
            metrics |= retrieval.summarise_tasks(answered)
            made["tasks"] = "tasks.parquet"
        accuracy = metrics.get("passkey.beyond_local.accuracy")
        reach = (
            ""
            if accuracy is None
            else (f", passkey beyond the local segment {accuracy:.0%} of {metrics['passkey.beyond_local.n']:.0f}")
        )
        return Summary(
            headline=f"perplexity {text['perplexity']:.2f} on {text['documents']:.0f} documents{reach}",
            metrics=metrics,
            tables=made,
        )


def _prompts(
    config: EvaluateConfig, inputs: Mapping[str, Artifact], tokenizer: StudyTokenizer
) -> tuple[Iterator[Item], Iterator[Item]]:
    """Passkeys and bindings; further ones. As the stage ``prompts`` drew them, or drawn here where it is no input."""
    from stages.data.tasks import make, table

    if "prompts" not in inputs:
        return make.all_prompts(
            PromptsConfig(retrieval=config.retrieval, seed=config.seed), inputs["tokens"], tokenizer
        )
    prompts, files = inputs["prompts"], config.retrieval.files
    further: Iterator[Item] = iter(())
    if config.retrieval.further or files:
        further = table.read_items(prompts.path(make.FURTHER), files)
    return table.read_items(prompts.path(make.NEEDLES), files), further


def _pinned(section: EvaluateSettings, folder: Path) -> EvaluateConfig:
    pinned = pinned_prompts(section, folder)
    return EvaluateConfig(**{name: getattr(pinned, name) for name in EvaluateSettings.model_fields})


STAGE = Evaluate()
RECORD = Record(
    stage=STAGE,
    config=EvaluateSettings,
    pin=_pinned,
)
