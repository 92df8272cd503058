"""Memory while long sequences run in pieces: what is alive at once, counted allocation by allocation."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.decoder import Decoder
from tests.model.tiny import ARMS, N, config, tokens

INFINI = ["infini-linear", "infini-delta"]


class Peak(TorchDispatchMode):
    """``bytes``: the most that tensors made inside the block held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self._alive, self._most = 0, dict[int, tuple[StorageWeakRef, int]](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage.data_ptr() not in self._alive or self._alive[storage.data_ptr()][0].expired():
                    self._most += storage.nbytes()
                self._alive[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        if self._most > self.bytes:  # at most so much is alive: look what really is
            self._alive = {key: held for key, held in self._alive.items() if not held[0].expired()}
            self._most = sum(size for _, size in self._alive.values())
            self.bytes = max(self.bytes, self._most)
        return out


@pytest.mark.parametrize("arm", INFINI)
def test_streaming_holds_the_same_at_any_length(arm: str) -> None:
    model, chunk, held = Decoder(config(arm), seed=0), 4 * N, []
    for chunks in (3, 12):
        state = None
        with torch.no_grad(), Peak() as peak:
            for number in range(chunks):
                hidden, state = model.hidden(tokens(1, chunk, seed=number), state)
                model.token_nll(hidden[:, :-1], tokens(1, chunk, seed=number)[:, 1:])
        held.append((peak.bytes, state.elements(), state.bytes(), state.live_kv_elements()))
    assert held[0] == held[1]
    assert held[0][0] > 0


@pytest.mark.parametrize("length", [5, N, 3 * N + 5, 25 * N])
@pytest.mark.parametrize("arm", ARMS)
def test_a_state_holds_the_bytes_it_reports_and_no_more(arm: str, length: int) -> None:
    model = Decoder(config(arm), seed=0).eval()
    with torch.no_grad():
        _, whole = model.hidden(tokens(2, length))
        _, after = model.hidden(tokens(2, N + 3), whole)
    for state in (whole, after):
        tensors = [leaf for leaf in tree_leaves(_parts(state)) if isinstance(leaf, torch.Tensor)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}
        assert sum(storages.values()) == state.bytes() + state.live_kv_bytes()


def _parts(value: Any) -> Any:
    """Dataclasses and what they hold, as lists."""
    if dataclasses.is_dataclass(value):
        return [_parts(getattr(value, field.name)) for field in dataclasses.fields(value)]
    return [_parts(item) for item in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize("arm", INFINI)
def test_training_in_chunks_adds_only_states_as_the_sequence_grows(arm: str) -> None:
    peaks: dict[int | None, list[int]] = {}
    for chunk in (None, 4 * N):
        model = Decoder(config(arm), seed=0)
        model.chunk_tokens, model.activation_checkpointing = chunk, chunk is not None
        for length in (8 * N, 32 * N):
            with Peak() as peak:
                model.loss(tokens(1, length)).backward()
            model.zero_grad()
            peaks.setdefault(chunk, []).append(peak.bytes)
    states = 6 * 2 * 2 * (4 * 4 + 4) * 4  # chunks more, layers, heads, M and z, bytes
    kept = 24 * N * (8 + 3 * 4)  # of each token more: its id, its nll and that one's gradient
    assert peaks[4 * N][1] - peaks[4 * N][0] < 2 * states + kept
    assert peaks[None][1] - peaks[None][0] > 20 * (2 * states + kept)
