"""``pretrain.carry_memory``: training against a loop over rows, against long documents, stopped and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from model.checkpoint import graft
from model.decoder import DecoderState
from stages.stage import Execution, StageError
from stages.training.pretrain import optim
from stages.training.pretrain.config import PromptPhase
from stages.training.pretrain.data import TokenRows, Windows
from stages.training.pretrain.mixture import Batches, loss_weights
from stages.training.pretrain.recipe import check_execution, of_pretrain
from tests.stages.pretraining import LENGTH, SEGMENT, make_inputs, pretrain_config
from tests.stages.test_pretrain import Run, stop
from tests.support import LocalArtifact

DOCUMENTS = (5, 1, 3, 2, 9)
ARMS: dict[str, dict[str, Any]] = {
    "infini-delta": {"rule": "delta"},
    "window": {"kind": "window"},
    "rmt": {"kind": "rmt", "memory_tokens": 2, "bptt_segments": 3},
    "compressive": {"kind": "compressive", "compressed_tokens": 12},
    "memorizing": {"kind": "memorizing", "cache_tokens": 50, "top_k": 4},
    "deltanet": {"kind": "deltanet"},
}
SOME = ["infini-delta", "window"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalArtifact]:
    return make_inputs(tmp_path_factory.mktemp("inputs"), DOCUMENTS)


def carrying(arm: str = "infini-delta", **changes: Any) -> Any:
    mixture = {"order": "documents", **changes.pop("mixture", {})}
    return pretrain_config(ARMS[arm], **{"carry_memory": True, "mixture": mixture, "steps": 8, **changes})


def batches_of(config: Any, inputs: dict[str, LocalArtifact]) -> Batches:
    return Batches(of_pretrain(config), Windows(TokenRows(inputs["tokens"].path("train")), LENGTH))


def by_rows(config: Any, inputs: dict[str, LocalArtifact]) -> list[float]:
    """The losses of a loop as one would first write it: row after row, each with its own state."""
    model = graft(inputs["base"].path("model"), config.mixer, seed=config.seed).train()
    rates = {"lr": config.lr, "gate_lr": config.gate_lr, "weight_decay": config.weight_decay}
    optimizers = optim.build_all(model, config.optimizer, **rates)
    batches, states, losses = batches_of(config, inputs), dict[int, DecoderState](), []
    for step in range(config.steps):
        batch = batches[step]
        piece = of_pretrain(config).length_at(step)
        weights = torch.from_numpy(loss_weights(batch, piece)[0])
        if piece < LENGTH:
            states = {}
        total, auxiliary = torch.zeros(()), torch.zeros(())
        for row, tokens in enumerate(torch.from_numpy(batch.tokens)):
            for part, weight in zip(tokens.split(piece), weights[row].split(piece), strict=True):
                logits, after = model(part[None], states.get(row) if batch.continues[row] else None)
                nll = nn.functional.cross_entropy(logits[0, :-1], part[1:], reduction="none")
                total = total + (nll * weight[1:]).sum()
                extra = [layer.auxiliary for layer in after.layers if layer.auxiliary is not None]
                auxiliary = auxiliary + sum(extra) / len(batch.tokens)
                if piece == LENGTH:
                    states[row] = after.detach()
        model.zero_grad()
        (total + auxiliary).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        factor = optim.schedule(step, steps=config.steps, warmup_steps=0, kind="cosine", least=config.min_lr_share)
        for optimizer in optimizers:
            optim.set_lr(optimizer, factor)
            optimizer.step()
        losses.append(total.item())
    return losses


def losses(run: Run) -> list[float]:
    return [loss for (loss,) in run.log("loss")]


@pytest.mark.parametrize("arm", ARMS)
def test_training_is_that_of_a_loop_over_rows_with_their_states(
    inputs: dict[str, LocalArtifact], tmp_path: Path, arm: str
) -> None:
    config = carrying(arm)
    trained = losses(Run(inputs, tmp_path / "carried", config)())
    assert trained == pytest.approx(by_rows(config, inputs), rel=1e-4)
    anew = losses(Run(inputs, tmp_path / "anew", config.model_copy(update={"carry_memory": False}))())
    continues = [bool(batches_of(config, inputs)[step].continues.any()) for step in range(config.steps)]
    assert trained[0] == anew[0] and any(continues)
    assert abs(trained[1] - anew[1]) > 1e-4


@pytest.mark.parametrize("arm", SOME)
def test_while_text_is_read_in_pieces_nothing_is_carried(
    inputs: dict[str, LocalArtifact], tmp_path: Path, arm: str
) -> None:
    phases = [
        {"until": end, "share": 0.0, "length": LENGTH, "text_length": length}
        for end, length in ((0.3, None), (0.5, SEGMENT), (1.0, LENGTH))
    ]
    config = carrying(arm, mixture={"prompts": phases}, steps=10, checkpoint_every=3)
    whole = Run(inputs, tmp_path / "whole", config)()
    assert losses(whole) == pytest.approx(by_rows(config, inputs), rel=1e-4)
    recipe = of_pretrain(config)
    assert [recipe.whole_before(step) for step in (0, 2, 5, 6, 9)] == [0, 2, 0, 1, 4]
    stop(inputs, tmp_path / "stopped", 7, config)
    assert Run(inputs, tmp_path / "stopped", config)().weights() == whole.weights()
    grown = carrying(arm, curriculum_share=0.5)
    assert losses(Run(inputs, tmp_path / "grown", grown)()) == pytest.approx(by_rows(grown, inputs), rel=1e-4)


def test_at_rest_every_loss_is_that_of_the_document_as_one_long_sequence(
    inputs: dict[str, LocalArtifact], tmp_path: Path
) -> None:
    config = carrying(lr=1e-30, gate_lr=1e-30, weight_decay=0.0)
    trained, batches = losses(Run(inputs, tmp_path, config, micro_batch=1)()), batches_of(config, inputs)
    model = graft(inputs["base"].path("model"), config.mixer, seed=config.seed)
    rows = Windows(TokenRows(inputs["tokens"].path("train")), LENGTH)
    for step, loss in enumerate(trained):
        batch = batches[step]
        weights = loss_weights(batch, LENGTH)[0][:, 1:]
        expected = 0.0
        for row, (last, before) in enumerate(zip(batch.ids, batch.before, strict=True)):
            document = rows.batch(np.arange(last - before, last + 1))[0].reshape(1, -1)
            with torch.no_grad():
                expected += (model.nll(torch.from_numpy(document))[0, 1 - LENGTH :].numpy() * weights[row]).sum()
        assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("arm", SOME)
def test_micro_batches_pieces_and_recomputation_change_nothing(
    inputs: dict[str, LocalArtifact], tmp_path: Path, arm: str
) -> None:
    whole = losses(Run(inputs, tmp_path / "whole", carrying(arm))())
    for name, changes, execution in (
        ("micro", {}, {"micro_batch": 1}),
        ("recomputed", {}, {"recompute_activations": True}),
        ("pieces", {"chunk_tokens": 2 * SEGMENT}, {}),
    ):
        run = Run(inputs, tmp_path / name, carrying(arm, **changes), **execution)()
        assert losses(run) == pytest.approx(whole, rel=1e-4), name


@pytest.mark.parametrize("arm", [*SOME, "memorizing", "compressive"])
@pytest.mark.parametrize("background", [False, True])
def test_a_stopped_run_goes_on_with_what_it_carried_to_the_same_bits(
    inputs: dict[str, LocalArtifact], tmp_path: Path, arm: str, background: bool
) -> None:
    config, options = carrying(arm, checkpoint_every=3), {"async_checkpoints": background}
    whole = Run(inputs, tmp_path / "whole", config, **options)()
    stop(inputs, tmp_path / "stopped", 7, config)
    again = Run(inputs, tmp_path / "stopped", config, **options)()
    assert losses(again) == losses(whole) and again.weights() == whole.weights()


def test_prompts_begin_anew_among_rows_that_go_on(inputs: dict[str, LocalArtifact]) -> None:
    from stages.training.pretrain.carry import Carried

    phases = [{"until": 1.0, "share": 0.25, "length": SEGMENT}]
    config = carrying(mixture={"prompts": phases})

    def answers(phase: PromptPhase, count: int, first: int) -> Any:
        return np.full((count, phase.length), 5, np.int32), np.ones((count, phase.length), np.uint8)

    rows = Windows(TokenRows(inputs["tokens"].path("train")), LENGTH)
    batches = Batches(of_pretrain(config), rows, answers)
    model = graft(inputs["base"].path("model"), config.mixer, seed=0)
    carried = Carried(model)
    for step in range(3):
        batch = batches[step]
        groups = carried.groups(batch)
        assert (groups[batch.answers] == -1).all() and set(groups[~batch.answers]) <= {0, 1}
        for group in np.unique(groups):
            members = np.flatnonzero(groups == group)
            carried.nll(batch, members, torch.from_numpy(batch.tokens[members]), None, z_loss=0.0)
    assert {int(name.split(".")[1]) for name in carried.to_tensors()} == set(np.flatnonzero(~batch.answers).tolist())


def test_half_precision_carries_too(inputs: dict[str, LocalArtifact], tmp_path: Path) -> None:
    plain = losses(Run(inputs, tmp_path / "fp32", carrying())())
    assert losses(Run(inputs, tmp_path / "bf16", carrying(dtype="bf16"))()) == pytest.approx(plain, rel=0.02)


@pytest.mark.parametrize(
    ("mixer", "changes", "message"),
    [
        ({}, {"mixture": {}}, r"carry_memory = True: with mixture\.order = 'shuffled' no sequence follows"),
        (
            {"kind": "full"},
            {},
            r"carry_memory = True: kind = 'full': what it holds grows with the book \(allowed: infin",
        ),
        ({"kind": "landmark", "block_tokens": 4}, {}, "kind = 'landmark': what it holds grows"),
        ({"kind": "memorizing", "cache_tokens": None}, {}, "cache_tokens = None: kind = 'memorizing' then keeps all"),
        (
            {},
            {
                "mixture": {
                    "order": "documents",
                    "prompts": [{"until": 1.0, "share": 0.0, "length": LENGTH, "text_length": SEGMENT}],
                }
            },
            r"mixture\.prompts: text_length = \[16\]: has no effect where text is never read in whole sequences of 64",
        ),
    ],
)
def test_where_nothing_can_be_carried_it_is_refused(
    mixer: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    fields = {"carry_memory": True, "mixture": {"order": "documents"}} | changes
    with pytest.raises(ValidationError, match=message):
        pretrain_config(mixer, **fields)


def test_ranks_that_share_a_sequence_cannot_carry_it() -> None:
    config = carrying()
    with pytest.raises(StageError, match=r"sequence_parallel = 2: .*carry_memory"):
        check_execution(of_pretrain(config), config.mixer, Execution(train_workers=2, sequence_parallel=2))


def test_the_option_left_alone_moves_no_key() -> None:
    assert "carry_memory" not in pretrain_config().key_fields() and carrying().key_fields()["carry_memory"] is True
