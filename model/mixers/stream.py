"""What passes through the layers: the embedded text as it is, or with vectors of the arm's own among it.

Most arms mix the text alone (``Stream``). Two do not: RMT frames each segment with memory tokens and hands the last
layer's to the next segment, landmark attention closes each block of text with a landmark token. They subclass
``Stream`` beside their mixers; the decoder knows only this contract.

Shapes: B batch, T tokens, C model size.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from model.config import ModelConfig
from model.mixers.base import LayerState

Layers = tuple[LayerState, ...]


class Trunk(Protocol):
    """All layers and the final norm on vectors x [B, n, C] at ``position`` .. ``position + n - 1`` of the stream, after
    ``layers``."""

    def __call__(
        self, x: Tensor, layers: Layers | None, position: int, *, keep_state: bool
    ) -> tuple[Tensor, Layers]: ...


class Stream(nn.Module):
    """The text alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        x: Tensor,
        layers: Layers | None,
        carried: Tensor | None,
        position: int,
        trunk: Trunk,
        *,
        keep_state: bool,
    ) -> tuple[Tensor, Layers, Tensor | None]:
        """Normed outputs [B, T, C] of the last layer at the text tokens x [B, T, C], which stand at ``position`` (in
        text tokens) of their documents, with the layers' states and the vectors carried on after them.

        layers, carried: what the call for the tokens before returned, None at the start of documents. With
        ``keep_state`` false nothing follows: what is returned of them is not used, but for auxiliary losses.
        """
        y, after = trunk(x, layers, position, keep_state=keep_state)
        return y, after, None
