"""What the paper leaves open, option by option: the parallel form against a loop over segments and heads written from
the equations, in one pass and streamed, gradients too."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import MixerConfig
from model.decoder import Decoder
from model.memory import MemoryState, empty, feature_map, read, stored, write
from model.rope import rotate
from tests.model.tiny import N, config, decoder, tokens

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "literal": {"empty_memory": "literal"},
    "channel gate": {"gate": "channel"},
    "token gate": {"gate": "token"},
    "token gate, literal": {"gate": "token", "empty_memory": "literal"},
    "channel gate, literal": {"gate": "channel", "empty_memory": "literal"},
    "learned start": {"initial_memory": "learned"},
    "learned start, token gate": {"initial_memory": "learned", "gate": "token"},
    "relu": {"feature_map": "relu"},
    "dpfp2": {"feature_map": "dpfp2"},
    "softmax": {"feature_map": "softmax"},
    "large eps": {"eps": 0.1},
    "bptt 1": {"bptt_segments": 1},
    "bptt 2": {"bptt_segments": 2},
    "bptt 2, learned start": {"bptt_segments": 2, "initial_memory": "learned"},
    "bfloat16 state": {"state_dtype": "bfloat16"},
    "bfloat16 state, learned start, bptt 3": {
        "state_dtype": "bfloat16",
        "initial_memory": "learned",
        "bptt_segments": 3,
    },
    "float64 state": {"state_dtype": "float64"},
}
RULES = ["linear", "delta"]


def build(rule: str, kv_heads: int = 2, segment_length: int = N, **options: Any) -> Decoder:
    """One layer, every parameter away from its symmetric start."""
    model = decoder(
        f"infini-{rule}", trunk={"layers": 1, "kv_heads": kv_heads}, segment_length=segment_length, **options
    )
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.mixers()[0].named_parameters(recurse=False):
            if name != "beta" or p.ndim == 2:
                p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype))
    return model


def by_the_equations(model: Decoder, x: Tensor) -> Tensor:
    """The layer's mixer on x [B, T, C]: head after head, segment after segment."""
    mixer = model.mixers()[0]
    options, (batch, length, _) = mixer.config, x.shape
    heads, kv, d, n = mixer.heads, mixer.kv_heads, mixer.d_head, mixer.segment_length
    q, k, v = (p(x).view(batch, length, -1, d) for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    cos, sin = model.rope.table(0, length, x.device, x.dtype)
    rotated_q, rotated_k = rotate(q, cos, sin), rotate(k, cos, sin)
    rounds_to = torch.bfloat16 if options.state_dtype == "bfloat16" else None
    rows = []
    for h in range(heads):
        j, parts = h // (heads // kv), []
        if options.initial_memory == "learned":
            M = mixer.memory_start[j].expand(batch, 1, -1, -1)
            state = MemoryState(M, F.softplus(mixer.normaliser_start[j]).expand(batch, 1, -1))
        else:
            features = feature_map(options.feature_map, k[:, :1, j]).shape[-1]
            state = empty(batch, 1, features, d, dtype=torch.float64)
        for s, start in enumerate(range(0, length, n)):
            if options.bptt_segments and s and s % options.bptt_segments == 0:
                state = state.detach()
            at = slice(start, min(start + n, length))
            scores = rotated_q[:, at, h] @ rotated_k[:, at, j].transpose(-1, -2) / d**0.5
            size = scores.shape[-1]
            local = scores.masked_fill(~torch.ones(size, size).tril().bool(), -torch.inf).softmax(-1) @ v[:, at, j]
            beta = mixer.beta[h]
            if options.gate == "token":
                beta = beta + (x[:, at] @ mixer.gate_weight[h]).unsqueeze(-1)
            g = torch.sigmoid(beta)
            found = read(state, feature_map(options.feature_map, q[:, at, h]).unsqueeze(1), options.eps).squeeze(1)
            bypass = s == 0 and options.empty_memory == "bypass" and options.initial_memory == "zero"
            parts.append(local if bypass else g * found + (1 - g) * local)
            if size == n:
                keys, values = feature_map(options.feature_map, k[:, at, j]).unsqueeze(1), v[:, at, j].unsqueeze(1)
                state = write(state, keys, values, options.rule, options.eps)
                state = MemoryState(stored(state.M, rounds_to), stored(state.z, rounds_to))
        rows.append(torch.cat(parts, 1))
    return mixer.o_proj(torch.stack(rows, 2).flatten(2))


def inputs(length: int, seed: int = 0) -> Tensor:
    return torch.randn(2, length, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def streamed(model: Decoder, x: Tensor, sizes: list[int]) -> Tensor:
    mixer, state, outputs, start = model.mixers()[0], None, [], 0
    for size in sizes:
        y, state = mixer(x[:, start : start + size], state, position=start, rope=model.rope)
        outputs.append(y)
        start += size
    return torch.cat(outputs, 1)


def gradients(y: Tensor, x: Tensor, model: Decoder) -> dict[str, Tensor]:
    weight = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(3))
    names = ["x", *(name for name, _ in model.mixers()[0].named_parameters())]
    leaves = [x, *model.mixers()[0].parameters()]
    return dict(zip(names, torch.autograd.grad((y * weight).sum(), leaves), strict=True))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_every_option_is_its_equations_with_gradients_and_streamed(rule: str, name: str) -> None:
    model, x = build(rule, **OPTIONS[name]), inputs(4 * N + 3).requires_grad_()
    expected = by_the_equations(model, x)
    wanted = gradients(expected, x, model)
    for sizes in ([4 * N + 3], [2 * N, 2 * N + 3], [5, 1, 2 * N, N + 4, 1]):
        found = streamed(model, x, sizes)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        if OPTIONS[name].get("state_dtype") == "bfloat16":
            continue  # a state handed on is a bfloat16 tensor, and so is the gradient that passes it
        for key, ours in gradients(found, x, model).items():
            torch.testing.assert_close(ours, wanted[key], rtol=1e-9, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("options", [{}, {"initial_memory": "learned", "bptt_segments": 3}])
@pytest.mark.parametrize("rule", RULES)
def test_gradients_pass_a_bfloat16_state_as_if_it_were_not_rounded(rule: str, options: dict[str, Any]) -> None:
    model, x = build(rule, state_dtype="bfloat16", **options), inputs(4 * N).requires_grad_()
    wanted = gradients(by_the_equations(model, x), x, model)
    mixer = model.mixers()[0]
    found, _ = mixer(x, None, position=0, rope=model.rope, keep_state=False)
    for key, ours in gradients(found, x, model).items():
        torch.testing.assert_close(ours, wanted[key], rtol=1e-9, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")


@settings(max_examples=20, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    name=st.sampled_from([name for name in OPTIONS if "bfloat16" not in name]),
    kv_heads=st.sampled_from([1, 2, 4]),
    segment=st.integers(1, 6),
    length=st.integers(1, 17),
    cuts=st.sets(st.integers(1, 16), max_size=4),
)
def test_any_shape_and_chunking(rule: str, name: str, kv_heads: int, segment: int, length: int, cuts: set[int]) -> None:
    model, x = build(rule, kv_heads, segment, **OPTIONS[name]), inputs(length)
    edges = [0, *sorted(c for c in cuts if c < length), length]
    with torch.no_grad():
        found = streamed(model, x, [b - a for a, b in itertools.pairwise(edges)])
        expected = by_the_equations(model, x)
        scale = expected.abs().max()  # random one-token segments can make the delta rule grow
        torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_truncated_gradients_stop_where_a_loop_would_detach(rule: str) -> None:
    """bptt 2 over four segments: the last reads writes of the third, and no gradient reaches the first two."""
    for k, reached in ((None, [True] * 4), (1, [False] * 3 + [True]), (2, [False, False, True, True])):
        model, x = build(rule, bptt_segments=k), inputs(4 * N).requires_grad_()
        streamed(model, x, [4 * N])[:, 3 * N :].sum().backward()
        assert [bool(part.abs().max() > 1e-12) for part in x.grad.split(N, 1)] == reached


def test_gates_that_depend_on_more_start_as_the_papers_scalar() -> None:
    reference, ids = Decoder(config(gate_init=0.3), seed=0).double(), tokens()
    for gate in ("channel", "token"):
        model = Decoder(config(gate=gate, gate_init=0.3), seed=0).double()
        with torch.no_grad():
            torch.testing.assert_close(model(ids)[0], reference(ids)[0], rtol=0, atol=1e-10)
        model.loss(ids).backward()
        grad = model.mixers()[1].beta.grad if gate == "channel" else model.mixers()[1].gate_weight.grad
        assert (grad.abs() > 1e-9).all()  # and can leave it
        torch.testing.assert_close(model.gates(), reference.gates())


def test_a_learned_start_is_read_by_the_first_segment_and_its_normaliser_stays_positive() -> None:
    model, ids = build("linear", initial_memory="learned"), tokens()
    with torch.no_grad():
        before = model(ids)[0]
        model.mixers()[0].normaliser_start.fill_(-40)
        assert (model.mixers()[0].start(1, torch.float64).z > 0).all()
        assert model(ids)[0].isfinite().all()
        model.mixers()[0].memory_start.add_(1)
        assert ((model(ids)[0] - before).abs().amax((0, 2)) > 1e-6).all()
    with pytest.raises(ValueError, match=r"empty_memory = 'literal'.*learned.*remove"):
        MixerConfig(kind="infini", segment_length=8, initial_memory="learned", empty_memory="literal")


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float32", 4), ("float64", 8)])
def test_the_state_is_held_in_its_dtype(dtype: str, size: int) -> None:
    model = Decoder(config("infini-delta", state_dtype=dtype), seed=0)
    with torch.no_grad():
        logits, state = model(tokens(1, 3 * N))
    assert state.bytes() == size * state.elements() > 0
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("knockout", ["reset", "zero_read", "swap", "gate_closed"])
@pytest.mark.parametrize("options", [{"initial_memory": "learned"}, {"gate": "token", "state_dtype": "bfloat16"}])
def test_knockouts_stream_under_options(knockout: str, options: dict[str, Any]) -> None:
    model, ids = build("delta", **options), tokens()
    with torch.no_grad():
        expected = model(ids, None, knockout)[0]
        first, state = model(ids[:, :13], None, knockout)
        rest = model(ids[:, 13:], state, knockout)[0]
    torch.testing.assert_close(torch.cat([first, rest], 1), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("gate", ["head", "channel", "token"])
def test_monitor_reports_the_gates_there_are(gate: str) -> None:
    model, ids = build("delta", gate=gate), tokens(2, 3 * N)
    mixer = model.mixers()[0]
    with torch.no_grad():
        x = model.layers[0].input_layernorm(model.embed_tokens(ids))
        logit = mixer.beta + (x @ mixer.gate_weight.T if gate == "token" else 0)
    g, numbers = torch.sigmoid(logit), model.monitor(ids)
    for name, value in (("gate_mean", g.mean()), ("gate_min", g.min()), ("gate_max", g.max())):
        assert numbers[name] == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize(
    "options", [{"initial_memory": "learned"}, {"feature_map": "softmax"}, {"feature_map": "dpfp1"}]
)
def test_monitor_sees_the_states_that_are_read(options: dict[str, Any]) -> None:
    model, ids = build("delta", **options), tokens(1, 4 * N)
    mixer = model.mixers()[0]
    numbers = model.monitor(ids)
    with torch.no_grad():
        x = model.layers[0].input_layernorm(model.embed_tokens(ids))
        q, k, v = (feature_map(mixer.config.feature_map, t) if i < 2 else t for i, t in enumerate(mixer.project(x)))
        state = mixer.start(1, torch.float64) or empty(1, 2, k.shape[-1], 4, dtype=torch.float64)
        norms, divisors, eigenvalues = [], [], []
        for s in range(4):
            at = slice(s * N, (s + 1) * N)
            phi = k[:, at].transpose(1, 2)
            norms.append(state.M.norm(dim=(-2, -1)).max())
            if s or "initial_memory" in options:
                divisors.append((q[:, at].transpose(1, 2) * state.z.repeat_interleave(2, 1).unsqueeze(2)).sum(-1).min())
                erase = phi.transpose(-1, -2) @ (phi / (phi @ state.z.unsqueeze(-1) + 1e-6))
                eigenvalues.append(torch.linalg.eigvalsh(erase).max())
            state = write(state, phi, v[:, at].transpose(1, 2), "delta", 1e-6)
        norms.append(state.M.norm(dim=(-2, -1)).max())
    assert numbers["memory_norm"] == pytest.approx(max(norms).item())
    assert numbers["z_min"] == pytest.approx(min(divisors).item())
    assert numbers["erase_lambda_max"] == pytest.approx(max(eigenvalues).item(), rel=1e-3)
