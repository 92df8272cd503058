"""The calibration: its two experiments do what the sources describe, and find what is known where it is cheap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from model import memory
from stages.evidence.calibrate import mqar, schlag
from stages.evidence.calibrate.config import CalibrateConfig, MqarConfig, SchlagConfig
from stages.evidence.calibrate.stage import STAGE
from stages.stage import StageError
from tests.support import LocalContext

SCHLAG: dict[str, Any] = {"associations": {"dpfp1": (8, 40)}, "d_key": 8, "steps": 400, "patience": 20}
MQAR: dict[str, Any] = {
    "arms": ("full", "local"),
    "pairs": (2,),
    "steps": 5,
    "graft_steps": 4,
    "trials": 64,
    "vocabulary": 16,
}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate")
    context = LocalContext(str(folder))
    summary = STAGE.run(CalibrateConfig(schlag=SCHLAG, mqar=MQAR), {}, folder, context)
    assert "dpfp1 8 held, 40 not (loss 0." in summary.headline and "MQAR recall: full" in summary.headline
    done = [entry[0] for entry in context.progressed]
    assert done == sorted(done) and done[-1] == context.progressed[-1][1] == 4
    assert len(done) > 300, "every step is reported"
    return folder


def test_a_memory_holds_what_fits_its_features_and_not_much_more(output: Path) -> None:
    rows = pd.read_parquet(output / "schlag.parquet").set_index("associations")
    assert list(rows.feature_dim) == [16, 16]
    assert rows.solved[8] and rows.loss[8] <= 0.001 and rows.accuracy[8] == 1
    assert not rows.solved[40] and rows.steps[40] == 400
    # of a rank of 16 at most (1 - 16/40) of the variance of one-hot values (1 - 1/40) stays unread at least
    assert rows.loss[40] > 0.5 * (1 - 16 / 40) - 0.05


def test_the_published_points_stand_beside(output: Path) -> None:
    points = pd.read_parquet(output / "reference.parquet")
    capacity = points.dropna(subset=["feature_map"]).set_index("feature_map")
    assert capacity.holds.to_dict() == {"elu1": 40, "dpfp1": 100, "dpfp2": 240, "dpfp3": 340}
    assert capacity.fails.to_dict() == {"elu1": 60, "dpfp1": 120, "dpfp2": 260, "dpfp3": 360}
    recall = points.dropna(subset=["arm"])
    assert set(recall.arm) == {"full"} and (recall.accuracy >= 0.99).all()


def test_the_key_model_is_the_sum_update_of_its_embeddings() -> None:
    """Against the sums written out: keys are maps of value and embedding, values one-hot, reads normalised."""
    config = SchlagConfig(d_key=5)
    model = schlag.KeyModel(config, "elu1", 6, seed=3)
    rng = np.random.default_rng(0)
    keys, values = schlag.permutations(rng, 2, 6), schlag.permutations(rng, 2, 6)
    asked = keys[:, [4, 1]]
    with torch.no_grad():
        read = model(keys, values, asked)
        torch.testing.assert_close(model.answer(keys, values, asked), read)  # the order training multiplies in
        weights = torch.cat([model.write_value, model.write_key])
        for b in range(2):
            for m in range(2):
                query = memory.feature_map("elu1", model.embedding[asked[b, m]] @ model.ask_key + model.ask_bias)
                top, bottom = torch.zeros(6), torch.tensor(0.0)
                for i in range(6):
                    one_hot = torch.nn.functional.one_hot(values[b, i], 6).float()
                    given = torch.cat([one_hot, model.embedding[keys[b, i]]])
                    similar = memory.feature_map("elu1", given @ weights + model.write_bias) @ query
                    top, bottom = top + similar * one_hot, bottom + similar
                torch.testing.assert_close(read[b, m], top / bottom, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pairs", [2, 4, 7])
def test_a_recall_sequence_asks_every_pair_once_behind_the_pairs(pairs: int) -> None:
    config = MqarConfig(pairs=(pairs,), vocabulary=32, length=6)
    tokens, targets = (t.numpy() for t in mqar.sequences(config, np.random.default_rng(1), 200, pairs))
    assert tokens.shape == (200, 6 * pairs)
    for row, wanted in zip(tokens, targets, strict=True):
        held = dict(zip(row[: 2 * pairs : 2], row[1 : 2 * pairs : 2], strict=True))
        assert len(held) == pairs and all(1 <= k < 16 <= v < 32 for k, v in held.items())
        asked = np.flatnonzero(wanted != mqar.NOT_ASKED)
        assert (asked >= 2 * pairs).all() and (asked % 2 == 0).all() and sorted(row[asked]) == sorted(held)
        assert [held[k] for k in row[asked]] == list(wanted[asked])
        rest = np.setdiff1d(np.arange(2 * pairs, 6 * pairs), asked)
        assert (row[rest] == 0).all(), "no value is shown again"
    near = [np.flatnonzero(w != mqar.NOT_ASKED).mean() for w in targets]
    uniform = config.model_copy(update={"gap_power": 1.0})
    _, flat = mqar.sequences(uniform, np.random.default_rng(1), 200, pairs)
    far = [np.flatnonzero(w != mqar.NOT_ASKED).mean() for w in flat.numpy()]
    assert np.mean(near) < np.mean(far), "a small power asks soon after the pairs"


def test_cells_are_scored_on_as_many_queries_as_asked_for(output: Path) -> None:
    rows = pd.read_parquet(output / "mqar.parquet")
    assert list(rows.arm) == ["full", "local"] and (rows.trials >= 64).all()
    assert (rows.chance == 0.5).all() and (rows.guess == 1 / 8).all() and list(rows.steps) == [5, 4]
    assert list(rows.start) == ["scratch", "full"]


def test_arms_of_a_cell_start_from_its_full_attention_model() -> None:
    config = MqarConfig(**{**MQAR, "graft_steps": 1, "lr": 1e-9, "gate_lr": 1e-9})
    _, full = mqar.train(config, "full", 64, 2, 0, None, lambda *_: None)
    for arm in ("infini-delta", "deltanet", "local"):
        _, grafted = mqar.train(config, arm, 64, 2, 0, full, lambda *_: None)
        for name, weight in full.state_dict().items():
            torch.testing.assert_close(grafted.state_dict()[name], weight, rtol=1e-4, atol=1e-6)


def test_the_same_config_gives_the_same_rows(output: Path, tmp_path: Path) -> None:
    STAGE.run(CalibrateConfig(schlag=None, mqar=MQAR), {}, tmp_path, LocalContext(str(tmp_path)))
    assert (tmp_path / "mqar.parquet").read_bytes() == (output / "mqar.parquet").read_bytes()
    assert not (tmp_path / "schlag.parquet").exists()


def test_a_diverged_run_names_the_setting(tmp_path: Path) -> None:
    wild = CalibrateConfig(schlag=None, mqar={**MQAR, "arms": ("full",), "lr": 1e30, "steps": 20, "warmup_steps": 0})
    with pytest.raises(StageError, match=r"calibrate.mqar.lr = 1e\+30.*lower it"):
        STAGE.run(wild, {}, tmp_path, LocalContext(str(tmp_path)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schlag": None, "mqar": None}, "nothing is left to measure"),
        ({"schlag": {"associations": {"elu1": (60, 40)}}}, "elu1 = .*ascending"),
        ({"schlag": {"associations": {"gelu": (40,)}}}, "elu1"),
        ({"schlag": {"steps": 50}}, "steps = 50"),
        ({"mqar": {"arms": ("fulll",)}}, "'fulll': allowed are infini-linear"),
        ({"mqar": {"pairs": (16,)}}, "pairs has 16: allowed are 1 to 15"),
        ({"mqar": {"dims": (30,)}}, "heads"),
        ({"mqar": {"length": 5}}, "length = 5"),
        ({"mqar": {"arms": ("local",)}}, "add 'full'"),
        ({"mqar": {"graft": False, "graft_steps": 9}}, "graft_steps = 9: has no effect"),
    ],
)
def test_what_cannot_be_measured_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CalibrateConfig(**fields)
