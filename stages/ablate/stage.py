"""The stage ``ablate``: knock the memory out of one trained model in several ways, on the same items.

Knock-outs (model.mixers.base.Knockout): ``gate_closed`` g = 0; ``reset`` the memory forgets all but the previous
segment; ``swap`` it is another document's; ``zero_read`` A_mem = 0 at the trained gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.ablate.config import AblateConfig
from stages.stage import Artifact, Context, Execution, Resources, Stage, StageError, Summary

__all__ = ["STAGE", "Ablate", "AblateConfig"]


class Ablate(Stage[AblateConfig]):
    """Inputs: ``model`` (pretrain, kind infini), ``tokens``, ``tokenizer``. Outputs: both tables, gates."""

    name = "ablate"
    code_version = 3
    inputs = ("model", "documents", "tokens", "tokenizer")
    uses = ("model", "stages.tasks", "stages.evaluate")

    def resources(self, config: AblateConfig, execution: Execution) -> Resources:
        return Resources(cpus=execution.task_cpus, gpus=execution.gpus_per_worker)

    def run(self, config: AblateConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        from stages.evaluate import perplexity, retrieval, tables
        from stages.evaluate.forward import load_model, torch_device
        from stages.tasks.prompts import evaluation_items, haystack_of
        from stages.tokens.load import document_tokens, load_tokenizer

        tokenizer = load_tokenizer(inputs["tokenizer"])
        decoder = load_model(inputs["model"], tokenizer, torch_device(context.execution))
        gates = decoder.gates()
        if gates is None:
            raise StageError(
                "this arm has no memory to knock out",
                field="mixer.kind",
                value=decoder.config.mixer.kind,
                allowed="infini",
                fix="ablate the infini arms only",
            )
        rows = [
            {"layer": layer, "head": head, "gate": gate}
            for layer, heads in enumerate(gates.tolist())
            for head, gate in enumerate(heads)
        ]
        tables.write(output / "gates.parquet", rows, tables.GATES)

        longest = config.perplexity.max_tokens_per_document
        long_only = config.perplexity.model_copy(update={"min_tokens_per_document": longest})
        documents: list[perplexity.Document] = []
        for split in config.perplexity.splits:
            found, short = perplexity.choose(
                document_tokens(inputs["tokens"], split), split, long_only, tokenizer.eos_id
            )
            context.log(f"{split}: {len(found)} documents of {longest} tokens, {short} shorter ones left out")
            documents += found
        haystack = haystack_of(document_tokens(inputs["tokens"], "test"), tokenizer.eos_id)
        segment = decoder.config.mixer.segment_length
        items = [
            item
            for item in evaluation_items(config.retrieval, tokenizer, haystack, config.seed, "ablate")
            if item.task in ("passkey", "bindings") and item.beyond_local(segment)
        ]
        _check_neighbours(config, len(documents), [item.length for item in items], segment)

        total = (sum(len(d.tokens) for d in documents) + sum(len(i.prompt) for i in items)) * len(config.knockouts)
        done = 0

        def progress(tokens: int) -> None:
            nonlocal done
            done += tokens
            context.progress(done, total, "tokens")

        text: list[dict[str, Any]] = []
        asked: list[dict[str, Any]] = []
        metrics = {"gate_mean": gates.mean().item(), "gate_min": gates.min().item(), "gate_max": gates.max().item()}
        for knockout in config.knockouts:
            scored = perplexity.score(decoder, tokenizer, documents, config.perplexity, progress, knockout=knockout)
            metrics[f"{knockout}.perplexity"] = perplexity.totals(scored)["perplexity"]
            answers = retrieval.score(decoder, tokenizer, items, progress, knockout=knockout)
            for task in ("passkey", "bindings"):
                of_task = [row for row in answers if row["task"] == task]
                for column, name in (("correct", "accuracy"), ("answer_nll", "answer_nll")):
                    if of_task:
                        metrics[f"{knockout}.{task}.{name}"] = sum(row[column] for row in of_task) / len(of_task)
            text += [row | {"knockout": knockout} for row in scored]
            asked += [row | {"knockout": knockout} for row in answers]
        tables.write(output / "perplexity.parquet", text, tables.with_knockout(tables.PERPLEXITY))
        tables.write(output / "retrieval.parquet", asked, tables.with_knockout(tables.RETRIEVAL))
        return Summary(
            headline=_headline(config, metrics),
            metrics=metrics,
            tables={
                "knockout perplexity": "perplexity.parquet",
                "knockout retrieval": "retrieval.parquet",
                "gates": "gates.parquet",
            },
        )


def _check_neighbours(config: AblateConfig, documents: int, lengths: list[int], segment: int) -> None:
    """StageError unless there is something to score, and a second document and prompt of each length for ``swap``."""
    least = 2 if "swap" in config.knockouts else 1
    longest = config.perplexity.max_tokens_per_document
    if documents < least:
        raise StageError(
            f"{documents} held-out documents are that long, the knock-outs need {least}",
            field="ablate.perplexity.max_tokens_per_document",
            value=longest,
            fix="lower it or add longer held-out documents",
        )
    if not lengths or min(lengths.count(length) for length in lengths) < least:
        raise StageError(
            f"fewer than {least} needles of some length lie outside the last segment of {segment} tokens",
            field="ablate.retrieval.lengths",
            value=list(config.retrieval.lengths),
            allowed=f"lengths above {segment} with at least {least} trials",
            fix="ask longer prompts or more trials",
        )


def _headline(config: AblateConfig, metrics: Mapping[str, float]) -> str:
    parts = [f"gates {metrics['gate_min']:.2f} to {metrics['gate_max']:.2f}"]
    for knockout in config.knockouts:
        if knockout != "none":
            ratio = metrics[f"{knockout}.perplexity"] / metrics["none.perplexity"]
            parts.append(f"{knockout} {ratio - 1:+.2%}")
    return ", ".join(parts) + " perplexity"


STAGE = Ablate()
