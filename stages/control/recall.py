"""Training and scoring of the recall models.

Tokens: 0 is the filler, 1 .. keys are keys, the rest values. Shapes: B sequences, T = segments x segment_length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from model.config import ModelConfig, TrunkConfig
from model.decoder import Decoder
from stages.control.stage import ControlConfig
from stages.pretrain import optim
from stages.stage import Context, StageError, Summary

TRAINING, EVALUATION = 0, 1  # namespaces of random streams


@dataclass(frozen=True)
class Recall:
    """tokens int64 [B, T]; targets int64 [B, segment_length]: the answers at the last segment's positions."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]


def sequences(config: ControlConfig, count: int, pairs: tuple[int, ...], *stream: int) -> Recall:
    """``count`` sequences, with k cycling through ``pairs``; a function of (config, count, pairs, stream) alone.

    Pairs stand at random even places of the first segment; each query of the last is one of the k keys at random.
    """
    rng = np.random.default_rng([config.seed, *stream])
    n, most = config.segment_length, max(pairs)
    k = np.resize(np.array(pairs), count)
    keys = 1 + rng.random((count, config.keys)).argsort(1)[:, :most]
    values = 1 + config.keys + rng.random((count, config.values)).argsort(1)[:, :most]
    place = 2 * rng.random((count, n // 2)).argsort(1)[:, :most]
    tokens = np.zeros((count, config.segments * n), np.int64)
    for j in range(most):
        rows = np.flatnonzero(k > j)
        tokens[rows, place[rows, j]] = keys[rows, j]
        tokens[rows, place[rows, j] + 1] = values[rows, j]
    asked = (rng.random((count, n)) * k[:, None]).astype(np.int64)
    tokens[:, -n:] = np.take_along_axis(keys, asked, 1)
    return Recall(tokens, np.take_along_axis(values, asked, 1))


def build(config: ControlConfig) -> Decoder:
    """The recall model of one arm: all arms of a seed start from the same weights."""
    trunk = TrunkConfig(dim=config.dim, layers=config.layers, heads=config.heads)
    return Decoder(ModelConfig(trunk=trunk, mixer=config.mixer, vocab_size=config.vocabulary), seed=config.seed)


def answer_logits(decoder: Decoder, tokens: torch.Tensor, segment_length: int) -> torch.Tensor:
    """Logits [B, segment_length, V] at the last segment's positions."""
    hidden, _ = decoder.hidden(tokens)
    return decoder.project(hidden[:, -segment_length:])


def score(config: ControlConfig, decoder: Decoder, k: int) -> float:
    """Share of ``eval_trials`` fresh sequences whose last query is answered right."""
    drawn = sequences(config, config.eval_trials, (k,), EVALUATION, k)
    right = 0
    with torch.no_grad():
        for start in range(0, config.eval_trials, 128):
            tokens = torch.from_numpy(drawn.tokens[start : start + 128])
            logits = answer_logits(decoder, tokens, config.segment_length)[:, -1]
            right += int((logits.argmax(-1).numpy() == drawn.targets[start : start + 128, -1]).sum())
    return right / config.eval_trials


def run(config: ControlConfig, output: Path, context: Context) -> Summary:
    """Train, score at even distances, write control.parquet."""
    decoder = build(config)
    optimizer = optim.build(decoder, lr=config.lr, gate_lr=config.gate_lr, weight_decay=config.weight_decay)
    stops = {round(config.steps * (i + 1) / config.evaluations) for i in range(config.evaluations)}
    rows: list[dict[str, Any]] = []
    recent: list[float] = []
    for step in range(1, config.steps + 1):
        drawn = sequences(config, config.batch, config.pairs, TRAINING, step)
        optim.set_lr(
            optimizer,
            optim.schedule(step - 1, steps=config.steps, warmup_steps=config.warmup_steps, kind="cosine", least=0.1),
        )
        logits = answer_logits(decoder, torch.from_numpy(drawn.tokens), config.segment_length)
        loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(drawn.targets).flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        recent = [*recent[-19:], loss.item()]
        if not math.isfinite(recent[-1]):
            raise StageError(
                f"the control diverged at step {step}: loss {recent[-1]}",
                field="control.lr",
                value=config.lr,
                fix="lower it",
            )
        context.progress(step, config.steps, "steps", loss=recent[-1])
        if step in stops:
            for k in config.pairs:
                rows.append(
                    {
                        "k": k,
                        "accuracy": score(config, decoder, k),
                        "trials": config.eval_trials,
                        "chance": 1 / k,
                        "guess": 1 / config.values,
                        "step": step,
                        "loss": sum(recent) / len(recent),
                    }
                )
                context.metrics(step, **{f"accuracy_k{k}": rows[-1]["accuracy"]})
            context.metrics(step, loss=rows[-1]["loss"])
    pq.write_table(pa.Table.from_pylist(rows), output / "control.parquet")
    last = {row["k"]: row["accuracy"] for row in rows if row["step"] == config.steps}
    return Summary(
        "recall " + ", ".join(f"k={k} {accuracy:.0%}" for k, accuracy in last.items()),
        {"loss": rows[-1]["loss"]} | {f"accuracy_k{k}": accuracy for k, accuracy in last.items()},
        {"recall": "control.parquet"},
    )
