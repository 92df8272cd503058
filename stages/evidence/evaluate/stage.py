"""The stage ``evaluate``: one trained model, or a base, on held-out text, the same items for every arm and seed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

from stages.evidence.evaluate.config import EvaluateConfig, EvaluateSettings, PerplexityConfig, pinned_prompts
from stages.record import Record
from stages.stage import Artifact, Context, Execution, Resources, Stage, StageError, Summary

__all__ = ["STAGE", "Evaluate", "EvaluateConfig", "EvaluateSettings", "PerplexityConfig"]


class Evaluate(Stage[EvaluateConfig]):
    """Inputs: ``model`` (pretrain or base), ``tokens`` (tokenize), ``tokenizer``. Outputs: perplexity and
    retrieval, and tasks where the config has further ones."""

    name = "evaluate"
    code_version = 5
    inputs = ("model", "documents", "tokens", "tokenizer")

    def resources(self, config: EvaluateConfig, execution: Execution) -> Resources:
        return Resources(cpus=execution.task_cpus, gpus=execution.gpus_per_worker)

    def run(self, config: EvaluateConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        from stages.data.tasks.files import file_items, prompts_of
        from stages.data.tasks.prompts import PromptMaker, evaluation_items, haystack_of
        from stages.data.tokens.load import document_tokens, load_tokenizer
        from stages.evidence.evaluate import perplexity, retrieval, tables
        from stages.evidence.evaluate.forward import load_model, torch_device

        tokenizer = load_tokenizer(inputs["tokenizer"])
        decoder = load_model(inputs["model"], tokenizer, torch_device(context.execution), config.mixer)
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
        haystack = haystack_of(document_tokens(inputs["tokens"], "test"), tokenizer.eos_id, tokenizer.bos_id)
        items = list(evaluation_items(config.retrieval, tokenizer, haystack, config.seed))
        further = config.retrieval.further
        maker = PromptMaker(tokenizer, haystack, config.retrieval.format, config.seed, "evaluation")
        maker.check_grids(further, "evaluate.retrieval")
        files = [prompts_of(name, file) for name, file in config.retrieval.files.items()]
        more = itertools.chain(
            evaluation_items(config.retrieval, tokenizer, haystack, config.seed, grids=further),
            *(file_items(file, tokenizer) for file in files),
        )

        total = sum(len(d.tokens) for d in documents) + sum(len(i.prompt) for i in items)
        total += sum(grid.tokens for grid in further)
        done = 0

        def progress(tokens: int) -> None:
            nonlocal done
            done += tokens
            context.progress(min(done, total), total, "tokens")

        scored = perplexity.score(decoder, tokenizer, documents, config.perplexity, progress)
        tables.write(output / "perplexity.parquet", scored, tables.PERPLEXITY)
        asked = retrieval.score(decoder, tokenizer, items, progress)
        tables.write(output / "retrieval.parquet", asked, tables.RETRIEVAL)

        text = perplexity.totals(scored)
        metrics = text | retrieval.summarise(asked)
        made = {"perplexity": "perplexity.parquet", "retrieval": "retrieval.parquet"}
        if further or files:
            answered = retrieval.score_tasks(decoder, tokenizer, more, config.retrieval.format, progress)
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


def _pinned(section: EvaluateSettings, folder: Path) -> EvaluateConfig:
    pinned = pinned_prompts(section, folder)
    return EvaluateConfig(**{name: getattr(pinned, name) for name in EvaluateSettings.model_fields})


STAGE = Evaluate()
RECORD = Record(
    stage=STAGE,
    config=EvaluateSettings,
    pin=_pinned,
)
