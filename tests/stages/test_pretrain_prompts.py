"""Retrieval prompts in the training batches, with a real tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stages.data.tokens.config import TokenizerConfig
from stages.data.tokens.load import load_tokenizer
from stages.data.tokens.tokenizer import make_tokenizer
from stages.stage import Execution
from stages.training.pretrain import recipe
from stages.training.pretrain.config import MixtureConfig, PromptPhase
from stages.training.pretrain.stage import BASE, PRETRAIN, BaseConfig
from stages.training.pretrain.worker import TrainingJob, open_batches
from tests.stages.pretraining import TRUNK, pretrain_config, write_tokens
from tests.support import LocalArtifact, LocalContext

PROMPT_LENGTH = 192
PHASES = (
    PromptPhase(until=0.34, share=1.0, length=PROMPT_LENGTH // 2),
    PromptPhase(until=1.0, share=0.5, length=PROMPT_LENGTH),
)
MIXTURE = MixtureConfig(prompts=PHASES, retrieval_format="compact", retrieval_rivals=(1,))


def test_prompts_are_trained_on_their_answers(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens", rows=24, length=PROMPT_LENGTH)
    for name in ("tokenizer", "base", "output"):
        (tmp_path / name).mkdir()
    context = LocalContext(str(tmp_path / "work"))
    make_tokenizer(TokenizerConfig(kind="bytes"), tokens, tmp_path / "tokenizer", context)
    inputs = {"tokens": tokens, "tokenizer": LocalArtifact(tmp_path / "tokenizer")}
    config = pretrain_config(sequence_length=PROMPT_LENGTH, mixture=MIXTURE, steps=3, monitor_every=3)

    job = TrainingJob(recipe=recipe.of_pretrain(config), work_url="", execution=Execution(), **inputs)
    codec = load_tokenizer(inputs["tokenizer"])
    seen = set()
    for step, (length, rows, each) in enumerate([(96, 4, 2), (192, 2, 1), (192, 2, 1)]):
        batch = open_batches(job)[step]
        assert batch.answers.sum() == rows
        for row in np.flatnonzero(batch.answers):
            prompts = zip(batch.tokens[row].reshape(each, length), batch.mask[row].reshape(each, length), strict=True)
            for tokens_of, mask_of in prompts:
                answer = codec.decode(tokens_of[mask_of].tolist()).strip(" .\n")
                assert answer.isdigit()
                assert codec.decode(tokens_of.tolist()).count(f"is {answer}.") == 2  # in the needle and as answer
            seen.add(int(batch.ids[row]))
    assert seen == set(range(-8, 0))

    phases = (PromptPhase(until=1.0, share=0.5, length=96),)
    mixture = MIXTURE.model_copy(update={"prompts": phases})
    base = BaseConfig(trunk=TRUNK, steps=2, batch_tokens=2 * 96, sequence_length=96, lr=1e-3, mixture=mixture)
    BASE.run(base, inputs, tmp_path / "base", LocalContext(str(tmp_path / "base-work")))
    PRETRAIN.run(config, {**inputs, "base": LocalArtifact(tmp_path / "base")}, tmp_path / "output", context)
    rows = pq.read_table(tmp_path / "output" / "train_log.parquet").to_pylist()
    assert [row["loss"] is None for row in rows] == [True, False, False]  # the first phase is prompts alone
    assert all(row["answer_loss"] > 0 for row in rows)
    assert all(row["tokens"] == (number + 1) * 4 * PROMPT_LENGTH for number, row in enumerate(rows))
    of_base = pq.read_table(tmp_path / "base" / "train_log.parquet").to_pylist()
    assert all(row["answer_loss"] > 0 and row["loss"] > 0 for row in of_base)
