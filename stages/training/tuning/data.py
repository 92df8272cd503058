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


LEFT_OUT = "holds text of what is asked"
"""Why the audit of the rows leaves one out."""


@dataclass
class Read:
    """``examples`` to train on; ``skipped``: rows left out, by reason; ``first``: the first of them; ``cut``: texts cut
    at their end to fit; ``row``: the one being read, from 1."""

    examples: list[Example] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)
    cut: int = 0
    row: int = 0

    def skip(self, reason: str) -> None:
        """Count a row that is left out."""
        self.skipped[reason] += 1
        self.first.setdefault(reason, self.row)

    def why(self) -> str:
        """What was left out, in words."""
        counts = sorted(self.skipped.items())
        return ", ".join(f"{reason}: {count} (first in row {self.first[reason]})" for reason, count in counts)

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
            raise StageError(
                f"no row can be trained on ({self.why() or 'no rows'})",
                field=name,
                value=value,
                allowed=allowed,
                fix="mend the rows",
            )

    def report(self, context: Context, what: str) -> None:
        """Say what was read, and warn of what was left out."""
        if self.skipped:
            context.warn(
                f"{what}: {sum(self.skipped.values())} rows left out ({self.why()}), {len(self.examples)} kept"
            )
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
        except (pa.ArrowException, OSError, ValueError) as error:  # pages that are damaged, text that is no UTF-8
            reason = f"not a Parquet file, or a damaged one: {' '.join(str(error).split())}"
            raise StageError(reason, field=f"{field}.path", value=path) from error
        return
    for number, line in filled(content.splitlines()):
        try:
            row = parsed(line)
        except ValueError as error:
            raise StageError(
                f"line {number} is no JSON object: {error}",
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
