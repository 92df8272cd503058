"""How many random associations the memory mechanism holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from model import memory
from stages.capacity.measure import draw, nearest, write_all
from stages.capacity.stage import STAGE, CapacityConfig
from tests.support import LocalContext

SMALL: dict[str, Any] = {
    "d_key": 16, "d_value": 16, "feature_maps": ("relu", "dpfp1"), "associations": (2, 8, 16, 64),
    "overwrite_associations": (2, 8), "overwrite_feature_map": "relu", "segment_length": 8, "seeds": (0, 1),
    "repeats": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("capacity")
    STAGE.run(CapacityConfig(**SMALL), {}, folder, LocalContext(str(folder)))
    return folder


def test_recall_falls_with_load_and_rises_with_features(output: Path) -> None:
    table = pd.read_parquet(output / "capacity.parquet")
    assert len(table) == 2 * 3 * 4 * 2
    mean = table.groupby(["feature_map", "rule", "associations"])["accuracy"].mean()
    for curve in (mean["relu", "linear"], mean["dpfp1", "delta"]):
        assert curve[2] > 0.9 and curve[64] < 0.5 and curve[2] > curve[64]
    assert mean["dpfp1", "linear", 16] > mean["relu", "linear", 16]
    assert set(table.loc[table.feature_map == "dpfp1", "feature_dim"]) == {32}


def test_only_the_delta_rules_overwrite(output: Path) -> None:
    table = pd.read_parquet(output / "overwrite.parquet")
    at_two = table[table.associations == 2].groupby("rule")[["new_value_accuracy", "old_value_accuracy"]].mean()
    assert at_two.loc["delta", "new_value_accuracy"] > at_two.loc["delta", "old_value_accuracy"] + 0.4
    linear = at_two.loc["linear"]
    assert abs(linear["new_value_accuracy"] - linear["old_value_accuracy"]) < 0.35  # a tie, up to chance


def test_the_same_config_gives_the_same_bytes(output: Path, tmp_path: Path) -> None:
    STAGE.run(CapacityConfig(**SMALL), {}, tmp_path, LocalContext(str(tmp_path)))
    for name in ("capacity", "overwrite", "reference"):
        assert (tmp_path / f"{name}.parquet").read_bytes() == (output / f"{name}.parquet").read_bytes()


def test_delta_writes_whole_segments_and_delta_token_single_associations() -> None:
    config = CapacityConfig(**SMALL)
    drawn = draw(config, 16)
    phi = memory.feature_map("elu1", drawn.keys)
    empty = memory.empty(2, 4, 16, 16)
    states = {
        rule: list(write_all(empty, phi, drawn.values, rule, 8, 1e-6, [2, 8, 16]))[-1][1]
        for rule in ("linear", "delta", "delta-token")
    }
    by_hand = empty
    for part in (slice(0, 8), slice(8, 16)):
        by_hand = memory.write(by_hand, phi[:, :, part], drawn.values[:, :, part], "delta", 1e-6)
    torch.testing.assert_close(states["delta"].M, by_hand.M)
    torch.testing.assert_close(states["linear"].z, states["delta-token"].z)
    assert not torch.allclose(states["delta"].M, states["delta-token"].M)


def test_a_longer_sequence_begins_with_the_shorter_one() -> None:
    config = CapacityConfig(**SMALL)
    assert torch.equal(draw(config, 64).keys[:, :, :16], draw(config, 16).keys)


def test_nearest_is_euclidean() -> None:
    read, candidates = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4)
    slow = (read.unsqueeze(-2) - candidates.unsqueeze(-3)).square().sum(-1).argmin(-1)
    assert torch.equal(nearest(read, candidates), slow)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"associations": (8, 4)}, "ascending"),
        ({"associations": (2, 12)}, "multiples of segment_length = 8"),
        ({"seeds": (1, 1)}, r"seeds = \[1, 1\]"),
    ],
)
def test_a_grid_that_cannot_be_measured_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CapacityConfig(**{**SMALL, **fields})
