"""On which device torch works."""

from __future__ import annotations

import torch

from stages.stage import Execution, StageError


def torch_device(execution: Execution, field: str = "execution.device") -> torch.device:
    """The device ``execution.device`` asks for. Raises StageError if it is cuda and this process sees none, by the name
    of the ``field`` that the user wrote: in a study file, or an option."""
    available = torch.cuda.is_available()
    if execution.device == "cuda" and not available:
        raise StageError(
            "no CUDA device is visible here",
            field=field,
            value="cuda",
            allowed="auto, cpu",
            fix="use auto, or set execution.gpus_per_worker: 1 on machines with GPUs"
            if field.startswith("execution")
            else "use auto, or a machine and a torch with CUDA",
        )
    return torch.device("cuda" if available and execution.device != "cpu" else "cpu")
