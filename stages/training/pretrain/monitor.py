"""What is watched while training: gates and memory health of the arms that have a memory, read now and then; how fast
it goes; and where it went wrong."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from model.cost import cost
from model.decoder import Decoder

COLUMNS = ("gate_mean", "gate_min", "gate_max", "memory_norm", "z_min", "erase_lambda_max")


def read(decoder: Decoder, tokens: torch.Tensor) -> dict[str, float | None]:
    """The columns of ``COLUMNS`` for one sequence; None where the arm has no such quantity.

    tokens: int64 [1, T], the first sequence of the global batch (the same on every rank).
    """
    with _whole(decoder):
        values = decoder.monitor(tokens)
    return {name: values.get(name) for name in COLUMNS}


def gates(decoder: Decoder, step: int) -> list[dict[str, Any]]:
    """One entry: ``step``, and ``gates`` of each gated layer and head as ``Decoder.gates`` has them; none for arms
    without a gate. Every rank calls it."""
    with _whole(decoder):
        found = decoder.gates()
    return [] if found is None else [{"step": step, "gates": found.tolist()}]


def diagnosis(decoder: Decoder, tokens: torch.Tensor) -> str:
    """Where a training that cannot go on is ill: the first layer whose output is not finite, else the one whose memory
    erases most, with its lambda_max and smallest sigma(q) z on ``tokens`` [1, T], and the parameters whose gradients
    are not finite. Layers count from 0. Every rank calls it."""
    with _whole(decoder):
        layers = decoder.health(tokens)
    broken = [number for number, (_, norm) in enumerate(layers) if not math.isfinite(norm)]
    strength = [numbers.get("erase_lambda_max", -math.inf) for numbers, _ in layers]
    if broken:
        number, said = broken[0], "the first whose output is not finite"
    elif max(strength) > -math.inf:
        number, said = strength.index(max(strength)), "the one that erases most"
    else:
        number, said = max(range(len(layers)), key=lambda n: layers[n][1]), "the one with the largest output"
    numbers, norm = layers[number]
    names = {"erase_lambda_max": "lambda_max", "z_min": "min sigma(q) z", "memory_norm": "|M|"}
    parts = [f"{name} {numbers[key]:.3g}" for key, name in names.items() if key in numbers]
    text = f"layer {number} ({said}): {', '.join([*parts, f'largest output {norm:.3g}'])}"
    bad = _not_finite(decoder)
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        text += f"; gradients not finite: {bad[-1]}{more}"
    return text


def _not_finite(decoder: Decoder) -> list[str]:
    """Parameters with a gradient that is not finite on some rank."""
    named = [(name, p.grad) for name, p in decoder.named_parameters() if p.grad is not None]
    local = [grad.to_local() if isinstance(grad, DTensor) else grad for _, grad in named]
    if not local:
        return []
    sound = torch.stack([grad.isfinite().all() for grad in local]).int()
    if any(isinstance(grad, DTensor) for _, grad in named):
        dist.all_reduce(sound, dist.ReduceOp.MIN)
    return [name for (name, _), good in zip(named, sound.tolist(), strict=True) if not good]


@contextlib.contextmanager
def _whole(decoder: Decoder) -> Iterator[None]:
    """With all parameters at hand, and sequences that are not split."""
    ranks, sharded = decoder.ranks, [module for module in decoder.modules() if isinstance(module, FSDPModule)]
    decoder.split_sequences(None)
    for module in sharded:  # monitors look at parameters outside of their layer's forward
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
        decoder.split_sequences(ranks)


DENSE_BF16_TFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "RTX 4090": 165}
"""Peak of the tensor cores without sparsity, by the vendor's data sheets."""


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOPs per second of a GPU, by its name; None where it is not known, and for a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((tflops * 1e12 for known, tflops in DENSE_BF16_TFLOPS.items() if known in name), None)


class Speed:
    """What the hardware makes of the tokens per second, beside them while training runs; not in the log that stays."""

    def __init__(self, decoder: Decoder, length: int, device: torch.device, devices: int) -> None:
        self.device, peak = device, peak_flops(device)
        self.peak = None if peak is None else peak * devices
        self.flops = cost(decoder.config, length).flops_per_token_training

    def __call__(self, tokens_per_s: float) -> dict[str, float]:
        """mfu: share of the GPUs' peak (model FLOPs, by formula); gpu_memory_gib: most that was allocated so far on
        this one."""
        found = {} if self.peak is None else {"mfu": self.flops * tokens_per_s / self.peak}
        if self.device.type == "cuda":
            found["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return found
