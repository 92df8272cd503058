"""The stage ``prompts``: all prompts of the evaluation, drawn once and asked of every model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.data.tasks.config import PromptsConfig
from stages.stage import Artifact, Context, Stage, Summary

__all__ = ["STAGE", "MakePrompts", "PromptsConfig"]


class MakePrompts(Stage[PromptsConfig]):
    """Inputs: ``tokens`` (tokenize: its test split is the haystack), ``tokenizer``. Outputs: needles, and further where
    the config has further tasks or files."""

    name = "prompts"
    code_version = 1
    inputs = ("tokens", "tokenizer")

    def run(self, config: PromptsConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        from stages.data.tasks.make import DrawnFrom, make_prompts

        drawing = DrawnFrom(config, inputs["tokens"], inputs["tokenizer"])
        prompts, tokens = make_prompts(drawing, output, context)
        # not among the summary's tables: a tracking server is no place for millions of tokens
        return Summary(f"{prompts} prompts, {tokens:,} tokens", {"prompts": prompts, "tokens": tokens})


STAGE = MakePrompts()
