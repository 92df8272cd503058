"""On which device torch works."""

from __future__ import annotations

import torch

from stages.stage import Execution, StageError


def torch_device(execution: Execution) -> torch.device:
    """The device ``execution.device`` asks for. Raises StageError if it is cuda and this process sees none."""
    available = torch.cuda.is_available()
    if execution.device == "cuda" and not available:
        raise StageError(
            "no CUDA device is visible here",
            field="execution.device",
            value="cuda",
            allowed="auto, cpu",
            fix="use auto, or set execution.gpus_per_worker: 1 on machines with GPUs",
        )
    return torch.device("cuda" if available and execution.device != "cpu" else "cpu")
