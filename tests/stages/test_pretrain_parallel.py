"""The loop on several gloo ranks without Ray: FSDP2, sequences that ranks share, resume points; all equal one rank."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from pydantic import ValidationError

from stages.stage import Execution, StageError
from stages.training.pretrain import recipe, worker
from stages.training.pretrain.recipe import check_execution
from stages.training.pretrain.worker import TrainingJob
from tests.model.ranks import on_ranks
from tests.stages.pretraining import LENGTH, make_inputs, pretrain_config
from tests.support import LocalArtifact

PHASES = (
    {"until": 0.5, "share": 0.0, "length": LENGTH, "text_length": LENGTH // 2},
    {"until": 1.0, "share": 0.0, "length": LENGTH},
)
CARRIED = {"carry_memory": True, "mixture": {"order": "documents"}, "steps": 5}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "sharded": ({"rule": "delta"}, {}, {"micro_batch": 1}),
    "sequences shared": ({"rule": "delta"}, {"mixture": {"prompts": PHASES}}, {"sequence_parallel": 2}),
    "window shared": ({"kind": "window"}, {"steps": 3}, {"sequence_parallel": 2, "recompute_activations": True}),
    "z-loss": ({"rule": "linear"}, {"steps": 3, "z_loss": 0.01}, {"sequence_parallel": 2}),
    "muon": ({}, {"steps": 3, "optimizer": "muon"}, {"async_checkpoints": True}),
    "an arm that cannot": ({"kind": "xl"}, {"steps": 3}, {"sequence_parallel": 2}),
    "carried": ({"rule": "delta"}, CARRIED, {"micro_batch": 1}),
    "carried window": ({"kind": "window"}, CARRIED, {}),
}
"""Mixer, changes of the recipe, execution."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalArtifact]:
    return make_inputs(tmp_path_factory.mktemp("inputs"), documents=(4, 1, 3, 6))


def train(
    name: str, folder: Path, inputs: dict[str, LocalArtifact], rank: int, size: int, **others: Any
) -> list[dict[str, Any]]:
    """The rows of the log."""
    mixer, changes, execution = RUNS[name]
    execution = execution | others
    config = pretrain_config(mixer, **{"steps": 6, "checkpoint_every": 2, **changes})
    if size == 1:
        execution = {key: value for key, value in execution.items() if key not in ("sequence_parallel",)}
    job = TrainingJob(
        recipe=recipe.of_pretrain(config),
        work_url=str(folder / name),
        execution=Execution(train_workers=size, **execution),
        mixer=config.mixer,
        **inputs,
    )
    rows: list[dict[str, Any]] = []
    worker.run(job, rank, size, on_row=rows.append, on_warning=print)
    return rows


def everything(folder: Path, inputs: dict[str, LocalArtifact]) -> dict[str, list[dict[str, Any]]]:
    """Every run on the ranks of the default group, and one of them again from its last resume point."""
    rank, size = dist.get_rank(), dist.get_world_size()
    rows = {name: train(name, folder, inputs, rank, size) for name in RUNS}
    dist.barrier()
    rows["again"] = train("sequences shared", folder, inputs, rank, size)
    for name in ("carried", "carried window"):
        rows[f"{name} again"] = train(name, folder, inputs, rank, size)
    return rows


@pytest.fixture(scope="module")
def on_two(inputs: dict[str, LocalArtifact], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("two")
    return folder, on_ranks(2, everything, folder, inputs)


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_train_as_one(on_two: Any, inputs: dict[str, LocalArtifact], tmp_path: Path, name: str) -> None:
    alone = train(name, tmp_path, inputs, 0, 1)
    folder, ranks = on_two
    for rows in (rank[name] for rank in ranks):
        assert [row["step"] for row in rows] == [row["step"] for row in alone]
        for column in ("loss", "grad_norm", "lr"):
            assert [row[column] for row in rows] == pytest.approx([row[column] for row in alone], rel=2e-4), column
    state = json.loads((folder / name / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert state["world_size"] == 2 and len(state["rows"]) == 2
    assert state["sequence_ranks"] == (2 if "shared" in name or name == "z-loss" else 1)


def test_resumed_it_goes_on_to_the_same_losses(on_two: Any) -> None:
    _, ranks = on_two
    for rank in ranks:
        assert [row["loss"] for row in rank["again"]] == [row["loss"] for row in rank["sequences shared"]]
        for name in ("carried", "carried window"):
            assert [row["loss"] for row in rank[f"{name} again"]] == [row["loss"] for row in rank[name]]


def test_another_number_of_ranks_finds_what_rows_carried(
    on_two: Any, inputs: dict[str, LocalArtifact], tmp_path: Path
) -> None:
    folder, ranks = on_two
    shutil.copytree(folder / "carried", tmp_path / "carried")
    shutil.rmtree(tmp_path / "carried" / "export")
    (tmp_path / "carried" / "export.json").unlink()
    rows = train("carried", tmp_path, inputs, 0, 1, allow_world_size_change=True)
    expected = [row["loss"] for row in ranks[0]["carried"]]
    assert [row["loss"] for row in rows[:4]] == expected[:4]  # read from the log
    assert rows[4]["loss"] == pytest.approx(expected[4], rel=2e-4)


def check(mixer: dict[str, Any], changes: dict[str, Any], **execution: Any) -> None:
    config = pretrain_config(mixer, **changes)
    check_execution(recipe.of_pretrain(config), config.mixer, Execution(**execution))


@pytest.mark.parametrize(
    ("mixer", "changes", "execution", "message"),
    [
        ({}, {"batch_sequences": 3}, {"train_workers": 4, "sequence_parallel": 2}, r"train_workers = 4: .*= 3 times 2"),
        (
            {},
            {},
            {"train_workers": 8, "sequence_parallel": 8},
            r"sequence_parallel = 8: .*of 64 tokens .*divisors of 4",
        ),
        ({}, {"curriculum_share": 0.5}, {"train_workers": 4, "sequence_parallel": 4}, "prompts of 16 tokens"),
        ({}, {"chunk_tokens": 32}, {"train_workers": 2, "sequence_parallel": 2}, "leave chunk_tokens out"),
        ({}, {"optimizer": "adafactor"}, {"train_workers": 2}, "1 with optimizer adafactor"),
        ({"kind": "full"}, {}, {"train_workers": 8, "sequence_parallel": 2}, r"train_workers = 8: .*batch = 4\)"),
    ],
)
def test_what_workers_cannot_share_is_refused(
    mixer: dict[str, Any], changes: dict[str, Any], execution: dict[str, Any], message: str
) -> None:
    with pytest.raises(StageError, match=message):
        check(mixer, changes, **execution)
    check({}, {}, train_workers=8, sequence_parallel=2)
    check({"kind": "linear", "segment_length": 64}, {}, train_workers=4, sequence_parallel=4)


def test_workers_that_share_are_a_divisor_of_all() -> None:
    with pytest.raises(ValidationError, match=r"sequence_parallel = 2: allowed are divisors of train_workers = 3"):
        Execution(train_workers=3, sequence_parallel=2)
    with pytest.raises(ValidationError, match="compile = True: what workers that share sequences exchange"):
        Execution(train_workers=2, sequence_parallel=2, compile=True)
