"""AdamW parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn

from model.arms import KINDS

BETAS = (0.9, 0.95)


def schedule(step: int, *, steps: int, warmup_steps: int, kind: Literal["cosine", "constant"], least: float) -> float:
    """Factor of the peak learning rates at ``step`` (0-based): linear warm-up, constant or cosine to ``least``."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if kind == "constant":
        return 1.0
    span = max(1, steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup_steps + 1) / span)))
    return least + (1 - least) * cosine


def is_gate(name: str) -> bool:
    """Is the parameter the mixing gate beta of a memory arm?"""
    return name.rpartition(".")[2] == "beta"


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Is weight decay for it? For matrices, but not for what a document starts from (memories, memory tokens, the
    landmark) and what moves a gate by its token."""
    own = tuple(end for arm in KINDS.values() for end in arm.undecayed)
    return parameter.ndim >= 2 and not name.endswith(own)


def build(decoder: nn.Module, *, lr: float, gate_lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Three groups: matrices (weight decay), norms and biases (none), gates (none, own learning rate).

    Decay would pull a gate back to g = 0.5, and at the weights' learning rate a scalar moves too little to open or
    close (Adam moves it by about lr x steps): both are known causes of failed replications.
    """
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    gates: list[nn.Parameter] = []
    for name, parameter in decoder.named_parameters():
        if is_gate(name):
            gates.append(parameter)
        else:
            (matrices if decays(name, parameter) else vectors).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay, "peak": lr},
        {"params": vectors, "weight_decay": 0.0, "peak": lr},
        {"params": gates, "weight_decay": 0.0, "peak": gate_lr},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=BETAS, eps=1e-8)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's learning rate = its peak times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
