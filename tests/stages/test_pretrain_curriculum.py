"""Text that starts as single segments and grows to whole sequences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from model.checkpoint import graft
from stages.stage import Execution
from stages.training.pretrain.data import TokenRows, Windows
from stages.training.pretrain.loop import Lengths, micro_batches
from stages.training.pretrain.mixture import Batches
from stages.training.pretrain.recipe import curriculum, of_pretrain
from stages.training.pretrain.stage import PRETRAIN
from tests.stages.pretraining import LENGTH, SEGMENT, make_inputs, pretrain_config
from tests.support import LocalArtifact, LocalContext


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalArtifact]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def test_segments_double_up_to_the_sequence() -> None:
    assert curriculum(8 * 16, 16) == (16, 32, 64)
    assert curriculum(6 * 16, 16) == (16, 32, 48)
    recipe = of_pretrain(pretrain_config(steps=10, curriculum_share=0.4))
    assert [recipe.length_at(step) for step in range(10)] == [SEGMENT] * 2 + [2 * SEGMENT] * 2 + [LENGTH] * 6
    assert of_pretrain(pretrain_config()).length_at(0) == LENGTH


def run(inputs: dict[str, LocalArtifact], folder: Path, micro_batch: int | None, **config: float) -> list[dict]:
    import pyarrow.parquet as pq

    (folder / "output").mkdir(parents=True)
    context = LocalContext(str(folder / "work"), Execution(micro_batch=micro_batch))
    PRETRAIN.run(pretrain_config(**config), inputs, folder / "output", context)
    logs = pq.read_table(folder / "output" / "train_log.parquet").to_pylist()
    samples = pq.read_table(folder / "output" / "samples.parquet").to_pylist()
    return [log | sample for log, sample in zip(logs, samples, strict=True)]


def test_first_step_reads_segments_of_the_same_samples(inputs: dict[str, LocalArtifact], tmp_path: Path) -> None:
    plain = run(inputs, tmp_path / "plain", None, steps=4)
    grown = run(inputs, tmp_path / "grown", None, steps=4, curriculum_share=0.5)
    split = run(inputs, tmp_path / "split", 1, steps=4, curriculum_share=0.5)
    assert [row["sample_ids_digest"] for row in plain] == [row["sample_ids_digest"] for row in grown]
    assert [row["loss"] for row in split] == pytest.approx([row["loss"] for row in grown], rel=1e-5)
    assert plain[0]["loss"] != grown[0]["loss"]

    config = pretrain_config(steps=4, curriculum_share=0.5)
    rows = TokenRows(inputs["tokens"].path("train"))
    batch = Batches(of_pretrain(config), Windows(rows, LENGTH))[0]
    model = graft(inputs["base"].path("model"), config.mixer, seed=config.seed)
    with torch.no_grad():
        nll = model.nll(torch.from_numpy(batch.tokens).reshape(-1, SEGMENT))
    mask = batch.mask.reshape(-1, SEGMENT)[:, 1:]
    assert grown[0]["loss"] == pytest.approx(nll.numpy()[mask].mean(), rel=1e-5)


def test_prompts_stay_whole() -> None:
    tokens = np.arange(4 * 8).reshape(4, 8)
    prompts = np.array([False, True, False, False])
    text, whole = micro_batches((tokens,), prompts, slice(0, 4), Lengths(4, 8), None)
    assert (
        text.arrays[0].tolist() == tokens[[0, 2, 3]].reshape(6, 4).tolist()
        and whole.arrays[0].tolist() == tokens[[1]].tolist()
    )
    assert [len(part.arrays[0]) for part in micro_batches((tokens,), prompts, slice(0, 4), Lengths(4, 8), 2)] == [
        4,
        2,
        1,
    ]
    assert [len(part.arrays[0]) for part in micro_batches((tokens,), prompts, slice(2, 4), Lengths(8, 8), 1)] == [1, 1]


def test_rows_of_prompts_are_cut_into_prompts() -> None:
    tokens = np.arange(4 * 8).reshape(4, 8)
    prompts = np.array([False, True, False, True])
    text, asked = micro_batches((tokens,), prompts, slice(0, 4), Lengths(8, 2), None)
    assert (
        text.arrays[0].tolist() == tokens[[0, 2]].tolist()
        and asked.arrays[0].tolist() == tokens[[1, 3]].reshape(8, 2).tolist()
    )
    (both,) = micro_batches((tokens,), prompts, slice(0, 4), Lengths(4, 4), None)
    assert both.arrays[0].tolist() == tokens.reshape(8, 4).tolist()
    (alone,) = micro_batches((tokens,), np.ones(4, bool), slice(0, 4), Lengths(8, 4), None)
    assert alone.arrays[0].tolist() == tokens.reshape(8, 4).tolist()


def test_a_curriculum_without_effect_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"curriculum_share = 0\.5: has no effect on sequences of 16 tokens"):
        pretrain_config(sequence_length=SEGMENT, curriculum_share=0.5)
