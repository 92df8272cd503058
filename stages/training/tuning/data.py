"""Examples that were read, what was left out of them and why, and their way into the loop."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages.stage import Context, StageError

if TYPE_CHECKING:
    import torch

    from model.decoder import Decoder
    from stages.training.pretrain.objective import Objective
    from stages.training.pretrain.worker import TrainingJob
    from stages.training.tuning.rows import Example, ExampleBatches


@dataclass
class Read:
    """``examples`` to train on; ``skipped``: rows left out, by reason; ``cut``: texts cut at their end to fit."""

    examples: list[Example] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    cut: int = 0

    def skip(self, reason: str) -> None:
        """Count a row that is left out."""
        self.skipped[reason] += 1

    @property
    def facts(self) -> dict[str, object]:
        """In numbers, for data.json."""
        tokens = sum(len(row) for example in self.examples for row in example)
        targets = sum(int(row.targets.sum()) for example in self.examples for row in example)
        counts = {"examples": len(self.examples), "tokens": tokens, "targets": targets, "cut": self.cut}
        return {**counts, "skipped": dict(sorted(self.skipped.items()))}

    def check(self, name: str, value: object, allowed: str) -> None:
        """Raises StageError, naming the field ``name``, where nothing is left to train on."""
        if not self.examples:
            why = ", ".join(f"{reason}: {count}" for reason, count in self.skipped.items()) or "no rows"
            raise StageError(
                f"no row can be trained on ({why})", field=name, value=value, allowed=allowed, fix="mend the rows"
            )

    def report(self, context: Context, what: str) -> None:
        """Say what was read, and warn of what was left out."""
        if self.skipped:
            why = ", ".join(f"{reason}: {count}" for reason, count in sorted(self.skipped.items()))
            context.warn(f"{what}: {sum(self.skipped.values())} rows left out ({why}), {len(self.examples)} kept")
        context.log(f"{what}: {len(self.examples)} examples, {self.cut} texts cut to fit")


@dataclass(frozen=True)
class ExampleData:
    """Examples of one row each from the file at ``url``; the loss is the mean nll of their targets."""

    url: str

    def open(self, job: TrainingJob, decoder: Decoder, device: torch.device) -> tuple[ExampleBatches, Objective]:
        from stages.training.pretrain.objective import LIKELIHOOD
        from stages.training.tuning.rows import ExampleBatches, read_examples

        return ExampleBatches(read_examples(self.url), job.recipe.batch_sequences, job.recipe.seed), LIKELIHOOD
