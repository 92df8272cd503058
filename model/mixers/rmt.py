"""Recurrent memory transformer (arXiv:2207.06881), decoder form: memory tokens around each segment of text.

    [_, Y_s, W_s] = trunk([mem_s; X_s; mem_s]),   mem_(s+1) = W_s

The m vectors before the text are read by all of it; the same m vectors stand again behind it, see all of the segment,
and what the last layer (after the final norm, as in the paper's GPT-2) makes of them is the next segment's memory. The
first segment's is learned. Attention is causal and reaches no further than the framed segment, positions restart in
each.

The recurrence goes through the whole trunk, so segments come one after another: the one arm that has a loop over
them. Gradients flow through the memory of all segments, or of ``bptt_segments``; trained from scratch it wants
sequences that begin with one segment and grow (the paper's curriculum), since nothing else teaches the write tokens
what a read far behind them needs.

An open segment is held as live keys and values of [mem; text so far]; its last token makes the write tokens run.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.mixers.base import Knockout, LayerState, compact
from model.mixers.full import FullMixer
from model.mixers.stream import Layers, Stream, Trunk
from model.rope import Rope


class RMTMixer(FullMixer):
    """Causal attention over the framed segment, which is live until it closes."""

    def mix(
        self, x: Tensor, state: LayerState, *, position: int, rope: Rope, knockout: Knockout, keep_state: bool
    ) -> tuple[Tensor, LayerState]:
        y, after = self.causal(x, LayerState(cached=state.live), position=position, rope=rope)
        return y, LayerState(live=after.cached)


class RMTStream(Stream):
    """Frames each segment of text with memory tokens [B, m, C] and carries what becomes of the second ones."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.memory = nn.Parameter(torch.empty(config.mixer.memory_tokens, config.trunk.dim))

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
        m, n, bptt = len(self.memory), self.config.mixer.segment_length, self.config.mixer.bptt_segments
        memory = self.memory.to(x.dtype).expand(len(x), -1, -1) if carried is None else carried
        outputs, done = [], 0
        while done < x.shape[1]:
            segment, offset = divmod(position + done, n)
            text = x[:, done : done + n - offset]
            done += text.shape[1]
            closes = offset + text.shape[1] == n
            write = closes and (keep_state or done < x.shape[1])
            if offset == 0:
                layers = None
                if bptt is not None and segment and segment % bptt == 0:
                    memory = memory.detach()
            framed = torch.cat([memory[:, : 0 if offset else m], text, memory[:, : m if write else 0]], dim=1)
            y, after = trunk(framed, layers, m + offset if offset else 0, keep_state=keep_state and not closes)
            outputs.append(y.narrow(1, 0 if offset else m, text.shape[1]))
            if write:
                memory = y[:, -m:]
            layers = tuple(LayerState() for _ in after) if closes else after
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return y, layers or (), compact(memory)
