"""How many associations the memory mechanism holds, by its keys; what rank bounds and what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from model import memory
from stages.evidence.capacity import keys
from stages.evidence.capacity.config import CapacityConfig
from stages.evidence.capacity.measure import nearest, write_all
from stages.evidence.capacity.stage import STAGE
from stages.stage import Summary
from tests.support import LocalContext

SMALL: dict[str, Any] = {
    "d_key": 16,
    "d_value": 64,
    "feature_maps": ("relu", "dpfp1"),
    "associations": (2, 8, 16, 32, 64),
    "overwrite_associations": (2, 8),
    "overwrite_feature_map": "relu",
    "segment_length": 8,
    "seeds": (0, 1),
    "repeats": 4,
    "learned": {"feature_maps": ("relu",), "rules": ("linear", "delta"), "associations": (16, 32)},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary, LocalContext]:
    folder = tmp_path_factory.mktemp("capacity")
    context = LocalContext(str(folder))
    return folder, STAGE.run(CapacityConfig(**SMALL), {}, folder, context), context


@pytest.fixture(scope="module")
def output(made: tuple[Path, Summary, LocalContext]) -> Path:
    return made[0]


@pytest.fixture(scope="module")
def table(output: Path) -> pd.DataFrame:
    return pd.read_parquet(output / "capacity.parquet")


def test_recall_of_random_keys_falls_with_load_and_rises_with_features(table: pd.DataFrame) -> None:
    random = table[table["keys"] == "random"]
    assert len(random) == 2 * 3 * 5 * 2
    mean = random.groupby(["feature_map", "rule", "associations"])["accuracy"].mean()
    for curve in (mean["relu", "linear"], mean["dpfp1", "delta"]):
        assert curve[2] > 0.9 and curve[64] < 0.5 and curve[2] > curve[64]
    assert mean["dpfp1", "linear", 16] > mean["relu", "linear", 16]
    assert set(random.loc[random.feature_map == "dpfp1", "feature_dim"]) == {32}


def test_orthogonal_keys_fill_the_memory_exactly_under_every_rule(table: pd.DataFrame) -> None:
    """As many as there are features, all read back without error: the memory is not what limits random keys."""
    rows = table[table["keys"] == "orthogonal"]
    assert set(rows.rule) == {"linear", "delta", "delta-token"}
    assert dict(rows.groupby("feature_map").associations.max()) == {"relu": 16, "dpfp1": 32}
    assert (rows.accuracy == 1).all() and (rows.exact == 1).all() and rows.error.max() < 1e-6
    for feature_map, features in (("elu1", 64), ("relu", 64), ("softmax", 64), ("dpfp2", 256), ("dpfp3", 384)):
        phi = memory.feature_map(feature_map, keys.orthogonal(feature_map, 64, features))
        gram = phi @ phi.T
        assert phi.shape == (features, features) and (gram - gram.diag().diag()).max() < 1e-9 * gram.diag().min()
        with pytest.raises(ValueError, match=f"at most {features}"):
            keys.orthogonal(feature_map, 64, features + 1)


def test_rank_bounds_exact_readout_and_not_recall(table: pd.DataFrame) -> None:
    """Beyond F = 16 features no keys read 32 values back exactly, those trained for nothing else included; keys trained
    for recall tell most of the same 32 apart all the same."""
    beyond = table[(table.feature_map == "relu") & (table.associations == 32) & (table.rule == "linear")]
    assert set(beyond.error_bound) == {0.5}
    best = {kind: beyond[beyond["keys"] == kind][["accuracy", "error", "exact"]].mean() for kind in set(beyond["keys"])}
    assert best["learned-exact"].error == pytest.approx(0.5, abs=0.05)  # at the bound: there are no better keys
    assert best["learned-exact"].exact < 0.5
    assert best["learned"].accuracy > 0.8 > best["learned-exact"].accuracy
    assert best["learned"].accuracy > 2 * best["random"].accuracy
    within = table[(table.feature_map == "relu") & (table.associations == 16) & (table.rule == "linear")]
    assert (
        within[within["keys"] == "learned-exact"].error.mean() < 0.25 < within[within["keys"] == "random"].error.mean()
    )
    low = table.groupby(["keys", "feature_map", "rule", "associations"])[["error", "error_bound"]].mean()
    assert (low.error > low.error_bound - 0.05).all(), "of the mean over values; a draw may lie a little below"


def test_forgetting_is_recall_of_the_first_segment_among_all_later_values(output: Path, table: pd.DataFrame) -> None:
    later = pd.read_parquet(output / "forgetting.parquet")
    first = later[(later["keys"] == "random") & (later.later == 0)].set_index(["feature_map", "rule", "seed"]).accuracy
    full = table[(table["keys"] == "random") & (table.associations == 8)].set_index(["feature_map", "rule", "seed"])
    assert first.sort_index().tolist() == full.accuracy.sort_index().tolist()
    curve = (
        later[(later["keys"] == "random") & (later.feature_map == "relu")].groupby(["rule", "later"]).accuracy.mean()
    )
    assert curve["linear", 0] > curve["linear", 56] and curve["delta", 0] > curve["delta", 56]
    assert (later[later["keys"] == "orthogonal"].accuracy == 1).all()
    trained = later[(later["keys"] == "learned") & (later.rule == "linear")]
    assert sorted(set(trained.later)) == [0, 8, 24], "of the set of 32"
    assert len(table[table["keys"] == "learned"]) == 2 * 2 * 2, "a trained set is measured whole"


def test_the_headline_says_of_which_keys_and_of_what_it_speaks(made: tuple[Path, Summary, LocalContext]) -> None:
    said, context = made[1].headline, made[2]
    for part in (
        "relu, 16 features",
        "random keys recalled",
        "orthogonal keys recalled up to 16 of 16",
        "learned keys recalled",
        "learned-exact keys read back exactly",
        "rank does not bound",
    ):
        assert part in said
    done = [entry[0] for entry in context.progressed]
    assert done == sorted(done) and done[-1] == pytest.approx(context.progressed[-1][1])
    assert len(done) > 4 * 2 * 200, "every training step is reported"


def test_only_the_delta_rules_overwrite(output: Path) -> None:
    table = pd.read_parquet(output / "overwrite.parquet")
    at_two = table[table.associations == 2].groupby("rule")[["new_value_accuracy", "old_value_accuracy"]].mean()
    assert at_two.loc["delta", "new_value_accuracy"] > at_two.loc["delta", "old_value_accuracy"] + 0.4
    linear = at_two.loc["linear"]
    assert abs(linear["new_value_accuracy"] - linear["old_value_accuracy"]) < 0.35  # a tie, up to chance


def test_the_same_config_gives_the_same_bytes(output: Path, tmp_path: Path) -> None:
    STAGE.run(CapacityConfig(**SMALL), {}, tmp_path, LocalContext(str(tmp_path)))
    for name in ("capacity", "forgetting", "overwrite", "reference"):
        assert (tmp_path / f"{name}.parquet").read_bytes() == (output / f"{name}.parquet").read_bytes()


def test_delta_writes_whole_segments_and_delta_token_single_associations() -> None:
    config = CapacityConfig(**SMALL)
    values = keys.values(config, 16)
    phi = memory.feature_map("elu1", keys.random(config, 16))
    empty = memory.empty(2, 4, 16, 64)
    states = {
        rule: list(write_all(empty, phi, values, rule, 8, 1e-6, [2, 8, 16]))[-1][1]
        for rule in ("linear", "delta", "delta-token")
    }
    by_hand = empty
    for part in (slice(0, 8), slice(8, 16)):
        by_hand = memory.write(by_hand, phi[:, :, part], values[:, :, part], "delta", 1e-6)
    torch.testing.assert_close(states["delta"].M, by_hand.M)
    torch.testing.assert_close(states["linear"].z, states["delta-token"].z)
    assert not torch.allclose(states["delta"].M, states["delta-token"].M)


def test_a_longer_sequence_begins_with_the_shorter_one() -> None:
    config = CapacityConfig(**SMALL)
    assert torch.equal(keys.random(config, 64)[:, :, :16], keys.random(config, 16))


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
        ({"learned": {"associations": (12,)}}, "learned.associations has 12"),
        ({"learned": {"feature_maps": ("elu1",)}}, r"learned.feature_maps = \['elu1'\]: allowed are those of"),
        ({"keys": ("random",)}, "learned.associations: has no effect"),
        ({"tolerance": 0}, "tolerance"),
    ],
)
def test_a_grid_that_cannot_be_measured_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CapacityConfig(**{**SMALL, **fields})
