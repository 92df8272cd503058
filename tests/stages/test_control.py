"""The positive control: its task, and that the memory is what solves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from model.config import MixerConfig
from stages.control.recall import sequences
from stages.control.stage import STAGE, ControlConfig
from tests.support import LocalContext


def config(kind: str = "infini", **changes: Any) -> ControlConfig:
    """An easier task than a study's: learnt in seconds."""
    fields: dict[str, Any] = {
        "dim": 32, "heads": 1, "vocabulary": 16, "segments": 2, "segment_length": 8, "pairs": (1,), "steps": 150,
        "batch": 32, "lr": 1e-2, "gate_lr": 5e-2, "eval_trials": 200, "evaluations": 2, "seed": 0,
    }  # fmt: skip
    fields |= changes
    return ControlConfig(mixer=MixerConfig(kind=kind, segment_length=fields["segment_length"]), **fields)  # type: ignore[arg-type]


def test_answers_can_be_read_off_the_first_segment_only() -> None:
    task = config(pairs=(1, 2, 4), vocabulary=32, segments=3)
    drawn = sequences(task, 60, task.pairs, 0, 1)
    n = task.segment_length
    for tokens, targets, k in zip(drawn.tokens, drawn.targets, np.resize([1, 2, 4], 60), strict=True):
        first = tokens[:n]
        places = np.flatnonzero((first > 0) & (first <= task.keys))
        pairs = {first[p]: first[p + 1] for p in places}
        assert len(pairs) == k and len(set(pairs.values())) == k
        assert [pairs[key] for key in tokens[-n:]] == list(targets)
        assert not tokens[n:-n].any()
        assert not (tokens[-n:] > task.keys).any()  # the queries show no value


def test_training_and_evaluation_never_share_a_stream() -> None:
    task = config()
    assert (sequences(task, 4, (1,), 0, 1).tokens != sequences(task, 4, (1,), 1, 1).tokens).any()
    assert (sequences(task, 4, (1,), 0, 1).tokens == sequences(task, 4, (1,), 0, 1).tokens).all()


def test_memory_learns_what_local_attention_cannot(tmp_path: Path) -> None:
    accuracy = {}
    for kind in ("infini", "local"):
        (tmp_path / kind).mkdir()
        STAGE.run(config(kind), {}, tmp_path / kind, LocalContext(str(tmp_path)))
        table = pd.read_parquet(tmp_path / kind / "control.parquet")
        assert list(table["step"]) == [75, 150] and set(table["trials"]) == {200}
        accuracy[kind] = table["accuracy"].iloc[-1]
    assert accuracy["infini"] > 0.9
    assert accuracy["local"] < 0.3  # 1/8 by guessing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": (8,)}, "16 tokens do not fit into segment_length = 8"),
        ({"pairs": (0,)}, "distinct whole numbers"),
        ({"evaluations": 200}, "at most steps = 150"),
        ({"dim": 30, "heads": 4}, "multiple of heads"),
    ],
)
def test_a_control_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**changes)
