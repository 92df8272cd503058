"""The stages ``references`` and ``summarize``: what is to be summarized, and what each model writes of it.

A small model's text is poor, and so are its scores; the tables keep every hypothesis beside its references. What local
models (``rate``), a judge (``judge``) and people (``human``) say of the summaries are stages of their own, so that
asking them again does not write anything anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.evidence.summarize.config import ItemsConfig, SummarizeConfig, pin_pairs
from stages.record import Record
from stages.stage import Artifact, Context, Execution, Resources, Stage, StageError, Summary

__all__ = ["REFERENCES", "STAGE", "ItemsConfig", "References", "Summarize", "SummarizeConfig", "pin_pairs"]


class References(Stage[ItemsConfig]):
    """Inputs: ``documents``, ``tokenizer``. Output: items.parquet and baselines.parquet (summaries no model wrote)."""

    name = "references"
    code_version = 1
    inputs = ("documents", "tokenizer")

    def missing(self, config: ItemsConfig, *, at_once: bool) -> StageError | None:
        """Pairs of which every row has text and summary."""
        if config.pairs is None:
            return None
        from stages.data.summaries import located, read

        field = "summarize.pairs"
        try:
            read(located(config.pairs.path, f"{field}.path"), config.pairs.root, field, config.pairs.splits)
        except StageError as error:
            return error
        return None

    def run(self, config: ItemsConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """See ``stages.evidence.summarize.write.references``."""
        from stages.evidence.summarize.write import references

        return references(config, inputs, output, context)


class Summarize(Stage[SummarizeConfig]):
    """Inputs: ``model`` (pretrain), ``references``, ``tokenizer``. Output: summaries.parquet."""

    name = "summarize"
    code_version = 4
    inputs = ("model", "references", "tokenizer")

    def resources(self, config: SummarizeConfig, execution: Execution) -> Resources:
        return Resources(cpus=execution.task_cpus, gpus=execution.gpus_per_worker)

    def run(self, config: SummarizeConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """See ``stages.evidence.summarize.write.summaries``."""
        from stages.evidence.summarize.write import summaries

        return summaries(config, inputs, output, context)


REFERENCES = References()
STAGE = Summarize()
RECORD = Record(stage=STAGE, config=SummarizeConfig, pin=pin_pairs)
