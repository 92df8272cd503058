"""Prompts that cannot hold their needles are told in the plan wherever the tokenizer is known, not after training."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import StudyError
from pipeline.graph import expand
from pipeline.study import load
from stages.tokens.stage import TOKENIZER, TokenizerConfig
from tests.support import LocalContext
from tests.tiny import write_study


def plan(study: Path, *overrides: str) -> None:
    expand(load(study, overrides), None)


def test_too_short_prompts_are_refused_by_the_plan(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    plan(study)
    with pytest.raises(
        StudyError, match=r"evaluate\.retrieval\.lengths = 64: .* does not fit \(allowed: >= \d+ tokens"
    ):
        plan(study, "evaluate.retrieval.lengths=[64]")
    with pytest.raises(StudyError, match=r"ablate\.retrieval\.lengths = 256: a landmark prompt"):
        plan(study, "ablate.retrieval.format=landmark")
    TOKENIZER.run(TokenizerConfig(kind="bytes"), {"documents": None}, tmp_path, LocalContext(""))  # type: ignore[dict-item]
    given = "tokenizer={kind: file, path: tokenizer.json, eos_token: <eos>}"
    plan(study, given)
    with pytest.raises(StudyError, match=r"evaluate\.retrieval\.lengths = 64"):
        plan(study, given, "evaluate.retrieval.lengths=[64]")
    plan(study, "tokenizer={kind: bpe, vocab_size: 300}", "evaluate.retrieval.lengths=[64]")  # not known yet
