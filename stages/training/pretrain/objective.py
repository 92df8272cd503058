"""What the loop minimises: a sum over rows that neither ranks nor micro-batches change."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stages.training.pretrain.mixture import Batch, loss_weights

Weights = tuple[NDArray[np.float32], NDArray[np.float32]]


class Objective(Protocol):
    """Two losses of a batch, each a sum over its rows; of which the recipe's share of prompts makes one (the first
    alone, where the share is 0)."""

    def weights(self, batch: Batch, length: int) -> Weights:
        """Two arrays [B, T] that go with the rows into micro-batches. Tokens where their sum is above 0 are targets.
        Rows of zeros must add nothing. ``length``: tokens of the pieces that text is read in."""

    def losses(self, nll: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The part of a micro-batch in both losses; ``nll`` [b, T - 1] float32 and the arrays of its rows without their
        first token."""

    def together(self, micro: int | None) -> int | None:
        """Rows of a micro-batch, where ``micro`` are asked for: those that must stay together are not parted."""


class Likelihood:
    """Mean nll of the batch's text, and of its answers."""

    def weights(self, batch: Batch, length: int) -> Weights:
        return loss_weights(batch, length)

    def losses(self, nll: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return (nll * first).sum(), (nll * second).sum()

    def together(self, micro: int | None) -> int | None:
        return micro


LIKELIHOOD = Likelihood()
