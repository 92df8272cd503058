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
    depths: tuple[float, ...] | None = Field(
        default=None,
        min_length=1,
        description="passkey positions, a grid from 0 (start) to 1 (end); default: spread evenly over all of them",
    )
    trials: int = Field(ge=1, description="passkey prompts per length, with depths: per (length, depth) cell")
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
        depths = self.depths or ()
        if any(not 0 <= depth <= 1 for depth in depths) or len(set(depths)) != len(depths):
            raise ValueError(f"depths = {list(depths)}: allowed are distinct numbers from 0 (start) to 1 (end)")
        if any(not 1 <= k <= MOST_RIVALS for k in self.rivals) or len(set(self.rivals)) != len(self.rivals):
            raise ValueError(f"rivals = {list(self.rivals)}: allowed are distinct numbers from 1 to {MOST_RIVALS}")
        return self

    def depth_of(self, trial: int) -> float:
        """Where the needle of a length's passkey prompt ``trial`` lies: on the grid in turn, or spread evenly."""
        return spread(trial) if self.depths is None else self.depths[trial % len(self.depths)]

    @property
    def trials_per_length(self) -> int:
        return self.trials * len(self.depths or (0.0,))

    @property
    def lengths_of_bindings(self) -> tuple[int, ...]:
        return self.binding_lengths if self.binding_lengths is not None else (max(self.lengths),)


MOST_RIVALS = 64
"""Largest k of the bindings task (claim C5 asks 1..64); there are 90 compact numbers and 143 cue words."""


def spread(trial: int) -> float:
    """The golden ratio's multiples: they fill [0, 1) evenly, however many there are (a low-discrepancy sequence)."""
    return round(trial * 0.6180339887498949 % 1.0, 6)
