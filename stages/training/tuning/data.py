"""Examples that were read, what was left out of them and why, and their way into the loop."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.data.jsonlines import filled, parsed
from stages.data.pinned import read_unchanged
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


def rows_of(path: str, pin: str | None, field: str) -> Iterator[dict[str, Any]]:
    """Objects of a pinned JSON Lines file, or rows of a Parquet one (``.parquet``). Raises StageError at ``field`` for
    other bytes than the pinned ones, for a file of neither kind, and for a line that is no object."""
    content = read_unchanged(Path(path), pin, field=f"{field}.pin")
    if path.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            yield from pq.read_table(io.BytesIO(content)).to_pylist()
        except pa.ArrowInvalid as error:
            raise StageError(f"not a Parquet file: {error}", field=f"{field}.path", value=path) from error
        return
    for number, line in filled(content.splitlines()):
        try:
            row = parsed(line)
        except ValueError as error:
            raise StageError(
                f"line {number} is no JSON object",
                field=f"{field}.path",
                value=path,
                allowed="JSON Lines, an object a line, or a file .parquet",
                fix="mend the line",
            ) from error
        yield row


@dataclass(frozen=True)
class ExampleData:
    """Examples of one row each from the file at ``url``; the loss is the mean nll of their targets."""

    url: str

    def open(self, job: TrainingJob, decoder: Decoder, device: torch.device) -> tuple[ExampleBatches, Objective]:
        from stages.training.pretrain.objective import LIKELIHOOD
        from stages.training.tuning.rows import ExampleBatches, read_examples

        return ExampleBatches(read_examples(self.url), job.recipe.batch_sequences, job.recipe.seed), LIKELIHOOD
