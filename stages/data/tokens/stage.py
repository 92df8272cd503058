"""The ``tokenizer`` and ``tokenize`` sections of a study file and their two stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.data.tokens.config import TokenizeConfig, TokenizerConfig
from stages.stage import Artifact, Context, Stage, Summary


class Tokenizer(Stage[TokenizerConfig]):
    """Documents in, tokenizer.json out."""

    name = "tokenizer"
    code_version = 4
    inputs = ("documents",)

    def run(self, config: TokenizerConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        from stages.data.tokens.tokenizer import make_tokenizer

        return make_tokenizer(config, inputs["documents"], output, context)


class Tokenize(Stage[TokenizeConfig]):
    """Documents and tokenizer in, Arrow shards out."""

    name = "tokenize"
    code_version = 4
    inputs = ("documents", "tokenizer")

    def run(self, config: TokenizeConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        from stages.data.tokens.tokenize import tokenize

        return tokenize(config, inputs["documents"], inputs["tokenizer"], output, context)


TOKENIZER = Tokenizer()


TOKENIZE = Tokenize()
