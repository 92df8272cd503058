"""What is reported of a memory along a document equals what the sequential rules say of it."""

from __future__ import annotations

import pytest
import torch

from model import memory
from model.decoder import Decoder
from model.mixers.infini import effective_rank
from model.trace import memory_along, through_layers
from tests.model.tiny import N, decoder, tokens

ARMS = ["infini-linear", "infini-delta"]


def by_hand(model: Decoder, ids: torch.Tensor) -> dict[tuple[int, int], dict[str, float]]:
    """(segment, memory head) -> numbers of layer 0 of one document, one segment at a time."""
    mixer, config = model.mixers()[0], model.config.mixer
    x = model.layers[0].input_layernorm(model.embed_tokens(ids.unsqueeze(0)))
    q, k, v = (t.transpose(1, 2).double() for t in mixer.project(x))
    phi_q, phi_k = (memory.feature_map(config.feature_map, t) for t in (q, k))
    state = memory.empty(1, mixer.kv_heads, phi_k.shape[-1], v.shape[-1], dtype=torch.float64)
    group, found = mixer.heads // mixer.kv_heads, {}
    for segment in range(ids.shape[0] // N):
        part = slice(segment * N, (segment + 1) * N)
        after = memory.write(state, phi_k[:, :, part], v[:, :, part], config.rule, config.eps)
        for head in range(mixer.kv_heads):
            rows, z = phi_k[0, head, part], state.z[0, head]
            erase = rows.T @ ((rows @ z + config.eps).reciprocal()[:, None] * rows)
            asked = phi_q[0, head * group : (head + 1) * group, part] @ z
            shares = torch.linalg.svdvals(after.M[0, head])
            shares = shares / shares.sum()
            found[segment, head] = {
                "memory_norm": after.M[0, head].norm().item(),
                "z_min": asked.min().item(),
                "erase_lambda_max": torch.linalg.eigvals(erase).real.max().item(),
                "effective_rank": torch.exp(-(shares * shares.log()).sum()).item(),
            }
        state = after
    return found


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_the_numbers_are_those_of_the_sequential_rules(arm: str, chunk: int) -> None:
    model, ids = decoder(arm), tokens(1, 5 * N)[0]
    read: list[int] = []
    rows = memory_along(model, ids, [0, 1, 3, 4], chunk, read.append)
    expected = by_hand(model, ids)
    assert sum(read) == 5 * N
    heads, layers = model.mixers()[0].kv_heads, len(model.layers)
    assert len(rows) == 4 * heads * layers
    for row in rows:
        assert row["tokens"] == (row["segment"] + 1) * N
        if row["layer"] == 0:
            for name, value in expected[row["segment"], row["head"]].items():
                if row["segment"] == 0 and name in ("z_min", "erase_lambda_max"):
                    assert row[name] != row[name], "nothing is read in the first segment"
                else:
                    assert row[name] == pytest.approx(value, rel=2e-3), (name, row)


def test_the_walk_through_the_layers_is_the_decoders_own() -> None:
    model, ids = decoder(), tokens(2, 4 * N)
    seen: list[int] = []
    state = through_layers(model, ids[:, : 2 * N], None, lambda number, *_: seen.append(number))
    state = through_layers(model, ids[:, 2 * N :], state, lambda *_: None)
    with torch.no_grad():
        _, expected = model(ids)
    assert seen == list(range(len(model.layers))) and state.position == expected.position
    for mine, theirs in zip(state.layers, expected.layers, strict=True):
        torch.testing.assert_close(mine.memory.M, theirs.memory.M, rtol=1e-5, atol=1e-6)


def test_effective_rank_counts_what_is_stored() -> None:
    assert effective_rank(torch.zeros(4, 3)).item() == 0
    assert effective_rank(torch.ones(4, 3)).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.eye(5)).item() == pytest.approx(5, abs=1e-3)
