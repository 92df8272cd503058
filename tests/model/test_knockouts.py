"""What each knock-out removes, in one pass and when streaming."""

from __future__ import annotations

import pytest
import torch

from model.decoder import Knockout
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


@pytest.mark.parametrize("arm", ["local", "window", "xl", "full"])
def test_arms_without_a_memory_refuse_knockouts(arm: str) -> None:
    model, ids = decoder(arm), tokens()
    with pytest.raises(ValueError, match=r"knockout = 'reset'.*infini"):
        model(ids, None, "reset")
    with pytest.raises(ValueError, match="'typo'"):
        model(ids, None, "typo")
