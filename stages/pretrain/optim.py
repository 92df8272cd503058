"""AdamW parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from stages.pretrain.recipe import Recipe

BETAS = (0.9, 0.95)


def schedule(step: int, recipe: Recipe) -> float:
    """Factor of the peak learning rates at ``step`` (0-based): linear warm-up, then cosine or constant."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    if recipe.schedule == "constant":
        return 1.0
    span = max(1, recipe.steps - recipe.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - recipe.warmup_steps + 1) / span)))
    return recipe.min_lr_share + (1 - recipe.min_lr_share) * cosine


def is_gate(name: str) -> bool:
    """Is the parameter the mixing gate beta of a memory arm?"""
    return name.rpartition(".")[2] == "beta"


def build(decoder: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Three groups: matrices (weight decay), norms and biases (none), gates (none, own learning rate).

    Decay would pull a gate back to g = 0.5, and at the weights' learning rate a scalar moves too little to open or
    close (Adam moves it by about lr x steps): both are known causes of failed replications.
    """
    matrices, vectors, gates = [], [], []
    for name, parameter in decoder.named_parameters():
        if is_gate(name):
            gates.append(parameter)
        else:
            (matrices if parameter.ndim >= 2 else vectors).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay, "peak": recipe.lr},
        {"params": vectors, "weight_decay": 0.0, "peak": recipe.lr},
        {"params": gates, "weight_decay": 0.0, "peak": recipe.gate_lr},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.lr, betas=BETAS, eps=1e-8)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's learning rate = its peak times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
