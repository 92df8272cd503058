"""Settings of the memory knock-outs, as they stand in a study file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stages.evaluate.config import PerplexityConfig
from stages.stage import Config
from stages.tasks.config import RetrievalConfig

Knockout = Literal["none", "gate_closed", "reset", "swap", "zero_read"]


class AblateConfig(Config):
    """The study file's ``ablate:`` section. Items are the same for every knock-out, arm and training seed.

    Only documents of at least ``perplexity.max_tokens_per_document`` tokens are scored, cut there: equal lengths let
    ``swap`` exchange whole memories. Of the prompts only passkeys and bindings beyond the local segment are asked.
    """

    knockouts: tuple[Knockout, ...] = ("none", "gate_closed", "reset", "swap", "zero_read")
    perplexity: PerplexityConfig
    retrieval: RetrievalConfig
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> AblateConfig:
        if "none" not in self.knockouts or len(set(self.knockouts)) != len(self.knockouts):
            raise ValueError(f"knockouts = {list(self.knockouts)}: allowed are distinct names, 'none' among them")
        if self.perplexity.max_tokens_per_document is None:
            raise ValueError(
                "perplexity.max_tokens_per_document is not set: the knock-outs compare documents of one length. "
                "Fix: set it to the context of interest, in tokens"
            )
        return self
