"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290): the objective, and its reference.

With r = log p(answer) - log p_ref(answer) over an answer's tokens, the loss of a pair is
-(1 - s) log sigmoid(beta (r_chosen - r_rejected)) - s log sigmoid(beta (r_rejected - r_chosen)); s smooths the labels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.decoder import Decoder
from stages.training.pretrain.mixture import Batch
from stages.training.pretrain.objective import Weights
from stages.training.pretrain.worker import TrainingJob
from stages.training.tuning.rows import ExampleBatches, Row, padded, read_examples


@dataclass(frozen=True)
class PreferenceData:
    """Pairs of chosen and rejected rows from the file at ``url``."""

    url: str
    beta: float
    label_smoothing: float = 0.0

    def open(self, job: TrainingJob, decoder: Decoder, device: torch.device) -> tuple[ExampleBatches, Preference]:
        """Every rank has the reference of all pairs that come in the run: of ``decoder`` as it is."""
        examples = read_examples(self.url)
        pairs = job.recipe.batch_sequences // 2
        batches = ExampleBatches(examples, pairs, job.recipe.seed)
        used = sorted({i for step in range(job.recipe.steps) for i in batches.chosen(step)})
        ids = batches.row_ids(used).tolist()
        rows = [row for i in used for row in examples[i]]
        bf16 = job.recipe.dtype == "bf16"
        nats = reference(decoder, rows, job.execution.micro_batch or pairs * 2, device, bf16, job.recipe.chunk_tokens)
        return batches, Preference(dict(zip(ids, nats, strict=True)), pairs, self.beta, self.label_smoothing)


class Preference:
    """The objective: first the loss, mean over the batch's ``pairs``, then the mean nll (nats per token) of the chosen
    answers, which is logged. Rows come as chosen, rejected, chosen, ..."""

    def __init__(self, reference: Mapping[int, float], pairs: int, beta: float, label_smoothing: float = 0.0) -> None:
        """``reference``: nats of each row's answer under the reference, by the row's number."""
        self.reference, self.pairs, self.beta, self.smoothing = reference, pairs, beta, label_smoothing

    def weights(self, batch: Batch, length: int) -> Weights:
        """1 / pairs at targets; the reference's nats of the whole answer at the first of them."""
        first = (batch.mask / self.pairs).astype(np.float32)
        second: NDArray[np.float32] = np.zeros_like(first)
        nats = [self.reference[int(i)] for i in batch.ids]
        second[np.arange(len(nats)), batch.mask.argmax(1)] = nats
        return first, second

    def losses(self, nll: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        targets = (first > 0).to(nll.dtype)
        own = (nll * targets).sum(1)
        reward = second.sum(1) - own
        weight = first.amax(1)[0::2]  # 0 for rows that only fill a micro-batch up
        pairs = preference_loss(reward[0::2], reward[1::2], self.beta, self.smoothing)
        per_token = own[0::2] / targets[0::2].sum(1).clamp(min=1)
        return (weight * pairs).sum(), (weight * per_token).sum()

    def together(self, micro: int | None) -> int | None:
        return None if micro is None else max(2, micro - micro % 2)


def preference_loss(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """The loss of each pair [P] from log p - log p_ref of its answers [P]."""
    margin = beta * (chosen - rejected)
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


@torch.no_grad()
def reference(
    decoder: Decoder, rows: Sequence[Row], size: int, device: torch.device, bf16: bool, chunk_tokens: int | None
) -> list[float]:
    """Nats of each row's targets, ``size`` rows at once, in the precision of the training."""
    decoder.chunk_tokens = chunk_tokens
    precision: contextlib.AbstractContextManager[object] = (
        torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
    )
    nats: list[float] = []
    for start in range(0, len(rows), size):
        batch = padded(rows[start : start + size], np.arange(start, min(start + size, len(rows))))
        tokens, wanted = (torch.from_numpy(a).to(device) for a in (batch.tokens, batch.mask))
        with precision:
            nll, _ = decoder.training_nll(tokens, wanted)
        nats += (nll * wanted[:, 1:]).sum(1).tolist()
    return nats
