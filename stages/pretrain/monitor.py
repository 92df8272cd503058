"""Gates and memory health of the arms that have a memory, read now and then while training."""

from __future__ import annotations

import torch
from torch import nn

COLUMNS = ("gate_mean", "gate_min", "gate_max", "memory_norm", "z_min", "erase_lambda_max")


def read(decoder: nn.Module, tokens: torch.Tensor) -> dict[str, float | None]:
    """The columns of ``COLUMNS`` for one sequence; None where the arm has no such quantity.

    tokens: int64 [1, T], the first sequence of the global batch (the same on every rank).
    """
    sharded = [module for module in decoder.modules() if hasattr(module, "reshard") and hasattr(module, "unshard")]
    for module in sharded:  # FSDP2: monitor looks at parameters outside of their layer's forward
        module.unshard()
    values = decoder.monitor(tokens)  # type: ignore[operator]
    for module in sharded:
        module.reshard()
    return {name: values.get(name) for name in COLUMNS}
