"""``pretrain.carry_memory``: what each row of text holds of its document goes on into the next batch.

A row that continues its document (``Batch.before``) is read after the state that the same row was left with, cut from
the graph: forward it is one long sequence, backward the gradients end where the sequence begins, and the state is that
of the weights as they were. Rows that begin a document, and prompts, start from nothing, as does all text while it is
read in pieces shorter than a sequence (a curriculum) and at the step after. States live on the rank that
has the row, and lie in resume points row by row, so that another number of ranks finds them too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.arms import goes_on_alone
from model.carried import from_tensors, to_tensors, together
from model.decoder import Decoder, DecoderState
from stages.training.pretrain.mixture import Batch

RowNumbers = NDArray[np.int64]
PREFIX = "carried"


class Carried:
    """States of rows after the batch before, of one document each."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self._alone = decoder, goes_on_alone(decoder.config.mixer)
        self._states: dict[int, DecoderState] = {}

    def groups(self, batch: Batch) -> RowNumbers:
        """[B]: rows of one number can be read in one pass: all that begin, all that go on, for some arms only those
        that go on after equally many tokens. Prompts have a group of their own."""
        before = batch.before if self._alone else np.minimum(batch.before, 1)
        return np.where(batch.answers, -1, before)

    def nll(
        self, batch: Batch, rows: RowNumbers, tokens: Tensor, wanted: Tensor | None, *, z_loss: float
    ) -> tuple[Tensor, Tensor | None]:
        """``Decoder.training_nll`` of ``tokens`` [b, T], the rows ``rows`` of the batch, one group; of text, what they
        are left with is kept."""
        if not len(rows) or batch.answers[rows[0]]:  # none: a pass that only keeps step with other ranks
            return self._decoder.training_nll(tokens, wanted, z_loss=z_loss)
        state = together([self._states[row] for row in rows.tolist()]) if batch.before[rows[0]] else None
        nll, auxiliary, after = self._decoder.carried_nll(tokens, state, wanted, z_loss=z_loss)
        for place, row in enumerate(rows.tolist()):
            self._states[row] = after.rows(torch.tensor([place]))
        return nll, auxiliary

    def to_tensors(self) -> dict[str, Tensor]:
        """All of it by names that no other rank has: ``carried.ROW.`` and those of ``model.carried``."""
        return {
            f"{PREFIX}.{row}.{name}": tensor
            for row, state in self._states.items()
            for name, tensor in to_tensors(state).items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of ``to_tensors``."""
        rows: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            _, row, rest = name.split(".", 2)
            rows.setdefault(int(row), {})[rest] = tensor
        self._states = {row: from_tensors(self._decoder, held) for row, held in rows.items()}


def of_rows(rows: range) -> Callable[[str], bool]:
    """Is the tensor of this name one of ``rows``?"""

    def holds(name: str) -> bool:
        prefix, _, rest = name.partition(".")
        return prefix == PREFIX and int(rest.partition(".")[0]) in rows

    return holds
