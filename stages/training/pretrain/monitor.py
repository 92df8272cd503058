"""Gates and memory health of the arms that have a memory, read now and then while training."""

from __future__ import annotations

from typing import Any

import torch

from model.decoder import Decoder

COLUMNS = ("gate_mean", "gate_min", "gate_max", "memory_norm", "z_min", "erase_lambda_max")


def read(decoder: Decoder, tokens: torch.Tensor) -> dict[str, float | None]:
    """The columns of ``COLUMNS`` for one sequence; None where the arm has no such quantity.

    tokens: int64 [1, T], the first sequence of the global batch (the same on every rank).
    """
    sharded: list[Any] = [module for module in decoder.modules() if hasattr(module, "unshard")]
    for module in sharded:  # FSDP2: monitor looks at parameters outside of their layer's forward
        module.unshard()
    values = decoder.monitor(tokens)
    for module in sharded:
        module.reshard()
    return {name: values.get(name) for name in COLUMNS}
