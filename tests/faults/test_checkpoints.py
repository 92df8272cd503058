"""Damaged resume points: training falls back to the one before, or begins anew, says so, and ends the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages.training.pretrain.stage import PRETRAIN
from tests.faults.damage import DAMAGES
from tests.stages.pretraining import make_inputs, pretrain_config
from tests.support import LocalArtifact, LocalContext, StoppedAt

FILES = ("state.json", "__0_0.distcp", ".metadata")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalArtifact]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def train(inputs: dict[str, LocalArtifact], folder: Path, name: str, stop: int = 0) -> LocalContext:
    """One attempt in the work folder below ``folder``, its output in ``name``. Checkpoints after steps 5, 10."""
    context = StoppedAt(str(folder / "work"), step=stop)
    (folder / name).mkdir(parents=True)
    try:
        PRETRAIN.run(pretrain_config(), inputs, folder / name, context)
    except KeyboardInterrupt:
        assert stop
    return context


def outcome(folder: Path) -> tuple[bytes, list[float]]:
    log = pq.read_table(folder / "train_log.parquet")
    return (folder / "model" / "model.safetensors").read_bytes(), log["loss"].to_pylist()


@pytest.fixture(scope="module")
def whole(inputs: dict[str, LocalArtifact], tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[float]]:
    folder = tmp_path_factory.mktemp("whole")
    train(inputs, folder, "output")
    return outcome(folder / "output")


@pytest.fixture
def stopped(inputs: dict[str, LocalArtifact], tmp_path: Path) -> Path:
    """A run that was stopped after step 11."""
    train(inputs, tmp_path, "first", stop=11)
    assert {path.name for path in (tmp_path / "work/checkpoints").iterdir()} == {"step-00000005", "step-00000010"}
    return tmp_path


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    inputs: dict[str, LocalArtifact], whole: tuple[bytes, list[float]], stopped: Path, file: str, damage: str
) -> None:
    DAMAGES[damage](stopped / "work/checkpoints/step-00000010" / file)
    again = train(inputs, stopped, "output")
    assert outcome(stopped / "output") == whole
    if (file, damage) != ("state.json", "missing"):  # a checkpoint without it was never finished: that is no damage
        assert any("checkpoint step-00000010 is damaged" in line for line in again.warned)
    assert not any("anew" in line for line in again.warned)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_where_all_are_damaged_training_begins_anew_and_says_so(
    inputs: dict[str, LocalArtifact],
    whole: tuple[bytes, list[float]],
    stopped: Path,
    damage: Callable[[Path], None],
) -> None:
    for folder in (stopped / "work/checkpoints").iterdir():
        damage(folder / "__0_0.distcp")
    again = train(inputs, stopped, "output")
    assert again.warned[-1] == "no checkpoint is sound: training starts anew, from step 0"
    assert outcome(stopped / "output") == whole
