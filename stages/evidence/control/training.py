"""The training loop of base and arms, with its looks at a held stream, and how a model is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from model.decoder import Decoder, Knockout
from stages.evidence.control.config import BaseRecipe, GraftRecipe, RecallTask
from stages.evidence.control.sequences import HELD, Recall, draw, whole
from stages.stage import Context, StageError
from stages.training.pretrain import optim

AT_ONCE = 4096
"""Tokens read in one pass when a model is asked: more are slower on a CPU, they no longer fit in its cache."""


@dataclass(frozen=True)
class Score:
    """Right answers among ``trials`` sequences, one query scored in each; loss: mean nll of the answers in nats."""

    hits: int
    trials: int
    loss: float

    @property
    def accuracy(self) -> float:
        return self.hits / self.trials


def answer_logits(decoder: Decoder, tokens: torch.Tensor, segment_length: int) -> torch.Tensor:
    """Logits [B, N, V] at the last segment's positions of tokens [B, T]."""
    hidden, _ = decoder.hidden(tokens)
    return decoder.project(hidden[:, -segment_length:])


@torch.no_grad()
def ask(decoder: Decoder, recall: Recall, task: RecallTask, segments: int, knockout: Knockout | str = "none") -> Score:
    """The last query of each sequence of ``segments`` segments, filler between."""
    tokens, answers = torch.from_numpy(whole(task, recall, segments)), torch.from_numpy(recall.answers[:, -1])
    hits, loss, size = 0, 0.0, max(2, AT_ONCE // tokens.shape[1])
    for rows, expected in zip(_pieces(tokens, size), _pieces(answers, size), strict=True):
        hidden, _ = decoder.hidden(rows, knockout=knockout)
        logits = decoder.project(hidden[:, -1])
        hits += int((logits.argmax(-1) == expected).sum())
        loss += F.cross_entropy(logits, expected, reduction="sum").item()
    return Score(hits, len(tokens), loss / len(tokens))


def _pieces(rows: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Pieces of about ``size`` rows, none of a single row (``swap`` needs a neighbour)."""
    return rows.tensor_split(max(1, -(-len(rows) // size)))


def train(
    decoder: Decoder,
    task: RecallTask,
    recipe: BaseRecipe | GraftRecipe,
    *,
    segments: int,
    pairs: tuple[int, ...],
    asked: tuple[int, ...],
    stream: tuple[int, int],
    field: str,
    context: Context,
) -> tuple[int, list[tuple[int, int, Score]]]:
    """Train on sequences of ``segments`` segments with k of ``pairs``. The number of steps taken, and what was seen on
    the way, after the last one aside: step, k of ``asked``, held score.

    stream: (seed, namespace) of the training sequences. Loss: mean nll in nats of the answers at all queries of the
    last segment.

    Raises StageError, naming ``field``, if the loss is no longer finite.
    """
    gate_lr = recipe.gate_lr if isinstance(recipe, GraftRecipe) else recipe.lr
    optimizer = optim.build(decoder, lr=recipe.lr, gate_lr=gate_lr, weight_decay=recipe.weight_decay)
    held = {k: draw(task, recipe.held_trials, (k,), stream[0], HELD, k) for k in asked}
    numbers: dict[str, Any] = {}
    seen: list[tuple[int, int, Score]] = []
    good = 0
    for step in range(1, recipe.steps + 1):
        drawn = draw(task, recipe.batch, pairs, *stream, step)
        factor = optim.schedule(
            step - 1, steps=recipe.steps, warmup_steps=recipe.warmup_steps, kind=recipe.schedule, least=0.1
        )
        optim.set_lr(optimizer, factor)
        logits = answer_logits(decoder, torch.from_numpy(whole(task, drawn, segments)), task.segment_length)
        loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(drawn.answers).flatten())
        optim.descend(optimizer, loss, decoder)
        if not math.isfinite(loss.item()):
            raise StageError(
                f"the control diverged at step {step}: loss {loss.item()}",
                field=f"{field}.lr",
                value=recipe.lr,
                fix="lower it",
            )
        context.progress(step, recipe.steps, "steps", loss=loss.item(), **numbers)
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            scores = {k: ask(decoder, held[k], task, segments) for k in asked}
            seen += [(step, k, score) for k, score in scores.items()]
            numbers = {f"k={k}": score.accuracy for k, score in scores.items()}
            context.metrics(step, loss=loss.item(), **{f"accuracy_k{k}": s.accuracy for k, s in scores.items()})
            enough = recipe.enough is not None and min(score.accuracy for score in scores.values()) >= recipe.enough
            good = good + 1 if enough else 0
            if good == recipe.in_a_row:
                break
    return step, [one for one in seen if one[0] < step]
