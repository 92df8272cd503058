"""Drills: pairs of single tokens that a phase trains on in place of prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from stages.data.tasks.drill import Drill
from stages.data.tasks.words import CUES
from stages.data.tokens.config import TokenizerConfig
from stages.data.tokens.load import StudyTokenizer, load_tokenizer
from stages.data.tokens.tokenizer import make_tokenizer
from stages.stage import Execution, StageError
from stages.training.pretrain import recipe
from stages.training.pretrain.config import MixtureConfig, PromptPhase
from stages.training.pretrain.worker import TrainingJob, open_batches
from tests.stages.pretraining import pretrain_config, write_tokens
from tests.support import LocalArtifact, LocalContext

LENGTH = 32


class Vocabulary:
    """Ten words and four numbers of one token each, behind what is neither; other text is characters."""

    texts = (" a", "word", " x1", *(f" word{'abcdefghij'[i]}" for i in range(10)), " 12", " 34", " 56", " 78", ".")
    vocab_size = len(texts)

    def decode(self, ids: list[int]) -> str:
        return "".join(self.texts[i] for i in ids)

    def encode(self, text: str) -> list[int]:
        return [self.texts.index(text)] if text in self.texts else [100 + ord(c) for c in text]


@pytest.fixture
def drill() -> Drill:
    codec: StudyTokenizer = Vocabulary()  # type: ignore[assignment]
    return Drill(codec, seed=3)


def test_every_answer_is_the_number_that_stood_behind_its_word(drill: Drill) -> None:
    tokens, mask = drill.rows(LENGTH, 40, 0, words=4, ks=(2, 4), field="words")
    for number, (row, marks) in enumerate(zip(tokens, mask, strict=True)):
        k = (2, 4)[number % 2]
        bound = dict(zip(row[: 2 * k : 2].tolist(), row[1 : 2 * k : 2].tolist(), strict=True))
        assert len(bound) == len(set(bound.values())) == k
        assert np.flatnonzero(marks).tolist() == list(range(2 * k + 1, LENGTH, 2))
        assert all(row[at] == bound[row[at - 1]] for at in np.flatnonzero(marks))
    assert set(tokens[:, 0::2].ravel()) == set(range(3, 7))  # the first four words, and no other
    assert set(tokens[:, 1::2].ravel()) == set(range(13, 17))


def test_a_row_depends_on_seed_and_number_alone(drill: Drill) -> None:
    whole, _ = drill.rows(LENGTH, 8, 0, words=4, ks=(2, 4), field="words")
    part, _ = drill.rows(LENGTH, 3, 5, words=4, ks=(2, 4), field="words")
    assert np.array_equal(whole[5:], part)
    codec: StudyTokenizer = Vocabulary()  # type: ignore[assignment]
    other, _ = Drill(codec, seed=4).rows(LENGTH, 8, 0, words=4, ks=(2, 4), field="words")
    assert not (whole == other).all(1).any()


def test_cues_are_the_words_of_the_bindings_in_all_their_tokens(drill: Drill) -> None:
    (row,), (marks,) = drill.rows(96, 1, 0, words="cues", ks=(3,), field="words")
    text = "".join(chr(i - 100) if i >= 100 else Vocabulary.texts[i] for i in row)
    said = [line.split() for line in text.split("\n")[1:-1]]
    bound = dict(said[:3])
    assert len(said) > 4 and set(bound) <= set(CUES) and all(bound[cue] == number for cue, number in said)
    assert marks[: text.index(said[3][0])].sum() == 0 and marks.sum() >= len(said) - 3
    with pytest.raises(StageError, match=r"drill\.k = 8: the 8 pairs of a drill fill the length"):
        drill.rows(64, 1, 0, words="cues", ks=(8,), field="mixture.prompts drill.words")


def test_more_words_than_the_tokenizer_has_are_refused_with_how_many_there_are(drill: Drill) -> None:
    with pytest.raises(StageError, match=r"drill\.words = 5: .*\(allowed: cues, or at most 4 with this tokenizer\)"):
        drill.rows(LENGTH, 1, 0, words=5, ks=(2,), field="mixture.prompts.0.drill.words")


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({"drill": {"words": 4, "k": [8]}}, r"k = \[8\]: allowed are distinct numbers from 2 to 4 with words = 4"),
        ({"drill": {"words": 8, "k": [4, 4]}}, r"k = \[4, 4\]: allowed are distinct"),
        ({"drill": {"words": 8, "k": [8]}, "length": 16}, r"length = 16: a drill with k = 8 needs at least 18"),
        ({"drill": {"words": 8, "k": [4]}, "rivals": [2]}, r"rivals: has no effect beside drill"),
    ],
)
def test_drills_that_cannot_be_are_refused(phase: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PromptPhase(**{"until": 1, "share": 1, "length": LENGTH} | phase)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"retrieval_tasks": ["passkey"]}, r"prompts\.0\.rivals = \[2\]: has no effect without bindings"),
        ({"rivals": [65]}, r"prompts\.0\.rivals = \[65\]: allowed are 1 to 64"),
    ],
)
def test_rivals_of_a_phase_that_cannot_be_are_refused(mixture: dict[str, object], message: str) -> None:
    phase = {"until": 1, "share": 1, "length": LENGTH, "rivals": mixture.pop("rivals", [2])}
    with pytest.raises(ValidationError, match=message):
        MixtureConfig(prompts=[phase], **mixture)


def test_what_a_phase_does_not_use_moves_no_key() -> None:
    plain = MixtureConfig(prompts=({"until": 1, "share": 1, "length": LENGTH},))
    assert plain.key_fields()["prompts"] == [{"until": 1.0, "share": 1.0, "length": LENGTH, "text_length": None}]
    drilled = MixtureConfig(prompts=({"until": 1, "share": 1, "length": LENGTH, "drill": {"words": 8}},))
    assert drilled.key_fields()["prompts"][0]["drill"] == {"words": 8, "k": [4, 8]}


def test_a_phase_of_prompts_has_its_own_number_of_rivals(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens", rows=24, length=192)
    (tmp_path / "tokenizer").mkdir()
    make_tokenizer(TokenizerConfig(kind="bytes"), tokens, tmp_path / "tokenizer", LocalContext(str(tmp_path / "work")))
    phases = [
        {"until": 0.5, "share": 1.0, "length": 192, "rivals": [2]},
        {"until": 1.0, "share": 1.0, "length": 192},
    ]
    mixture = {"prompts": phases, "retrieval_format": "compact", "retrieval_tasks": ["bindings"]}
    mixture["retrieval_rivals"] = [1]
    config = pretrain_config(sequence_length=192, mixture=mixture, steps=2)
    inputs = {"tokens": tokens, "tokenizer": LocalArtifact(tmp_path / "tokenizer")}
    job = TrainingJob(recipe=recipe.of_pretrain(config), work_url="", execution=Execution(), **inputs)
    codec, batches = load_tokenizer(inputs["tokenizer"]), open_batches(job)
    for step, needles in enumerate((2, 1)):
        for row in batches[step].tokens:
            assert codec.decode(row.tolist()).count("The key of") == needles + 1  # the needles and the question
