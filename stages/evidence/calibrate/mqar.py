"""Multi-query associative recall (Arora et al., 2023, arXiv:2312.04927), one small model per cell.

Tokens: 0 is filler, 1 .. V/2 - 1 are keys, V/2 .. V - 1 values. A sequence begins with its pairs, key before value;
then every key stands once more, at an even distance drawn without repeats from a power law, and the target there is
its value. Values are never shown again, so queries tell nothing of each other.

Shapes: B sequences, T = ``length`` x pairs tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.arms import variants
from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.decoder import Decoder
from stages.evidence.calibrate.config import MqarConfig
from stages.stage import StageError
from stages.training.pretrain import optim

TRAINING, EVALUATION = 1, 2  # namespaces of random streams
NOT_ASKED = -100
RECENT = 20  # batches whose mean accuracy decides that training may end


def sequences(config: MqarConfig, rng: np.random.Generator, count: int, pairs: int) -> tuple[Tensor, Tensor]:
    """tokens and targets [count, T] int64; targets are NOT_ASKED where nothing is asked."""
    half, context = config.vocabulary // 2, 2 * pairs
    keys = 1 + rng.random((count, half - 1)).argsort(1)[:, :pairs]
    values = half + rng.random((count, config.vocabulary - half)).argsort(1)[:, :pairs]
    tokens = np.zeros((count, config.length * pairs), np.int64)
    targets = np.full_like(tokens, NOT_ASKED)
    tokens[:, 0:context:2], tokens[:, 1:context:2] = keys, values
    places = (tokens.shape[1] - context) // 2
    # Gumbel noise on the logarithms draws without repeats in proportion to the weights
    weights = (config.gap_power - 1) * np.log(np.arange(1, places + 1))
    gaps = (weights + rng.gumbel(size=(count, places))).argsort(1)[:, ::-1][:, :pairs]
    np.put_along_axis(tokens, context + 2 * gaps, keys, 1)
    np.put_along_axis(targets, context + 2 * gaps, values, 1)
    return torch.from_numpy(tokens), torch.from_numpy(targets)


@dataclass(frozen=True)
class MqarRun:
    """accuracy of ``trials`` queries in fresh sequences after ``steps`` steps."""

    accuracy: float
    trials: int
    steps: int


def train(
    config: MqarConfig,
    arm: str,
    dim: int,
    pairs: int,
    seed: int,
    start: Decoder | None,
    progress: Callable[[int, float], None],
) -> tuple[MqarRun, Decoder]:
    """Train and score one cell, from the weights of ``start`` where there is one (what the arm's own mixer adds starts
    as built). ``progress`` is called with each step and its loss. Raises StageError if it diverges."""
    trunk = TrunkConfig(dim=dim, layers=config.layers, heads=config.heads, ffn_dim=config.ffn_dim)
    mixer = MixerConfig(**variants()[arm], segment_length=2 * pairs)
    decoder = Decoder(ModelConfig(trunk=trunk, mixer=mixer, vocab_size=config.vocabulary), seed=seed)
    if start is not None:
        decoder.load_state_dict(start.state_dict(), strict=False)
    steps = config.steps_of(arm)
    optimizer = optim.build(decoder, lr=config.lr, gate_lr=config.gate_lr, weight_decay=config.weight_decay)
    rng = np.random.default_rng([seed, pairs, TRAINING, start is not None])  # the same batches at every width
    recent: list[float] = []
    for step in range(1, steps + 1):
        tokens, targets = sequences(config, rng, config.batch, pairs)
        optim.set_lr(
            optimizer,
            optim.schedule(step - 1, steps=steps, warmup_steps=config.warmup_steps, kind="cosine", least=0.1),
        )
        logits, wanted = answers(decoder, tokens, targets)
        loss = F.cross_entropy(logits, wanted)
        optim.descend(optimizer, loss, decoder)
        if not math.isfinite(loss.item()):
            raise StageError(
                f"arm {arm} diverged at step {step}", field="calibrate.mqar.lr", value=config.lr, fix="lower it"
            )
        progress(step, loss.item())
        recent = [*recent[1 - RECENT :], (logits.argmax(-1) == wanted).float().mean().item()]
        if len(recent) == RECENT and sum(recent) / RECENT >= config.enough:
            break
    return MqarRun(*score(config, decoder, pairs, np.random.default_rng([seed, pairs, EVALUATION])), step), decoder


@torch.no_grad()
def score(config: MqarConfig, decoder: Decoder, pairs: int, rng: np.random.Generator) -> tuple[float, int]:
    """Accuracy, and the number of queries it is of."""
    right = trials = 0
    while trials < config.trials:
        tokens, targets = sequences(config, rng, min(128, -(-(config.trials - trials) // pairs)), pairs)
        logits, wanted = answers(decoder, tokens, targets)
        right, trials = right + int((logits.argmax(-1) == wanted).sum()), trials + len(wanted)
    return right / trials, trials


def answers(decoder: Decoder, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [queries, V] at the queries of tokens [B, T], and their targets [queries]."""
    asked = targets != NOT_ASKED
    hidden, _ = decoder.hidden(tokens)
    return decoder.project(hidden[asked]), targets[asked]
