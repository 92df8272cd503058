"""The keys of the capacity study: random, orthogonal, or trained through the memory module.

Shapes: S seeds, R repeats, n associations, d key size, F feature size, E value size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from model import memory
from model.config import FeatureMap, feature_dim
from model.scan import scan
from stages.evidence.capacity.config import CapacityConfig, CapacityRule, Keys

# own streams for keys and values of a seed, the same for every feature map and rule
KEYS, VALUES, NEW_VALUES, START, TRAINING = 1, 2, 3, 4, 5
# ELU + 1 of -30 is 9e-14: what an unwritten key reads then stays far below eps, as the delta rule needs it
ORTHOGONAL_SCALE = 30.0
# of the similarities that recall is trained on; 30 starts too steep, 1 leaves no gradient between near values
TEMPERATURE = 10.0


def normal(config: CapacityConfig, stream: int, count: int, repeats: int, size: int) -> Tensor:
    """Standard normal numbers [S, repeats, count, size]; a smaller ``count`` gives a prefix."""
    per_seed = []
    for seed in config.seeds:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + stream)
        # drawn association by association, so that a longer sequence begins with the shorter one
        per_seed.append(torch.randn(count, repeats, size, generator=generator).transpose(0, 1))
    return torch.stack(per_seed)


def values(config: CapacityConfig, count: int, stream: int = VALUES) -> Tensor:
    """Unit vectors [S, R, count, E]."""
    return F.normalize(normal(config, stream, count, config.repeats, config.d_value), dim=-1)


def random(config: CapacityConfig, count: int) -> Tensor:
    """Gaussian keys [S, R, count, d]."""
    return config.key_scale * normal(config, KEYS, count, config.repeats, config.d_key)


def most_orthogonal(feature_map: FeatureMap, d_key: int) -> int:
    """How many orthogonal keys there are: one per feature (softmax and the rest have d, DPFP-nu 2 d nu)."""
    return feature_dim(feature_map, d_key)


def orthogonal(feature_map: FeatureMap, d_key: int, count: int) -> Tensor:
    """``count`` <= F keys [count, d] of one feature each.

    elu1, relu, softmax: one component large, the others as far below. DPFP-nu's feature (i, j) is r_i r_(i - j) of
    r = [relu(x), relu(-x)]: two components of r, j apart on its ring of 2 d, light up that feature alone.
    """
    most = most_orthogonal(feature_map, d_key)
    if count > most:
        raise ValueError(f"count = {count}: {feature_map} of {d_key} components has at most {most} orthogonal keys")
    index = torch.arange(count)
    if not feature_map.startswith("dpfp"):
        return ORTHOGONAL_SCALE * (2 * F.one_hot(index, d_key).float() - 1)
    keys, ring = torch.zeros(count, d_key), 2 * d_key
    first, apart = index % ring, 1 + index // ring
    for place in (first, (first - apart) % ring):
        keys[index, place % d_key] = torch.where(place < d_key, ORTHOGONAL_SCALE, -ORTHOGONAL_SCALE)
    return keys


def learn(
    config: CapacityConfig,
    feature_map: FeatureMap,
    rule: CapacityRule,
    count: int,
    objective: Keys,
    progress: Callable[[int], None],
) -> Tensor:
    """Keys [S', 1, count, d] of the first S' = ``learned.seeds`` seeds, trained for ``objective``.

    Every step writes ``count`` fresh random values under the keys with the module's segment-parallel form (training's
    own) and reads them back with the same keys. ``learned``: cross-entropy of the cosine similarities to all values
    written; ``learned-exact``: mean squared error. ``progress`` is called with the number of steps done.
    """
    few = config.model_copy(update={"seeds": config.seeds[: config.learned.seeds]})
    keys = (config.key_scale * normal(few, START, count, 1, config.d_key)).requires_grad_()
    optimizer = torch.optim.Adam([keys], lr=config.learned.lr)
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + TRAINING) for seed in few.seeds]
    target = torch.arange(count).repeat(len(few.seeds))
    for step in range(config.learned.steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / config.learned.steps))
        optimizer.param_groups[0]["lr"] = config.learned.lr * (0.1 + 0.9 * cosine)
        drawn = [torch.randn(1, count, config.d_value, generator=generator) for generator in generators]
        wanted = F.normalize(torch.stack(drawn), dim=-1)
        phi = memory.feature_map(feature_map, keys)
        read = memory.read(_written(phi, wanted, rule, config), phi, config.eps)
        if objective == "learned":
            similar = F.normalize(read, dim=-1) @ wanted.transpose(-1, -2)
            loss = F.cross_entropy(TEMPERATURE * similar.flatten(0, 2), target)
        else:
            loss = (read - wanted).square().sum(-1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        progress(step + 1)
    return keys.detach()


def _written(phi: Tensor, wanted: Tensor, rule: CapacityRule, config: CapacityConfig) -> memory.MemoryState:
    """The memory after all of phi [S, 1, n, F] and wanted [S, 1, n, E]."""
    count = phi.shape[2]
    if rule == "linear":
        empty = memory.empty(len(phi), 1, phi.shape[-1], wanted.shape[-1])
        return memory.write(empty, phi, wanted, "linear", config.eps)
    size = 1 if rule == "delta-token" else min(config.segment_length, count)
    keys, values = (x.unflatten(2, (count // size, size)).transpose(1, 2) for x in (phi, wanted))
    states = scan(None, keys, values, "delta", config.eps)
    return memory.MemoryState(states.M[:, -1], states.z[:, -1])
