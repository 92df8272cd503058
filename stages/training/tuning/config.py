"""Settings that every further training of a trained model has."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from stages.training.pretrain.config import OptimSettings

WIDTH = 16  # batches of examples are padded to multiples of it: few shapes


def padded_to(length: int) -> int:
    """Tokens of a batch whose longest row has ``length``."""
    return -(-length // WIDTH) * WIDTH


class TuningSettings(OptimSettings):
    """Steps and batches of a further training: the same for every arm and seed."""

    steps: int = Field(ge=1)
    batch_sequences: int = Field(ge=1, description="examples of the global batch, whatever the number of workers")
    gate_lr: float = Field(default=0.01, gt=0, description="peak learning rate of the gates beta")
    monitor_every: int = Field(default=25, ge=1, description="steps between readings of gates and memory health")
    chunk_tokens: int | None = Field(
        default=None,
        ge=1,
        description="read longer rows in pieces of so many tokens (whole segments), as pretrain.chunk_tokens does: "
        "whole books then fit",
    )

    def key_fields(self) -> dict[str, Any]:
        """Pieces only where rows are read in some."""
        fields = super().key_fields()
        if self.chunk_tokens is None:
            fields.pop("chunk_tokens")
        return fields

    def check_chunks(self, length: int, segments: dict[str, int]) -> str:
        """What is wrong with ``chunk_tokens`` for rows of ``length`` tokens and arms with these segments; "" for
        nothing."""
        if self.chunk_tokens is None:
            return ""
        odd = next((name for name, segment in segments.items() if self.chunk_tokens % segment), None)
        if odd is None and self.chunk_tokens < length:
            return ""
        name = odd or next(iter(segments))
        return (
            f"chunk_tokens = {self.chunk_tokens}: allowed are multiples of arms.{name}.segment_length = "
            f"{segments[name]} below {length} tokens, the longest row"
        )
