"""Where the model does on a GPU what it does not do on a CPU. All of ``model/`` asks here and nowhere else, so that
tests take the GPU's way on a CPU too."""

from __future__ import annotations

from torch import Tensor


def on_gpu(x: Tensor) -> bool:
    """Then passes over all segments at once pay, where a CPU's cache wants blocks of them; and so does cumsum."""
    return x.is_cuda
