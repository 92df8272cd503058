"""The stage ``summarize``: continue and condense held-out documents, score by ROUGE.

A small model's text is poor, and so are its scores; the table keeps every hypothesis beside its reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.evidence.summarize.config import SummarizeConfig, pin_pairs
from stages.record import Record
from stages.stage import Artifact, Context, Execution, Resources, Stage, StageError, Summary

__all__ = ["STAGE", "Summarize", "SummarizeConfig", "pin_pairs"]


class Summarize(Stage[SummarizeConfig]):
    """Inputs: ``model`` (pretrain), ``documents`` (decontaminate), ``tokenizer``. Output: summaries.parquet."""

    name = "summarize"
    code_version = 3
    inputs = ("model", "documents", "tokens", "tokenizer")

    def resources(self, config: SummarizeConfig, execution: Execution) -> Resources:
        return Resources(cpus=execution.task_cpus, gpus=execution.gpus_per_worker)

    def run(self, config: SummarizeConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        import pyarrow as pa
        import pyarrow.parquet as pq
        import torch

        from model.generate import generate
        from stages.data.tokens.load import load_tokenizer
        from stages.evidence.evaluate.forward import PASS_TOKENS, load_model, torch_device
        from stages.evidence.summarize import examples as make
        from stages.evidence.summarize.rouge import KINDS, rouge

        device = torch_device(context.execution)
        tokenizer = load_tokenizer(inputs["tokenizer"])
        decoder = load_model(inputs["model"], tokenizer, device)
        documents = make.held_out(inputs["documents"], config.splits)
        examples: list[make.Example] = []
        for task in config.tasks:
            if task == "continue":
                made = make.continuations(documents, tokenizer, config)
            elif config.pairs is not None:
                made = make.from_pairs(config.pairs, tokenizer, config)
            else:
                made = make.condensations(documents, tokenizer, config)
            if not made:
                raise StageError(
                    f"no held-out document is long enough to {task}",
                    field="summarize.prompt_tokens",
                    value=config.prompt_tokens,
                    fix="lower prompt_tokens or new_tokens, or add longer documents",
                )
            if len(made) < config.documents:
                context.warn(f"{task}: {len(made)} of {config.documents} documents asked for are long enough")
            examples += made

        generator = torch.Generator(device).manual_seed(config.seed)
        size = max(1, PASS_TOKENS[device.type] // config.prompt_tokens)
        rows: list[dict[str, Any]] = []
        for start in range(0, len(examples), size):
            batch = examples[start : start + size]
            said = generate(
                decoder,
                [example.prompt for example in batch],
                config.new_tokens,
                temperature=config.temperature,
                top_p=config.top_p,
                stop_ids=(tokenizer.eos_id,),
                generator=generator,
                prefill_chunk=PASS_TOKENS[device.type],
            )
            for example, ids in zip(batch, said, strict=True):
                hypothesis = tokenizer.decode(ids)
                scores = rouge(example.reference, hypothesis)
                rows.append(
                    {"doc_id": example.doc_id, "task": example.task, "prompt_tokens": len(example.prompt)}
                    | {"reference": example.reference, "hypothesis": hypothesis}
                    | scores
                )
            context.progress(len(rows), len(examples), "documents")
        schema = pa.schema(
            [("doc_id", pa.string()), ("task", pa.string()), ("prompt_tokens", pa.int64())]
            + [("reference", pa.large_string()), ("hypothesis", pa.large_string())]
            + [(kind, pa.float64()) for kind in KINDS]
        )
        pq.write_table(pa.Table.from_pylist(rows, schema), output / "summaries.parquet", compression="zstd")
        metrics: dict[str, float] = {}
        for task in config.tasks:
            of_task = [row for row in rows if row["task"] == task]
            metrics |= {f"{task}.{kind}": sum(r[kind] for r in of_task) / len(of_task) for kind in KINDS}
            metrics[f"{task}.documents"] = float(len(of_task))
        return Summary(
            headline=", ".join(f"{task} ROUGE-L {metrics[f'{task}.rougeL']:.3f}" for task in config.tasks),
            metrics=metrics,
            tables={"summaries": "summaries.parquet"},
        )


STAGE = Summarize()
RECORD = Record(stage=STAGE, config=SummarizeConfig, pin=pin_pairs)
