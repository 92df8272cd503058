"""What each knock-out removes, in one pass and when streaming."""

from __future__ import annotations

import pytest
import torch

from model.decoder import HeadKnockout, Knockout
from tests.model.test_decoder import CLOSE, stream
from tests.model.tiny import N, decoder, tokens

INFINI = ["infini-linear", "infini-delta"]


@pytest.mark.parametrize("arm", INFINI)
@pytest.mark.parametrize("knockout", list(Knockout))
def test_streaming_equals_one_pass_under_every_knockout(arm: str, knockout: Knockout) -> None:
    model, ids = decoder(arm), tokens()
    with torch.no_grad():
        expected = model(ids, None, knockout)[0]
        for sizes in ([5, 1, 12, 11], [1] * 29, [8, 16, 5]):
            torch.testing.assert_close(stream(model, ids, sizes, knockout)[0], expected, **CLOSE)


@pytest.mark.parametrize("arm", INFINI)
def test_knockouts_differ_from_each_other_and_leave_the_first_segment_alone(arm: str) -> None:
    model, ids = decoder(arm), tokens()
    with torch.no_grad():
        logits = {k: model(ids, None, k)[0] for k in Knockout}
    for name, y in logits.items():
        torch.testing.assert_close(y[:, :N], logits[Knockout.none][:, :N], **CLOSE)
        for other, z in logits.items():
            if other != name:
                assert (y[:, 2 * N :] - z[:, 2 * N :]).abs().max() > 1e-4, (name, other)


@pytest.mark.parametrize("arm", INFINI)
def test_reset_reads_the_previous_segment_and_nothing_older(arm: str) -> None:
    """One layer: from segment 2 on, the outputs are those of a document that began one segment earlier."""
    model, ids = decoder(arm, trunk={"layers": 1}), tokens()
    with torch.no_grad():
        knocked, plain = model(ids, None, "reset")[0], model(ids)[0]
        torch.testing.assert_close(knocked[:, : 2 * N], plain[:, : 2 * N], **CLOSE)
        torch.testing.assert_close(knocked[:, 2 * N : 3 * N], model(ids[:, N:])[0][:, N : 2 * N], **CLOSE)
        torch.testing.assert_close(knocked[:, 3 * N :], model(ids[:, 2 * N :])[0][:, N:], **CLOSE)


@pytest.mark.parametrize("arm", INFINI)
def test_swap_reads_the_neighbours_memory(arm: str) -> None:
    """One layer: identical documents notice nothing; different ones read what the row before them wrote."""
    model, ids = decoder(arm, trunk={"layers": 1}), tokens(2, 2 * N)
    twins = ids[:1].repeat(2, 1)
    with torch.no_grad():
        torch.testing.assert_close(model(twins, None, "swap")[0], model(twins)[0], **CLOSE)
        mixed = torch.cat([ids[[1, 0], :N], ids[:, N:]], dim=1)  # the neighbour's first segment, the own second one
        torch.testing.assert_close(model(ids, None, "swap")[0][:, N:], model(mixed)[0][:, N:], **CLOSE)
        with pytest.raises(ValueError, match="batch of 1"):
            model(ids[:1], None, "swap")


def test_zero_read_keeps_the_trained_gate() -> None:
    """A_mem = 0 at unchanged g scales the local part by 1 - g; at g = 0 it is gate_closed."""
    model, ids = decoder(), tokens()
    with torch.no_grad():
        for beta in model.gate_parameters():
            beta.fill_(-60)
        torch.testing.assert_close(model(ids, None, "zero_read")[0], model(ids, None, "gate_closed")[0], **CLOSE)


def test_a_knockout_can_begin_after_the_context_was_read() -> None:
    model, ids = decoder(), tokens()
    with torch.no_grad():
        _, state = model(ids[:, :16], None, "gate_closed")
        _, plain = model(ids[:, :16])
        assert state.elements() == plain.elements() > 0


OF_A_HEAD = [Knockout.gate_closed, Knockout.swap, Knockout.zero_read]


@pytest.mark.parametrize("arm", INFINI)
@pytest.mark.parametrize("kind", OF_A_HEAD)
def test_streaming_equals_one_pass_with_one_head_knocked_out(arm: str, kind: Knockout) -> None:
    model, ids = decoder(arm), tokens()
    knockout = HeadKnockout(kind, 1, 0)
    with torch.no_grad():
        expected = model(ids, None, knockout)[0]
        torch.testing.assert_close(stream(model, ids, [5, 1, 12, 11], knockout)[0], expected, **CLOSE)
        torch.testing.assert_close(expected[:, :N], model(ids)[0][:, :N], **CLOSE)


@pytest.mark.parametrize("kind", OF_A_HEAD)
def test_a_head_that_carries_all_costs_all_and_one_that_carries_nothing_costs_nothing(kind: Knockout) -> None:
    """Where the gates of all heads but one are shut, knocking that one out is knocking the whole memory out."""
    model, ids = decoder(), tokens()
    trunk = model.config.trunk
    carrier = (1, trunk.heads - 1)
    with torch.no_grad():
        for layer, beta in enumerate(model.gate_parameters()):
            for head in range(trunk.heads):
                beta[head] = 2.0 if (layer, head) == carrier else -60.0
        plain, whole = model(ids)[0], model(ids, None, kind)[0]
        assert (whole - plain).abs().max() > 1e-3
        for layer in range(trunk.layers):
            for head in range(trunk.heads):
                expected = whole if (layer, head) == carrier else plain
                torch.testing.assert_close(model(ids, None, HeadKnockout(kind, layer, head))[0], expected, **CLOSE)


def test_every_head_of_one_layer_knocked_out_is_the_knockout_of_that_layer() -> None:
    """One layer: the heads' outputs are added up, so that what each costs adds up to what all cost."""
    model = decoder(trunk={"layers": 1})
    mixer = model.mixers()[0]
    x = torch.randn(2, 3 * N, model.config.trunk.dim, dtype=torch.float64)
    with torch.no_grad():
        plain, _ = mixer(x, None, position=0, rope=model.rope)
        whole, _ = mixer(x, None, position=0, rope=model.rope, knockout=Knockout.swap)
        single = [
            mixer(x, None, position=0, rope=model.rope, knockout=HeadKnockout(Knockout.swap, 0, head))[0] - plain
            for head in range(model.config.trunk.heads)
        ]
    torch.testing.assert_close(sum(single), whole - plain, **CLOSE)


@pytest.mark.parametrize("kind", OF_A_HEAD)
def test_a_layer_knocked_out_alone_is_all_of_its_heads_and_no_other_layer(kind: Knockout) -> None:
    model, ids = decoder(), tokens()
    with torch.no_grad():
        plain = model(ids)[0]
        assert (model(ids, None, HeadKnockout(kind, 1, None))[0] - plain).abs().max() > 1e-4
        list(model.gate_parameters())[1].fill_(-60.0)  # nothing of layer 1 is read: knocking it out changes nothing
        torch.testing.assert_close(model(ids, None, HeadKnockout(kind, 1, None))[0], model(ids)[0], **CLOSE)
    single = decoder(trunk={"layers": 1})
    with torch.no_grad():
        torch.testing.assert_close(
            single(ids, None, HeadKnockout(kind, 0, None))[0], single(ids, None, kind)[0], **CLOSE
        )


def test_knockouts_of_a_head_that_cannot_be_are_refused() -> None:
    model, ids = decoder(), tokens()
    with pytest.raises(ValueError, match="allowed are gate_closed, swap and zero_read"):
        HeadKnockout(Knockout.reset, 0, 0)
    with pytest.raises(ValueError, match="layer 9, head 0: allowed are layers 0 to"):
        model(ids, None, HeadKnockout(Knockout.swap, 9, 0))
    with pytest.raises(ValueError, match=r"knockout = 'swap'.*infini"):
        decoder("local")(ids, None, HeadKnockout(Knockout.swap, 0, 0))


@pytest.mark.parametrize("arm", ["local", "window", "xl", "full"])
def test_arms_without_a_memory_refuse_knockouts(arm: str) -> None:
    model, ids = decoder(arm), tokens()
    with pytest.raises(ValueError, match=r"knockout = 'reset'.*infini"):
        model(ids, None, "reset")
    with pytest.raises(ValueError, match="'typo'"):
        model(ids, None, "typo")
