"""The capacity experiment of Schlag et al. (2021, arXiv:2102.11174, sec. 6.1) on this project's memory module.

A sequence holds each of n keys once, in random order, each with one of n values, and one of them is asked. Values are
one-hot and fixed. The key written is a learned linear map of the value's one-hot vector and the key's embedding, the
key asked with a map of the embedding alone, both of d components; the feature map, the write (linear rule, all n at
once) and the normalised read are the memory module's. Loss: half the squared error of what is read, summed over n.

Shapes: B batch, n associations, d key size, F feature size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import memory
from model.config import FeatureMap
from stages.evidence.calibrate.config import SchlagConfig

EPS = 1e-6
TRAINING, EVALUATION = 1, 2  # namespaces of random streams


class KeyModel(nn.Module):
    """Embeddings (of 1.1 x 2 n components, standard normal) and the two maps to keys of d components.

    The maps start uniform within d^-1/2 and their biases within 1 / sqrt(inputs), as in the published code.
    """

    def __init__(self, config: SchlagConfig, feature_map: FeatureMap, count: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        size, d = int(2 * count * 1.1), config.d_key
        self.feature_map = feature_map
        self.count = count

        def uniform(bound: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(bound * (2 * torch.rand(*shape, generator=generator) - 1))

        self.embedding = nn.Parameter(torch.randn(count, size, generator=generator))
        self.write_key = uniform(d**-0.5, size, d)
        self.write_value = uniform(d**-0.5, count, d)  # the map's columns for the one-hot value: a row per value
        self.write_bias = uniform((size + count) ** -0.5, d)
        self.ask_key = uniform(d**-0.5, size, d)
        self.ask_bias = uniform(size**-0.5, d)

    def features(self, keys: Tensor, values: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """sigma of the keys written [B, n, F] and of those asked [B, m, F]."""
        # one product per key of the vocabulary, then a look-up, is the map of every position
        written = F.embedding(keys, self.embedding @ self.write_key + self.write_bias)
        written = written + F.embedding(values, self.write_value)
        queries = F.embedding(asked, self.embedding @ self.ask_key + self.ask_bias)
        return memory.feature_map(self.feature_map, written), memory.feature_map(self.feature_map, queries)

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        """What the memory returns [B, m, n] for the keys ``asked`` [B, m] after keys, values [B, n] (below n)."""
        phi, phi_q = (x.unsqueeze(1) for x in self.features(keys, values, asked))
        wanted = F.one_hot(values, self.count).to(phi.dtype).unsqueeze(1)
        empty = memory.empty(len(keys), 1, phi.shape[-1], self.count)
        return memory.read(memory.write(empty, phi, wanted, "linear", EPS), phi_q, EPS).squeeze(1)

    def answer(self, keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        """The same for training, where one key is asked: (phi_q Phi^T) V instead of phi_q (Phi^T V), n times less work.
        The values are a permutation of one-hot vectors, so V only says which component a weight belongs to."""
        phi, phi_q = self.features(keys, values, asked)
        weights = phi_q @ phi.transpose(1, 2)
        weights = weights / (weights.sum(-1, keepdim=True) + EPS)
        return weights.gather(2, values.argsort(1).unsqueeze(1).expand(-1, asked.shape[1], -1))


@dataclass(frozen=True)
class SchlagRun:
    """Of one run: best evaluation ``loss`` and the ``accuracy`` (argmax) at it, steps taken, solved or not."""

    loss: float
    accuracy: float
    steps: int
    solved: bool
    feature_dim: int


def train(
    config: SchlagConfig, feature_map: FeatureMap, count: int, seed: int, progress: Callable[[int, float], None]
) -> SchlagRun:
    """One run: until solved, given up, or ``steps``. ``progress`` is called with each step and its loss."""
    model = KeyModel(config, feature_map, count, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    rng = np.random.default_rng([seed, count, TRAINING])
    best = SchlagRun(float("inf"), 0.0, 0, False, memory.feature_map(feature_map, model.write_bias).shape[-1])
    strikes = 0
    for step in range(1, config.steps + 1):
        keys, values = permutations(rng, config.batch, count), permutations(rng, config.batch, count)
        place = torch.from_numpy(rng.integers(count, size=(config.batch, 1)))
        read = model.answer(keys, values, keys.gather(1, place))
        loss = half_squares(read, values.gather(1, place)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        progress(step, loss.item())
        if step % config.evaluate_every:
            continue
        found, accuracy = evaluate(config, model, count, np.random.default_rng([seed, count, EVALUATION, step]))
        strikes = 0 if found < best.loss else strikes + 1
        if found < best.loss:
            best = SchlagRun(found, accuracy, step, found <= config.solved_below, best.feature_dim)
        if best.solved or strikes > config.patience:
            break
    return SchlagRun(best.loss, best.accuracy, step, best.solved, best.feature_dim)


@torch.no_grad()
def evaluate(config: SchlagConfig, model: KeyModel, count: int, rng: np.random.Generator) -> tuple[float, float]:
    """Mean loss and argmax accuracy of all n keys of fresh sequences."""
    keys = permutations(rng, config.evaluation_sequences, count)
    values = permutations(rng, config.evaluation_sequences, count)
    read = model(keys, values, keys)
    return half_squares(read, values).mean().item(), (read.argmax(-1) == values).double().mean().item()


def permutations(rng: np.random.Generator, rows: int, count: int) -> Tensor:
    """[rows, count] int64, each row 0 .. count - 1 in random order."""
    return torch.from_numpy(rng.random((rows, count)).argsort(1))


def half_squares(read: Tensor, values: Tensor) -> Tensor:
    """Half the squared distance [B, m] of read [B, m, n] and the one-hot vectors of values [B, m]."""
    return 0.5 * (read - F.one_hot(values, read.shape[-1])).square().sum(-1)
