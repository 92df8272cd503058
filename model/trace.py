"""Layer by layer through a document: what each mixer is given, and what becomes of its memory.

Shapes: B batch, T tokens, C model size, K memory heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from model.decoder import Decoder, DecoderState, Layer
from model.memory import MemoryState
from model.mixers import LayerState, Mixer
from model.mixers.infini import InfiniMixer

Visit = Callable[[int, Mixer, Tensor, LayerState], None]
"""Called with a layer's number, its mixer, the mixer's normed inputs [B, T, C] and the state they follow."""


@torch.no_grad()
def through_layers(decoder: Decoder, tokens: Tensor, state: DecoderState | None, visit: Visit) -> DecoderState:
    """The state after tokens [B, T] that follow ``state``, with a visit of every layer on the way. For arms that pass
    the text alone through the layers (all but rmt and landmark)."""
    before = state or DecoderState((), 0)
    x, after = decoder.embed_tokens(tokens), []
    for number, module in enumerate(decoder.layers):
        layer = cast(Layer, module)
        held = before.layers[number] if before.layers else LayerState()
        visit(number, layer.self_attn, layer.mixer_input(x), held)
        options = {"position": before.position, "rope": decoder.rope, "keep_state": True}
        x, new = layer(x, held, options)
        after.append(new)
    return DecoderState(tuple(after), before.position + tokens.shape[1])


def memory_along(
    decoder: Decoder,
    tokens: Tensor,
    segments: Sequence[int],
    chunk_segments: int,
    read: Callable[[int], None],
    *,
    spectrum: bool = False,
) -> list[dict[str, Any]]:
    """The memory of an infini model along one document, tokens [T]: a row per segment of ``segments`` (0-based,
    ascending, whole ones), layer and memory head, with ``segment``, ``tokens`` (read when it ends), ``layer``, ``head``
    and the numbers of ``InfiniMixer.trace`` (vectors as lists). ``chunk_segments`` are read at a time; ``read`` is
    called with the tokens of each chunk."""
    n = decoder.config.mixer.segment_length
    rows: list[dict[str, Any]] = []
    state: DecoderState | None = None
    for first in range(0, segments[-1] + 1, chunk_segments):
        chunk = tokens[first * n : min(first + chunk_segments, segments[-1] + 1) * n].unsqueeze(0)
        picked = [s - first for s in segments if first <= s < first + chunk_segments]

        def visit(
            number: int, mixer: Mixer, x: Tensor, held: LayerState, first: int = first, picked: list[int] = picked
        ) -> None:
            if not picked:
                return
            found = cast(InfiniMixer, mixer).trace(x, cast(MemoryState | None, held.memory), picked, spectrum=spectrum)
            for place, segment in enumerate(picked):
                for head in range(mixer.kv_heads):
                    rows.append(
                        {"segment": first + segment, "tokens": (first + segment + 1) * n, "layer": number, "head": head}
                        | {name: values[0, place, head].tolist() for name, values in found.items()}
                    )

        state = through_layers(decoder, chunk, state, visit)
        read(chunk.shape[1])
    return rows
