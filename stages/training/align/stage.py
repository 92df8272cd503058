"""The stage ``align``: a trained arm goes on with conversations (SFT) or preferences (DPO)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from stages.stage import Artifact, Context, StageError, Summary
from stages.training.align.config import AlignConfig, AlignSettings
from stages.training.tuning import run as tuning
from stages.training.workers import Training

__all__ = ["ALIGN", "ALIGN_ON_FILE", "Align", "AlignConfig", "AlignSettings"]


class Align(Training[AlignConfig]):
    """Inputs: ``model`` (pretrain, finetune or another variant), ``documents``, ``tokens``, ``tokenizer``. Outputs:
    those of pretrain, data.json and examples.jsonl."""

    name: ClassVar[str] = "align"
    code_version: ClassVar[int] = 2
    inputs: ClassVar[tuple[str, ...] | None] = ("model", "documents", "tokens", "tokenizer")

    def missing(self, config: AlignConfig, *, at_once: bool) -> StageError | None:
        """Rows of the data that can be aligned on."""
        if config.data is None:
            return None
        from stages.training.align.examples import fault

        return fault(config.data, config.method)

    def run(self, config: AlignConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """The aligned model, its log and cost. Raises StageError for rows that cannot be used, or if training
        diverges."""
        import json

        from cluster.storage import join
        from stages.data.tokens.load import load_tokenizer
        from stages.training.align.chat import around, foreign_end, opened
        from stages.training.align.examples import FIELD, read_examples
        from stages.training.align.preference import PreferenceData
        from stages.training.align.templates import SLACK, made, training_texts
        from stages.training.pretrain.worker import TrainingData
        from stages.training.tuning.data import ExampleData, rows_of
        from stages.training.tuning.rows import write_examples
        from stages.training.tuningaudit.match import left_out

        codec = load_tokenizer(inputs["tokenizer"])
        chat = opened(config.chat)
        if config.data is not None:
            rows = list(rows_of(config.data.path, config.data.pin, FIELD))
        else:
            texts = training_texts(inputs["documents"].path("documents"))
            room = config.length - max(0, around(codec, chat) - SLACK)
            rows = list(made(texts, codec, room, config.examples, config.seed))
        where = config.data.path if config.data is not None else "made from the training text"
        without = left_out(inputs["audit"]) if config.data is not None else frozenset[int]()
        read = read_examples(rows, config.method, codec, chat, config.length, where, without)
        read.report(context, "alignment")
        if (ends := foreign_end(codec, chat, read.examples)) is not None:
            context.warn(f"alignment: answers end with {ends}, and not with the token that ends the study's documents")
        write_examples(url := join(context.work_url, "examples.parquet"), read.examples)
        data: TrainingData = (
            ExampleData(url) if config.method == "sft" else PreferenceData(url, config.beta, config.label_smoothing)
        )
        each = len(read.examples[0])
        recipe = tuning.recipe_of(config, seed=config.seed, length=config.length, rows=each)
        summary = tuning.tune(config, recipe, data, inputs, output, context)
        tuning.note_data(output, {"kind": config.method, "made": config.data is None, **read.facts})
        if config.data is None:
            lines = [json.dumps(row, ensure_ascii=False) for row in rows[:SHOWN]]
            (output / "examples.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return summary


SHOWN = 20
"""Rows made from the text that are kept for readers."""


class AlignOnFile(Align):
    """On rows of a file: the input ``audit`` says which of them hold text of what is asked, and are left out."""

    inputs = (*(Align.inputs or ()), "audit")


ALIGN, ALIGN_ON_FILE = Align(), AlignOnFile()
