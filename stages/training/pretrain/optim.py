"""Optimisers with their parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn

from model.arms import KINDS

BETAS = (0.9, 0.95)


def schedule(
    step: int,
    *,
    steps: int,
    warmup_steps: int,
    kind: Literal["cosine", "constant", "wsd"],
    least: float,
    decay_share: float = 0.2,
) -> float:
    """Factor of the peak learning rates at ``step`` (0-based): linear warm-up, then constant, or cosine to ``least``,
    or wsd: constant, and linear to ``least`` in the last ``decay_share`` of the steps (arXiv:2404.06395)."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if kind == "constant":
        return 1.0
    if kind == "wsd":
        decay = max(1, round(decay_share * steps))
        return 1 - (1 - least) * max(0.0, (step + 1 - (steps - decay)) / decay)
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
    """AdamW in three groups: matrices (weight decay), norms and biases (none), gates (none, own learning rate).

    Decay would pull a gate back to g = 0.5, and at the weights' learning rate a scalar moves too little to open or
    close (Adam moves it by about lr x steps): both are known causes of failed replications.
    """
    return _adamw(_groups(decoder, lr=lr, gate_lr=gate_lr, weight_decay=weight_decay))


def build_all(
    decoder: nn.Module,
    kind: Literal["adamw", "adafactor", "muon"],
    *,
    lr: float,
    gate_lr: float,
    weight_decay: float,
) -> list[torch.optim.Optimizer]:
    """The optimisers of a kind, which together step every parameter once. Gates are always AdamW's: Adafactor's step is
    relative to the parameter, and a beta at 0 would stay there.

    adafactor: arXiv:1804.04235, by torch.optim. muon: for the matrices of the layers (momentum, then five Newton-Schulz
    iterations), the update scaled to the RMS of AdamW's (arXiv:2502.16982).
    """
    groups = _groups(decoder, lr=lr, gate_lr=gate_lr, weight_decay=weight_decay)
    if kind == "adamw":
        return [_adamw(groups)]
    matrices, vectors, gates = groups
    if kind == "adafactor":
        factored = [group for group in (matrices, vectors) if group["params"]]
        own: list[torch.optim.Optimizer] = [torch.optim.Adafactor(factored, lr=lr)]
        return own + ([_adamw([gates])] if gates["params"] else [])
    of_layers = {id(p) for name, p in decoder.named_parameters() if name.startswith("layers.") and p.ndim == 2}
    inside = [p for p in matrices["params"] if id(p) in of_layers]
    outside = [p for p in matrices["params"] if id(p) not in of_layers]
    muon = torch.optim.Muon(
        [{**matrices, "params": inside}], lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, _adamw([{**matrices, "params": outside}, vectors, gates])]


def _groups(decoder: nn.Module, *, lr: float, gate_lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices, vectors and gates, each perhaps empty."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    gates: list[nn.Parameter] = []
    for name, parameter in decoder.named_parameters():
        if is_gate(name):
            gates.append(parameter)
        else:
            (matrices if decays(name, parameter) else vectors).append(parameter)
    return [
        {"params": matrices, "weight_decay": weight_decay, "peak": lr},
        {"params": vectors, "weight_decay": 0.0, "peak": lr},
        {"params": gates, "weight_decay": 0.0, "peak": gate_lr},
    ]


def _adamw(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    present = [group for group in groups if group["params"]]
    return torch.optim.AdamW(present, lr=present[0]["peak"], betas=BETAS, eps=1e-8)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's learning rate = its peak times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor, decoder: nn.Module) -> None:
    """One step down the gradient of ``loss``, whose norm is at most 1: of small models in one process."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
    optimizer.step()
