"""Settings of the retrieval tasks, as they stand in a study file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stages.stage import Config

Format = Literal["landmark", "compact"]
Task = Literal["passkey", "passkey_absent", "bindings", "bindings_absent"]


class RetrievalConfig(Config):
    """Which prompts are asked. Lengths are tokens *including* question and generation budget.

    ``landmark``: the passkey lines of Landmark Attention (Mohtashami and Jaggi, 2023) word for word, k in 1..50000.
    ``compact``: one short sentence and a two-digit number, for small or byte vocabularies whose contexts cannot hold
    the landmark lines; chance is 1/90 instead of 1/50000, and the two are never mixed in one table.
    """

    format: Format = Field(default="landmark", description="wording of needle and question")
    lengths: tuple[int, ...] = Field(min_length=1, description="prompt lengths of the passkey grid, tokens")
    depths: tuple[float, ...] = Field(default=(0.0, 0.25, 0.5, 0.75, 1.0), min_length=1, description="needle positions")
    trials: int = Field(ge=1, description="passkey prompts per (length, depth) cell")
    rivals: tuple[int, ...] = Field(
        default=(1, 2, 4, 8), min_length=1, description="cue-number pairs k of the bindings task"
    )
    binding_lengths: tuple[int, ...] | None = Field(default=None, description="lengths of bindings (default: longest)")
    binding_trials: int = Field(default=20, ge=0, description="bindings prompts per (length, k)")
    control_trials: int = Field(default=20, ge=0, description="absent-needle prompts per length, absent-cue per k")

    @model_validator(mode="after")
    def _check(self) -> RetrievalConfig:
        for name, values in (("lengths", self.lengths), ("binding_lengths", self.binding_lengths or ())):
            if any(length < 1 for length in values) or len(set(values)) != len(values):
                raise ValueError(f"{name} = {list(values)}: allowed are distinct numbers of tokens >= 1")
        if any(not 0 <= depth <= 1 for depth in self.depths) or len(set(self.depths)) != len(self.depths):
            raise ValueError(f"depths = {list(self.depths)}: allowed are distinct numbers from 0 (start) to 1 (end)")
        if any(not 1 <= k <= MOST_RIVALS for k in self.rivals) or len(set(self.rivals)) != len(self.rivals):
            raise ValueError(f"rivals = {list(self.rivals)}: allowed are distinct numbers from 1 to {MOST_RIVALS}")
        return self

    @property
    def lengths_of_bindings(self) -> tuple[int, ...]:
        return self.binding_lengths if self.binding_lengths is not None else (max(self.lengths),)


MOST_RIVALS = 64
"""Largest k of the bindings task (claim C5 asks 1..64); there are 90 compact numbers and 143 cue words."""
