"""Every arm: one pass = any chunking, causality, documents kept apart, gradients, losses, and the options of infini."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import decoder as decoder_module
from model.decoder import Decoder, DecoderState
from model.memory import empty, feature_map, read, write
from model.mixers.base import split_axis
from model.rope import rotate
from tests.model.tiny import ARMS, VOCAB, N, config, decoder, tokens

CLOSE = {"rtol": 0, "atol": 1e-10}


def stream(model: Decoder, ids: Tensor, sizes: list[int], knockout: str | None = None) -> tuple[Tensor, DecoderState]:
    logits, state, start = [], None, 0
    for size in sizes:
        y, state = model(ids[:, start : start + size], state, knockout)
        logits.append(y)
        start += size
    assert start == ids.shape[1] and state is not None
    return torch.cat(logits, 1), state


@pytest.mark.parametrize("arm", ARMS)
@settings(max_examples=12, deadline=None)
@given(cuts=st.sets(st.integers(1, 28), max_size=8))
def test_streaming_in_any_chunks_equals_one_pass(arm: str, cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), 29]
    model, ids = decoder(arm), tokens()
    with torch.no_grad():
        expected, at_once = model(ids)
        found, in_pieces = stream(model, ids, [b - a for a, b in itertools.pairwise(edges)])
    torch.testing.assert_close(found, expected, **CLOSE)
    for a, b in zip(at_once.layers, in_pieces.layers, strict=True):
        assert type(a.memory) is type(b.memory)
        if a.memory is not None:
            torch.testing.assert_close(vars(b.memory), vars(a.memory), **CLOSE)
    assert in_pieces.position == at_once.position == 29
    assert in_pieces.elements() == at_once.elements()
    assert in_pieces.live_kv_elements() == at_once.live_kv_elements()


@pytest.mark.parametrize("chunk", [None, 11])
def test_only_the_wanted_targets_are_computed_and_all_else_is_as_before(chunk: int | None) -> None:
    model, ids = decoder("infini-delta").train(), tokens(3, 29)
    model.chunk_tokens = chunk
    wanted = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    wanted[:, 11:22] = False  # a whole chunk without targets
    found = []
    for few in (None, wanted):
        model.zero_grad()
        nll, _ = model.training_nll(ids, few)
        nll = nll * wanted[:, 1:]
        nll.sum().backward()
        found.append((nll.detach(), [p.grad for p in model.parameters()]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    assert (model.training_nll(ids, wanted)[0][~wanted[:, 1:]] == 0).all()


@pytest.mark.parametrize("arm", ["infini-linear", "infini-delta"])
def test_gradients_cross_chunks_and_segments(arm: str) -> None:
    """Token by token with the state attached gives the gradients of one pass: writes learn from later reads."""
    model, ids = decoder(arm), tokens(2, 20)
    gradients = []
    for sizes in ([20], [1] * 20):
        model.zero_grad()
        logits, _ = stream(model, ids, sizes)
        F.cross_entropy(logits[:, -1], ids[:, -1]).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("arm", ARMS)
def test_causality(arm: str) -> None:
    """A changed token changes nothing before it; where the arm can carry it, something two segments later."""
    model, ids = decoder(arm), tokens()
    other = ids.clone()
    other[:, 10] = (other[:, 10] + 1) % VOCAB
    with torch.no_grad():
        a, b = model(ids)[0], model(other)[0]
    assert torch.equal(a[:, :10], b[:, :10])
    changed = (a - b).abs().amax((0, 2)) > 1e-9
    assert changed[10:16].all()
    reaches = {"local": 16, "window": 10 + 2 * (N - 1) + 1}.get(arm, 29)  # xl: 2 layers reach 2 segments on
    assert changed[:reaches][10:].all()
    assert not changed[reaches:].any()


@pytest.mark.parametrize("arm", ARMS)
def test_documents_of_a_batch_do_not_meet(arm: str) -> None:
    model, ids = decoder(arm), tokens(3)
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[0][1:2], model(ids[1:2])[0], **CLOSE)


@pytest.mark.parametrize("arm", ARMS)
def test_a_call_without_state_starts_new_documents(arm: str) -> None:
    model, ids = decoder(arm), tokens()
    with torch.no_grad():
        before = model(ids)[0]
        model(tokens(3, 17, seed=8))
        assert torch.equal(model(ids)[0], before)


def test_a_state_can_be_continued_twice() -> None:
    model, ids = decoder("infini-delta"), tokens()
    with torch.no_grad():
        _, state = model(ids[:, :11])
        first = model(ids[:, 11:], state)[0]
        model(tokens(3, 9, seed=4), state)
        assert torch.equal(model(ids[:, 11:], state)[0], first)


LIKE_FULL = ("infini-linear", "infini-delta", "local", "window", "xl", "full", "compressive", "memorizing")


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm in LIKE_FULL])
def test_one_segment_holding_everything_is_full_attention(arm: str) -> None:
    """N >= T: nothing is ever read from memory, so with the same weights these arms are the vanilla decoder. (The
    others attend otherwise within a segment, or put vectors of their own into it.)"""
    reference, model, ids = decoder("full"), decoder(arm, segment_length=32), tokens()
    model.load_state_dict(reference.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[0], reference(ids)[0], **CLOSE)


def test_infini_with_closed_gate_is_local() -> None:
    model, local, ids = decoder("infini-delta"), decoder("local"), tokens()
    local.load_state_dict({k: v for k, v in model.state_dict().items() if "beta" not in k})
    with torch.no_grad():
        torch.testing.assert_close(model(ids, None, "gate_closed")[0], local(ids)[0], **CLOSE)
        for beta in model.gate_parameters():
            beta.fill_(-60)
        torch.testing.assert_close(model(ids)[0], local(ids)[0], **CLOSE)


@pytest.mark.parametrize("arm", ["infini-linear", "infini-delta"])
@pytest.mark.parametrize("empty_memory", ["bypass", "literal"])
def test_infini_layer_is_the_papers_equations(arm: str, empty_memory: str) -> None:
    """One layer against a segment loop written from the equations: head by head, memory per key/value head, RoPE on
    the local part only."""
    model = decoder(arm, empty_memory=empty_memory, feature_map="elu1")
    mixer = model.mixers()[1]
    x = torch.randn(2, 3 * N, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    heads, kv, d = 4, 2, 4
    q, k, v = (p(x).view(2, 3 * N, -1, d) for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    cos, sin = model.rope.table(100, 3 * N, x.device, x.dtype)  # any offset: attention is relative
    rq, rk = rotate(q, cos, sin), rotate(k, cos, sin)
    rows = []
    for h in range(heads):
        j, g = h // (heads // kv), torch.sigmoid(mixer.beta[h])
        state, parts = empty(2, 1, d, d, dtype=torch.float64), []
        for s in range(3):
            at = slice(s * N, (s + 1) * N)
            scores = rq[:, at, h] @ rk[:, at, j].transpose(-1, -2) / d**0.5
            scores = scores.masked_fill(~torch.ones(N, N).tril().bool(), -torch.inf)
            dot = scores.softmax(-1) @ v[:, at, j]
            mem = read(state, feature_map("elu1", q[:, at, h]).unsqueeze(1), 1e-6).squeeze(1)
            bypass = empty_memory == "bypass" and s == 0
            parts.append(dot if bypass else g * mem + (1 - g) * dot)
            keys, values = feature_map("elu1", k[:, at, j]).unsqueeze(1), v[:, at, j].unsqueeze(1)
            state = write(state, keys, values, ARMS[arm]["rule"], 1e-6)
        rows.append(torch.cat(parts, 1))
    expected = mixer.o_proj(torch.stack(rows, 2).flatten(2))
    found, _ = mixer(x, None, position=0, rope=model.rope)
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("arm", ARMS)
def test_grouped_queries_equal_their_expansion(arm: str) -> None:
    """Query head h uses key/value head h // 2: writing that out as four heads changes nothing."""
    grouped, ids = decoder(arm), tokens()
    expanded = decoder(arm, trunk={"kv_heads": 4})
    weights = grouped.state_dict()
    for name, whole in expanded.state_dict().items():
        if whole.shape != weights[name].shape:  # what belongs to the key/value heads: projections, write strengths
            weights[name] = split_axis(weights[name], 0, 2, -1).repeat_interleave(2, 0).reshape(whole.shape)
    expanded.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(expanded(ids)[0], grouped(ids)[0], **CLOSE)


def test_window_sees_exactly_the_last_n_tokens() -> None:
    model, ids = decoder("window", trunk={"layers": 1}), tokens(1)
    with torch.no_grad():
        expected = model(ids)[0]
        for t in (7, 8, 13, 28):
            start = max(0, t - N + 1)
            torch.testing.assert_close(model(ids[:, start : t + 1])[0][:, -1], expected[:, t], **CLOSE)


def test_xl_sees_the_previous_segment_without_gradient_into_it() -> None:
    """One layer: segment s is full attention over segments s-1 and s; its loss reaches W_k of the cached tokens but
    not their embeddings."""
    model, ids = decoder("xl", trunk={"layers": 1, "tie_embeddings": False}), tokens(1, 24)
    full = decoder("full", trunk={"layers": 1, "tie_embeddings": False})
    full.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(ids)[0][:, 16:], full(ids[:, 8:])[0][:, 8:], **CLOSE)

    ids = torch.arange(24).unsqueeze(0)
    model.nll(ids)[:, 16:].sum().backward()
    full.nll(ids[:, 8:])[:, 8:].sum().backward()
    touched = model.embed_tokens.weight.grad.abs().sum(1) > 0
    assert touched[16:23].all() and not touched[:16].any()
    for name in ("k_proj", "v_proj"):
        ours, theirs = (getattr(m.mixers()[0], name).weight.grad for m in (model, full))
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("arm", ARMS)
def test_loss_is_the_mean_nll_of_every_target_the_boundary_ones_too(arm: str) -> None:
    model, ids = decoder(arm), tokens()
    with torch.no_grad():
        logits = model(ids)[0]
        expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(3, 28)
        torch.testing.assert_close(model.nll(ids), expected, **CLOSE)
        mask = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5
        torch.testing.assert_close(model.loss(ids, mask), expected[mask[:, 1:]].mean(), **CLOSE)
        torch.testing.assert_close(model.loss(ids), expected.mean(), **CLOSE)


def test_a_batch_of_padding_has_loss_zero_and_zero_gradients() -> None:
    model, ids = decoder(), tokens()
    loss = model.loss(ids, torch.zeros_like(ids, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters() if p.grad is not None)


def test_chunked_vocabulary_projection_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = decoder(), tokens()
    model.loss(ids).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    nll = model.nll(ids)
    model.zero_grad()
    monkeypatch.setattr(decoder_module, "LOGITS_AT_ONCE", 5 * 3 * VOCAB)
    torch.testing.assert_close(model.nll(ids), nll, **CLOSE)
    model.loss(ids).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("arm", ARMS)
def test_activation_checkpointing_changes_no_gradient(arm: str) -> None:
    model, ids = decoder(arm).train(), tokens()
    gradients = []
    for model.activation_checkpointing in (False, True):
        model.zero_grad()
        model.loss(ids).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


DETACHED = ("xl", "compressive", "memorizing")  # what they carry from chunk to chunk passes no gradient


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_long_sequence_trains_in_chunks_with_exact_gradients(arm: str, recompute: bool) -> None:
    model, ids = decoder(arm), tokens(2)
    mask = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    gradients, losses = [], []
    for model.chunk_tokens, model.activation_checkpointing in ((None, False), (N, recompute), (11, recompute)):
        model.zero_grad()
        losses.append(model.loss(ids, mask))
        losses[-1].backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for loss, found in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], **CLOSE)
        assert found.keys() == gradients[0].keys()
        if arm not in DETACHED:
            for name, gradient in found.items():
                torch.testing.assert_close(gradient, gradients[0][name], **CLOSE)
    with torch.no_grad():
        torch.testing.assert_close(model.nll(ids)[:, 3:], model.nll(ids[:, 3:], model(ids[:, :3])[1]), **CLOSE)


@pytest.mark.parametrize("arm", ["infini-linear", "infini-delta"])
def test_gates_learn_from_the_start_and_towards_memory_when_it_helps(arm: str) -> None:
    """At beta = 0 every head's gradient is alive, and g rises where opening it lowers the loss."""
    model, ids = Decoder(config(arm), seed=0).double(), tokens()
    assert torch.equal(model.gates(), torch.full((2, 4), 0.5))
    loss = model.loss(ids)
    loss.backward()
    gradients = [beta.grad for beta in model.gate_parameters()]
    assert all((g.abs() > 1e-9).all() for g in gradients)
    with torch.no_grad():
        beta = model.gate_parameters()[0]
        beta[1] += 1e-5
        slope = (model.loss(ids) - loss) / 1e-5
        torch.testing.assert_close(slope, gradients[0][1], rtol=1e-3, atol=1e-9)
        beta[1] = 60
        assert model.gates()[0, 1].item() == 1  # beta up = memory up
    assert decoder("local").gates() is None


@pytest.mark.parametrize("rule", ["infini-linear", "infini-delta"])
def test_memory_stays_float32_under_bfloat16_autocast(rule: str) -> None:
    model, ids = Decoder(config(rule), seed=0), tokens()
    expected = model.nll(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = model.hidden(ids)
        loss = model.loss(ids)
    loss.backward()
    memory = state.layers[0].memory
    assert memory is not None and memory.M.dtype == memory.z.dtype == torch.float32
    assert state.layers[0].live is not None and state.layers[0].live.k.dtype == torch.bfloat16
    assert model.gate_parameters()[0].grad.dtype == torch.float32
    assert abs(loss.item() - expected.mean().item()) < 0.02


@pytest.mark.parametrize("arm", ["infini-linear", "infini-delta"])
def test_the_memory_does_not_see_positions(arm: str) -> None:
    """Other rotations, the same memory: keys are written, and queries read, before RoPE."""
    model, other, ids = (
        decoder(arm, trunk={"layers": 1}),
        decoder(arm, trunk={"layers": 1, "rope_theta": 7.0}),
        tokens(),
    )
    other.load_state_dict(model.state_dict())
    mixer, states = model.mixers()[0], []
    with torch.no_grad():
        assert (model(ids)[0] - other(ids)[0]).abs().max() > 1e-6
        for m in (model, other):
            _, state = m(ids)
            states.append(state.layers[0].memory)
        assert torch.equal(states[0].M, states[1].M) and torch.equal(states[0].z, states[1].z)
        mixer.beta.fill_(60)  # memory alone: nothing that RoPE touched is left from the second segment on
        other.mixers()[0].beta.fill_(60)
        torch.testing.assert_close(model(ids)[0][:, N:], other(ids)[0][:, N:], **CLOSE)


@pytest.mark.parametrize("arm", ["infini-linear", "infini-delta"])
def test_an_unfinished_segment_writes_nothing_and_reads_come_before_writes(arm: str) -> None:
    """A part of a segment in memory would make the delta rule explode later; and a token must not read itself."""
    model, ids = decoder(arm, trunk={"layers": 1}), tokens()
    other = ids.clone()
    other[:, 2 * N + 3] = (other[:, 2 * N + 3] + 1) % VOCAB
    with torch.no_grad():
        at_border, later = (model(ids[:, :length])[1].layers[0].memory for length in (2 * N, 3 * N - 1))
        assert torch.equal(at_border.M, later.M) and torch.equal(at_border.z, later.z)
        model.mixers()[0].beta.fill_(60)  # reads alone
        changed = (model(ids)[0] - model(other)[0]).abs().amax((0, 2)) > 1e-9
    own = torch.arange(29) == 2 * N + 3  # its own query changed
    assert torch.equal(changed[: 3 * N], own[: 3 * N]) and changed[3 * N :].all()


def test_state_is_bounded_and_counts_its_parts() -> None:
    model = decoder("infini-linear")
    with torch.no_grad():
        states = [model(tokens(2, length))[1] for length in (N - 1, 3 * N, 9 * N + 5)]
    memory = 2 * 2 * 2 * (4 * 4 + 4)  # batch, layers, key/value heads, M and z
    assert [s.elements() for s in states] == [0, memory, memory]
    assert [s.bytes() for s in states] == [0, 8 * memory, 8 * memory]
    per_token = 2 * 2 * 2 * 2 * 4  # batch, layers, heads, K and V, size
    assert [s.live_kv_elements() for s in states] == [7 * per_token, 0, 5 * per_token]
    assert states[2].live_kv_bytes() == 8 * 5 * per_token
    cut = states[2].detach()
    assert cut.elements() == memory and cut.position == 9 * N + 5


def test_seed_fixes_the_weights_whatever_the_global_generator_did() -> None:
    torch.manual_seed(1)
    a = Decoder(config(), seed=7).state_dict()
    torch.manual_seed(2)
    b = Decoder(config(), seed=7).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["embed_tokens.weight"], Decoder(config(), seed=8).state_dict()["embed_tokens.weight"])


def test_monitor_reports_the_memory_it_saw() -> None:
    model, ids = decoder("infini-delta", trunk={"layers": 1}), tokens(2, 4 * N)
    numbers = model.monitor(ids)
    mixer, x = model.mixers()[0], model.layers[0].input_layernorm(model.embed_tokens(ids))
    q, k, v = mixer.project(x)
    state, norms, divisors, eigenvalues = empty(2, 2, 4, 4, dtype=torch.float64), [], [], []
    for s in range(4):
        at = slice(s * N, (s + 1) * N)
        phi_q = feature_map("elu1", q[:, at]).transpose(1, 2)
        phi = feature_map("elu1", k[:, at]).transpose(1, 2)
        if s:
            divisors.append((phi_q * state.z.repeat_interleave(2, 1).unsqueeze(2)).sum(-1).min())
            erase = phi[0].transpose(-1, -2) @ (phi[0] / (phi[0] @ state.z[0].unsqueeze(-1) + 1e-6))
            eigenvalues.append(torch.linalg.eigvalsh(erase).max())
        state = write(state, phi, v[:, at].transpose(1, 2), "delta", 1e-6)
        norms.append(state.M.norm(dim=(-2, -1)).max())
    assert numbers["memory_norm"] == pytest.approx(max(norms).item())
    assert numbers["z_min"] == pytest.approx(min(divisors).item())
    assert numbers["erase_lambda_max"] == pytest.approx(max(eigenvalues).item(), rel=1e-3)
    assert numbers["gate_max"] == pytest.approx(torch.sigmoid(torch.tensor(1.5)).item())
    assert decoder("xl").monitor(ids) == {}
    assert set(model.monitor(ids[:, :N])) == {"gate_mean", "gate_min", "gate_max"}


def test_a_decoder_survives_copy_and_pickle() -> None:
    model, ids = decoder("infini-delta"), tokens()
    with torch.no_grad():
        expected = model(ids)[0]
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(ids)[0], expected)


@pytest.mark.parametrize("arm", ARMS)
def test_rows_of_a_state_go_on_as_those_documents_do(arm: str) -> None:
    model, ids, rows = decoder(arm), tokens(), torch.tensor([2, 0, 0])
    with torch.no_grad():
        _, state = model(ids[:, :21])
        expected, _ = model(ids[:, 21:], state)
        found, _ = model(ids[rows, 21:], state.rows(rows))
    torch.testing.assert_close(found, expected[rows], rtol=0, atol=1e-12)
    assert state.rows(rows).elements() == state.elements()


@pytest.mark.parametrize("arm", ["infini-delta", "rmt", "landmark"])
def test_embedded_tokens_are_read_as_the_tokens_are(arm: str) -> None:
    model, ids = decoder(arm), tokens()
    with torch.no_grad():
        assert torch.equal(model.hidden(model.embed_tokens(ids))[0], model.hidden(ids)[0])


class Adapter(torch.nn.Module):
    """A projection with a low-rank addition, as peft makes them: ``weight`` alone does not tell what it computes."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base, self.weight = base, base.weight
        self.down = torch.nn.Linear(base.in_features, 2, bias=False, dtype=base.weight.dtype)
        self.up = torch.nn.Linear(2, base.out_features, bias=False, dtype=base.weight.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("arm", ARMS)
def test_adapters_of_the_projections_learn(arm: str) -> None:
    model = decoder(arm).train()
    adapters = {}
    for number, mixer in enumerate(model.mixers()):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            adapters[number, name] = Adapter(getattr(mixer, name))
            setattr(mixer, name, adapters[number, name])
    model.loss(tokens()).backward()
    for place, adapter in adapters.items():
        assert adapter.up.weight.grad is not None and adapter.up.weight.grad.abs().sum() > 0, place
