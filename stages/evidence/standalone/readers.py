"""A checkpoint as something that answers prompts and scores text: our decoder, or any causal model of transformers.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.config import MixerConfig
from model.export import ANY_LENGTH
from model.llama import BLOCK
from stages.data.tasks.prompts import Item
from stages.evidence.evaluate import perplexity, retrieval
from stages.evidence.evaluate.config import PerplexityConfig
from stages.evidence.evaluate.forward import Progress

if TYPE_CHECKING:
    from model.decoder import Decoder
    from stages.evidence.standalone.tokenizer import CheckpointTokenizer

LONGEST = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx")
"""Fields of a config.json that say how long a text may be."""


class Reader(ABC):
    """``what``: the model in words. ``mixer``: the arm it is read as; ``longest``: tokens that it was made for, None
    where the arm reads any number or nothing is said. ``vocabulary``: tokens it knows."""

    what: str
    mixer: MixerConfig
    longest: int | None
    vocabulary: int

    @abstractmethod
    def answers(
        self, tokenizer: CheckpointTokenizer, items: Sequence[Item], progress: Progress
    ) -> list[tuple[str, float]]:
        """What it goes on with after each prompt (greedy, to the item's budget or a stop token), and the nats per
        token of the right answer, teacher forced."""

    @abstractmethod
    def perplexity(
        self,
        tokenizer: CheckpointTokenizer,
        documents: list[perplexity.ScoredDocument],
        config: PerplexityConfig,
        progress: Progress,
    ) -> list[dict[str, Any]]:
        """Rows of perplexity.parquet."""

    @abstractmethod
    def logits(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of tokens [B, T] that start their texts; for tests and short texts."""


class DecoderReader(Reader):
    """Our decoder: memory stays bounded by the arm's state, whatever the prompt's length."""

    def __init__(self, decoder: Decoder, what: str, longest: int | None) -> None:
        self.decoder, self.what, self.longest = decoder, what, longest
        self.mixer, self.vocabulary = decoder.config.mixer, decoder.config.vocab_size

    def answers(
        self, tokenizer: CheckpointTokenizer, items: Sequence[Item], progress: Progress
    ) -> list[tuple[str, float]]:
        return retrieval.answers(self.decoder, tokenizer, items, progress)

    def perplexity(
        self,
        tokenizer: CheckpointTokenizer,
        documents: list[perplexity.ScoredDocument],
        config: PerplexityConfig,
        progress: Progress,
    ) -> list[dict[str, Any]]:
        return perplexity.score(self.decoder, tokenizer, documents, config, progress)

    @torch.inference_mode()
    def logits(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.decoder(tokens.to(next(self.decoder.parameters()).device))[0]
        return logits


def context(fields: Mapping[str, Any], arm: MixerConfig | None) -> int | None:
    """Tokens that the checkpoint of this config.json was made for, read as ``arm``; None: any number, or not said."""
    own = fields.get(BLOCK)
    mixer, text = own.get("mixer") if isinstance(own, dict) else None, fields.get("text_config")
    kind = arm.kind if arm is not None else mixer.get("kind") if isinstance(mixer, dict) else "full"
    said = {**fields, **(text if isinstance(text, dict) else {})}
    longest = next((value for name in LONGEST if type(value := said.get(name)) is int and value > 0), None)
    return None if kind != "full" or (own is not None and longest == ANY_LENGTH) else longest
