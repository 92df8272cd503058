"""Capacity with the keys a trained model has for held-out text (claim C6).

At each layer and memory head: n of the text's distinct tokens are drawn, their keys (without positions, as the memory
sees them) are written with random unit values under the arm's own rule and segment length, and read back with the
same keys. The same with Gaussian keys of the same mean square (``keys`` = ``random``) stands beside it.

Shapes: D draws, n associations, d key size, F feature size, E value size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from model import memory
from model.decoder import Decoder, DecoderState
from model.mixers import LayerState, Mixer
from model.trace import through_layers
from stages.evidence.ablate.config import TrainedKeysConfig
from stages.evidence.capacity.measure import numbers, read_back
from stages.evidence.evaluate.forward import PASS_TOKENS
from stages.evidence.evaluate.perplexity import ScoredDocument

CAPACITY = pa.schema(
    [
        ("keys", pa.string()),
        ("feature_map", pa.string()),
        ("feature_dim", pa.int64()),
        ("d_key", pa.int64()),
        ("rule", pa.string()),
        ("associations", pa.int64()),
        ("layer", pa.int64()),
        ("head", pa.int64()),
        ("accuracy", pa.float64()),
        ("error", pa.float64()),
        ("exact", pa.float64()),
    ]
)


def collect(
    decoder: Decoder, documents: Sequence[ScoredDocument], tokens: int, progress: Callable[[int], None]
) -> list[Tensor]:
    """Keys [V', K, d] of each layer at the first occurrence of each of V' distinct tokens in the documents' first
    ``tokens`` tokens, on the CPU. ``progress`` is called with the tokens of each chunk."""
    device, segment = next(decoder.parameters()).device, decoder.config.mixer.segment_length
    step = max(1, PASS_TOKENS[device.type] // segment) * segment
    found: list[list[Tensor]] = [[] for _ in decoder.layers]
    seen: set[int] = set()
    left = tokens
    for document in documents:
        state: DecoderState | None = None
        for start in range(0, min(len(document.tokens), left), step):
            chunk = document.tokens[start : min(start + step, left)].astype("int64")
            new = []
            for place, token in enumerate(chunk.tolist()):
                if token not in seen:
                    seen.add(token)
                    new.append(place)

            def visit(number: int, mixer: Mixer, x: Tensor, held: LayerState, new: list[int] = new) -> None:
                found[number].append(mixer.project(x)[1][0, new].float().cpu())

            state = through_layers(decoder, torch.from_numpy(chunk).unsqueeze(0).to(device), state, visit)
            progress(len(chunk))
        left -= min(len(document.tokens), left)
    return [torch.cat(parts) for parts in found]


def score(decoder: Decoder, keys: Sequence[Tensor], config: TrainedKeysConfig, seed: int) -> list[dict[str, Any]]:
    """Rows of the ablation's capacity.parquet; numbers of associations beyond the distinct tokens there are, are left
    out."""
    mixer = decoder.config.mixer
    rows: list[dict[str, Any]] = []
    for layer, of_layer in enumerate(keys):
        tokens, heads, d = of_layer.shape
        for count in (n for n in config.associations if n <= tokens):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + count)
            chosen = torch.stack([torch.randperm(tokens, generator=generator)[:count] for _ in range(config.draws)])
            trained = of_layer[chosen].permute(2, 0, 1, 3)  # [K, D, n, d]: heads take the place of seeds
            scale = of_layer.square().mean((0, 2)).sqrt()[:, None, None, None]
            drawn = {"trained": trained, "random": scale * torch.randn(trained.shape, generator=generator)}
            values = F.normalize(torch.randn(1, config.draws, count, d, generator=generator), dim=-1)
            for kind, k in drawn.items():
                phi = memory.feature_map(mixer.feature_map, k)
                written = read_back(
                    phi, values.expand(heads, -1, -1, -1), mixer.rule, mixer.segment_length, mixer.eps, [count]
                )
                (_, readout), *_ = written
                for head, row in enumerate(numbers(readout, config.tolerance)):
                    rows.append(
                        {
                            "keys": kind,
                            "feature_map": mixer.feature_map,
                            "feature_dim": phi.shape[-1],
                            "d_key": d,
                            "rule": mixer.rule,
                            "associations": count,
                            "layer": layer,
                            "head": head,
                        }
                        | row
                    )
    return rows
