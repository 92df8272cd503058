"""Seconds and peak memory of a forward pass and of a training step."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.speed.rows import Row

DENSE_BF16_TFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "RTX 4090": 165}
"""Peak of the tensor cores without sparsity, by the vendor's data sheets."""


@dataclass(frozen=True)
class Sample:
    """Seconds, and bytes beyond what was held before (None where the machine does not say)."""

    forward: float
    training: float
    forward_bytes: int | None
    training_bytes: int | None


def measure(row: Row, tokens: Tensor, *, memory: bool, clock: str) -> Sample:
    """A forward pass without gradients, then forward + backward. ``memory``: also the peaks, which costs some time.
    clock: "wall", or "cpu" for the seconds this process computed, which other work on the machine changes less."""
    autocast = torch.autocast("cuda", torch.bfloat16) if tokens.is_cuda else nullcontext()

    def forward() -> None:
        with torch.no_grad(), autocast:
            row.loss(tokens)

    def training() -> None:
        with autocast:
            loss = row.loss(tokens)
        loss.backward()

    forward_seconds, forward_bytes = _run(forward, row.module, tokens, memory, clock)
    training_seconds, training_bytes = _run(training, row.module, tokens, memory, clock)
    return Sample(forward_seconds, training_seconds, forward_bytes, training_bytes)


def _run(
    work: Callable[[], None], module: nn.Module, tokens: Tensor, memory: bool, clock: str
) -> tuple[float, int | None]:
    held = _reset_peak(tokens) if memory else None
    start = _now(tokens, clock)
    work()
    seconds = _now(tokens, clock) - start
    peak = _peak(tokens)
    module.zero_grad(set_to_none=True)
    return seconds, None if held is None or peak is None else max(peak - held, 0)


def _now(tokens: Tensor, clock: str) -> float:
    if tokens.is_cuda:
        torch.cuda.synchronize()
    return time.process_time() if clock == "cpu" else time.perf_counter()


def _reset_peak(tokens: Tensor) -> int | None:
    """Forget the peak so far; bytes held now."""
    if tokens.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if not sys.platform.startswith("linux"):
        return None
    ctypes.CDLL(None).malloc_trim(0)  # freed memory goes back, so that it does not hide the next peak
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _peak(tokens: Tensor) -> int | None:
    if tokens.is_cuda:
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM") if sys.platform.startswith("linux") else None


def peak_resident() -> int:
    """Bytes resident at most since this process began. Not ru_maxrss on Linux: a child inherits its parent's."""
    if sys.platform.startswith("linux"):
        found = _status("VmHWM")
        assert found is not None
        return found
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(field: str) -> int | None:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else None


def peak_flops(device: str, given_tflops: float | None) -> float | None:
    """FLOP/s that model FLOPs utilisation is relative to: as given, or by the GPU's name; None if not known."""
    if given_tflops is not None:
        return given_tflops * 1e12
    if not device.startswith("cuda"):
        return None
    name = torch.cuda.get_device_name(device)
    return next((tflops * 1e12 for part, tflops in DENSE_BF16_TFLOPS.items() if part in name), None)
