"""What the arms have in common in training: tokens, floating-point operations or time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from model.config import MixerConfig, TrunkConfig
from stages.stage import Config, StageError
from stages.training.pretrain.config import PretrainConfig
from stages.training.pretrain.flops import flops_per_step


class MatchSettings(Config):
    """The study file's ``match:`` section; ``match: flops`` is short for ``match: {by: flops}``.

    tokens: every arm takes ``pretrain.steps`` steps. flops: as many as the FLOPs of the ``reference`` arm's allow, by
    the formulas of ``model/cost.py`` at the lengths that are read. wall: as many as its time allows at
    ``tokens_per_s``, which each arm was measured at before (the cost table of a report) or is declared to have. Batches
    stay as they are, and so does the data order: the arms read the beginnings of one sequence of batches.
    """

    by: Literal["tokens", "flops", "wall"] = "tokens"
    reference: str | None = Field(
        default=None, description="the arm that takes pretrain.steps (default: the first with a compressive memory)"
    )
    tokens_per_s: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="training speed of every arm, for by: wall"
    )

    @model_validator(mode="after")
    def _what_is_used(self) -> MatchSettings:
        if self.by == "tokens" and self.reference is not None:
            raise ValueError(
                f"reference = {self.reference!r}: has no effect with by = 'tokens', all arms take the same steps "
                "(fix: remove it)"
            )
        if self.by != "wall" and self.tokens_per_s:
            raise ValueError(
                f"tokens_per_s = {self.tokens_per_s}: has no effect with by = {self.by!r} (fix: remove it, or set by: "
                "wall)"
            )
        return self

    def faults(self, arms: Mapping[str, MixerConfig]) -> Iterator[str]:
        """What does not fit the study's arms, a line each."""
        known = ", ".join(arms)
        if self.reference is not None and self.reference not in arms:
            yield f"match.reference = {self.reference!r}: no such arm (allowed: {known})"
        for name in self.tokens_per_s:
            if name not in arms:
                yield f"match.tokens_per_s.{name}: no such arm (allowed: {known})"
        for name in arms if self.by == "wall" else ():
            if name not in self.tokens_per_s:
                yield (
                    f"match.tokens_per_s.{name} is missing: by = 'wall' needs a number above 0 for every arm. Fix: "
                    "take it from the cost table of an earlier run's report"
                )

    def reference_of(self, arms: Mapping[str, MixerConfig]) -> str:
        """The arm whose steps are ``pretrain.steps``."""
        memories = [name for name, mixer in arms.items() if mixer.kind == "infini"]
        return self.reference or (memories or list(arms))[0]

    def matched(
        self,
        trainings: Mapping[str, tuple[str, PretrainConfig]],
        reference: str,
        trunk: TrunkConfig,
        vocabulary: int | None,
    ) -> dict[str, PretrainConfig]:
        """``trainings``, name -> (arm, config as if it took the reference's steps), with the steps that each may take.

        Raises StageError for one left with none, or fewer than its warm-up.
        """
        if self.by == "tokens":
            return {name: config for name, (_, config) in trainings.items()}
        if self.by == "flops" and vocabulary is None:
            raise StageError(
                "the size of the vocabulary, which the FLOPs of a token rest on, cannot be told now",
                field="match.by",
                value=self.by,
                allowed="tokens and wall without it",
                fix="reach the tokenizer's repository, or give a tokenizer of kind file",
            )
        made = {}
        _, own = trainings[reference]
        budget = own.steps * self._per_step(reference, own, trunk, vocabulary)
        for name, (arm, config) in trainings.items():
            steps = round(budget / self._per_step(arm, config, trunk, vocabulary))
            if steps < max(1, config.warmup_steps):
                raise StageError(
                    f"{name} may take {steps} steps for the {self.by} of {own.steps} of {reference}, "
                    f"its warm-up has {config.warmup_steps}",
                    field="match.by",
                    value=self.by,
                    fix="more pretrain.steps, a shorter warm-up, or leave the arm out",
                )
            made[name] = config.model_copy(update={"steps": steps})
        return made

    def _per_step(self, arm: str, config: PretrainConfig, trunk: TrunkConfig, vocabulary: int | None) -> float:
        """FLOPs or seconds of a step."""
        if self.by == "flops":
            assert vocabulary is not None
            return flops_per_step(config, trunk, vocabulary)
        return config.batch_sequences * config.sequence_length / self.tokens_per_s[arm]
