"""Prompts that cannot hold their needles are told in the plan wherever the tokenizer is known, not after training."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import StudyError
from pipeline.study.graph import expand
from pipeline.study.load import load
from stages.data.tokens.config import TokenizerConfig
from stages.data.tokens.stage import TOKENIZER
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
    with pytest.raises(StudyError, match=r"ablate\.retrieval\.lengths = 256: a published prompt"):
        plan(study, "ablate.retrieval.format=published")
    TOKENIZER.run(TokenizerConfig(kind="bytes"), {"documents": None}, tmp_path, LocalContext(""))
    given = "tokenizer={kind: file, path: tokenizer.json, eos_token: <eos>}"
    plan(study, given)
    with pytest.raises(StudyError, match=r"evaluate\.retrieval\.lengths = 64"):
        plan(study, given, "evaluate.retrieval.lengths=[64]")
    trained = "tokenizer={kind: bpe, vocab_size: 300}"
    plan(study, trained, "evaluate.retrieval.lengths=[64]")  # may fit, if the text gives long tokens
    with pytest.raises(StudyError, match=r"evaluate\.retrieval\.lengths = 32"):
        plan(study, trained, "evaluate.retrieval.lengths=[32]")  # not even with a token a word


def test_the_recall_probe_speaks_every_format_of_passkeys(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    probe = "ablate.probes={recall: {segments: [4], items: [1, 2]}}"
    arms = "arms={infini-delta: {kind: infini, rule: delta}, local: {kind: local}}"
    for wording in ("compact", "terse"):
        plan(study, probe, arms, f"evaluate.retrieval.format={wording}", f"ablate.retrieval.format={wording}")


@pytest.mark.parametrize("section", ["base", "pretrain"])
def test_training_prompts_hold_their_needles_too(tmp_path: Path, section: str) -> None:
    study = write_study(tmp_path)
    phases = "prompts: [{until: 0.5, share: 0.5, length: 128}, {until: 1, share: 1.0, length: 16}]"
    mixture = f"{section}.mixture={{{phases}, retrieval_format: compact, retrieval_rivals: [1]}}"
    longer = ["base.sequence_length=128", "base.batch_tokens=256"]
    with pytest.raises(StudyError, match=rf"{section}\.mixture\.prompts\.1\.length = 16: .* does not fit"):
        plan(study, *longer, mixture)
    plan(study, *longer, mixture.replace("share: 1.0", "share: 0"))  # nobody is asked then


def test_drills_need_words_of_one_token_and_no_room_for_needles(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    phases = "prompts: [{until: 1, share: 0.5, length: 16, drill: {words: WORDS, k: [4]}}]"
    mixture = f"pretrain.mixture={{{phases}, retrieval_format: compact}}"
    few = r"pretrain\.mixture\.prompts\.0\.drill\.words = 12: .*\(allowed: cues, or at most 0 with this tokenizer\)"
    TOKENIZER.run(TokenizerConfig(kind="bytes"), {"documents": None}, tmp_path, LocalContext(""))
    given = "tokenizer={kind: file, path: tokenizer.json, eos_token: <eos>}"
    with pytest.raises(StudyError, match=few):
        plan(study, given, mixture.replace("WORDS", "12"))
    with pytest.raises(StudyError, match=r"drill\.k = 4: the 4 pairs of a drill fill the length"):
        plan(study, given, mixture.replace("WORDS", "cues"))
    plan(study, mixture.replace("WORDS", "12"), "tokenizer={kind: bpe, vocab_size: 300}")


def test_a_phases_own_rivals_must_fit(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    phases = "prompts: [{until: 1, share: 0.5, length: 128, rivals: [8]}]"
    mixture = f"pretrain.mixture={{{phases}, retrieval_format: compact, retrieval_rivals: [1]}}"
    with pytest.raises(StudyError, match=r"pretrain\.mixture\.prompts\.0\.length = 128: .* with k = 8 does not fit"):
        plan(study, mixture)


def test_a_tokenizer_without_a_tasks_characters_is_refused_by_the_plan(tmp_path: Path) -> None:
    """UUIDs need a hyphen and hexadecimal digits, the passkeys do not."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    study = write_study(tmp_path)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:?_={}\n"
    backend = Tokenizer(models.BPE(vocab={one: n for n, one in enumerate(["<eos>", *letters])}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    backend.save(str(tmp_path / "tokenizer.json"))
    given = "tokenizer={kind: file, path: tokenizer.json, eos_token: <eos>}"
    plan(study, given)
    uuids = "evaluate.retrieval.tasks={niah_single_3: {lengths: [800], trials: 2}}"
    with pytest.raises(StudyError, match=r"evaluate\.retrieval \(task niah_single_3\).*it lacks '-'"):
        plan(study, given, uuids, "evaluate.retrieval.format=landmark", "evaluate.retrieval.lengths=[800]")


def test_a_prompt_longer_than_the_test_split_is_refused_by_the_plan(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    size = sum(path.stat().st_size for path in (tmp_path / "books" / "test").glob("*.txt"))
    tasks = "evaluate.retrieval.tasks={{{}: {{lengths: [{}], trials: 2}}}}"
    said = r"evaluate\.retrieval\.tasks\.niah_single_2\.lengths = 1000000: the test split.*niah_single_2, has"
    with pytest.raises(StudyError, match=said):
        plan(study, tasks.format("niah_single_2", 1_000_000))
    assert size < 500_000
    plan(study, tasks.format("niah_single_1", 1_000_000))  # noise has no end
    with pytest.raises(StudyError, match=r"ablate\.retrieval\.lengths = 1000000"):
        plan(study, "ablate.retrieval.lengths=[1000000]")
