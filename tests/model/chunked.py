"""What a mixer computes in chunks compared with a loop over its tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.mixers import chunks
from model.mixers.base import LayerState, Mixer
from model.rope import Rope

CLOSE = {"rtol": 0, "atol": 1e-10}
DIM, HEADS, D = 8, 4, 4
ROPE = Rope(D, 10_000.0)


def inputs(batch: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, tokens, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(layer: Mixer, x: Tensor, state: LayerState | None = None, position: int = 0) -> tuple[Tensor, LayerState]:
    return layer(x, state, position=position, rope=ROPE)


def gradients(layer: Mixer, y: Tensor, x: Tensor) -> list[Tensor]:
    weights = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(9))
    return list(torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()]))


def check_chunks(layer: Mixer, loop: Callable[[Tensor], Tensor], tokens: int, size: int, cut: int) -> None:
    """Forward and gradients equal those of ``loop``, in chunks of ``size`` and continued from a state at ``cut``."""
    x = inputs(2, tokens).requires_grad_()
    expected = loop(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK", size)
        outputs = [run(layer, x)[0]]
        if 0 < cut < tokens:
            head, state = run(layer, x[:, :cut])
            outputs.append(torch.cat([head, run(layer, x[:, cut:], state, cut)[0]], 1))
    expected_gradients = gradients(layer, expected, x)
    for y in outputs:
        torch.testing.assert_close(y, expected, **CLOSE)
        for a, b in zip(gradients(layer, y, x), expected_gradients, strict=True):
            torch.testing.assert_close(a, b, **CLOSE)
