"""Prompts that begin alike are read as one until they part: the state is copied there, and each goes on by itself.

Sorted prompts with their common prefixes are a tree. All branches are read at the same pace, as one batch that grows
where they part, so that the position, which a decoder's state has but one of, is that of every branch.

Shapes: B prompts, T tokens, C model size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from model.config import ModelConfig
from model.cost import cost
from model.decoder import Decoder, DecoderState
from model.generate import prefill
from stages.evidence.evaluate.forward import PASS_TOKENS, Progress, nothing

STATE_BYTES = {"cpu": 2**29, "cuda": 2**33}
"""Of the states of prompts that are read as one tree. Constant, as the tokens of a pass are."""

WORTH = 8
"""A prompt joins another where they have at least a segment and a ``WORTH``-th of their tokens in common: copying
states and shorter passes cost something."""


@dataclass(frozen=True)
class Together:
    """Prompts of one length that are read together. ``members``: their indices; ``tree``: as branches of one."""

    members: tuple[int, ...]
    tree: bool = False


def trees(prompts: Sequence[tuple[int, ...]], segment: int, most: int) -> list[Together]:
    """Groups of two prompts or more, of ``prompts`` of one length, that are worth reading as trees, of at most ``most``
    branches each."""
    if len(prompts) < 2 or most < 2:
        return []
    length = len(prompts[0])
    least = max(segment, length // WORTH)
    by_start: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_start.setdefault(prompt[:least], []).append(index)
    found = []
    for members in by_start.values():
        members.sort(key=lambda index: (prompts[index], index))
        for first in range(0, len(members), most):
            if len(branches := members[first : first + most]) > 1:
                found.append(Together(tuple(branches), tree=True))
    return found


def most_branches(config: ModelConfig, length: int, device: str) -> int:
    """Prompts of ``length`` tokens that are read as one tree: as many as states are held at once, and no more than so
    many that a pass over a segment of each is a few times as large as others."""
    one = cost(config, length)
    by_state = STATE_BYTES[device] // max(1, one.state_bytes + one.live_kv_bytes)
    return max(1, min(by_state, 4 * PASS_TOKENS[device] // config.mixer.segment_length))


def common(tokens: Tensor) -> list[int]:
    """How many tokens each row of tokens [B, T] has in common with the one before it (the first: none)."""
    rows = tokens.numpy()
    alike = [int(np.argmin(np.append(a == b, False))) for a, b in pairwise(rows)]
    return [0, *alike]


@torch.inference_mode()
def read_tree(
    decoder: Decoder, tokens: Tensor, budget: int | None = None, progress: Progress = nothing
) -> tuple[Tensor, DecoderState]:
    """As ``prefill`` of prompts [B, T] on the CPU, in the order of their tokens: last-layer output of the last
    token [B, 1, C] and the state, each token of a common prefix read once. ``progress`` is told of all tokens of the
    prompts, those too that were not read again."""
    device, (rows, length) = next(decoder.parameters()).device, tokens.shape
    budget = budget or PASS_TOKENS[device.type]
    parts = torch.tensor(common(tokens))  # row i leaves the branch of row i - 1 after so many tokens
    branch = torch.zeros(rows, dtype=torch.long)  # of each row
    state, hidden = None, None
    at = 0
    for end in sorted({*parts[(parts > 0) & (parts < length)].tolist(), length}):
        before, branch = branch, (parts <= at).cumsum(0) - 1
        heads = torch.searchsorted(branch, torch.arange(int(branch[-1]) + 1))  # first row of every branch
        if state is not None and len(heads) > int(before[-1]) + 1:
            state = state.rows(before[heads])
        shares = torch.bincount(branch).to(torch.float64).mean().item()

        def tell(read: int, shares: float = shares) -> None:
            progress(round(read * shares))

        hidden, state = prefill(decoder, tokens[heads, at:end].to(device), budget=budget, state=state, told=tell)
        at = end
    assert hidden is not None and state is not None
    if len(hidden) < rows:  # prompts that are the same to the end
        hidden, state = hidden.index_select(0, branch.to(device)), state.rows(branch)
    return hidden, state
