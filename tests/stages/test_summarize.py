"""Continuations and condensations: honest references, known ROUGE values, seeded samples."""

from __future__ import annotations

import hashlib
import json

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stages.data.tokens.load import load_tokenizer
from stages.evidence.summarize import items as examples
from stages.evidence.summarize.rouge import rouge
from stages.evidence.summarize.stage import REFERENCES, STAGE, SummarizeConfig, pin_pairs
from stages.stage import StageError
from tests.stages.evaluation_inputs import build, decoder, save
from tests.support import LocalArtifact, LocalContext

CONFIG = SummarizeConfig(documents=3, prompt_tokens=80, new_tokens=30, min_opening_words=8)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return build(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def tokenizer(inputs):
    return load_tokenizer(inputs["tokenizer"])


def run(config, inputs, tokenizer, folder):
    folder.mkdir()
    model = save(decoder(vocab_size=tokenizer.vocab_size), folder)
    context = LocalContext(str(folder))
    for name in ("items", "out"):
        (folder / name).mkdir()
    REFERENCES.run(config.items(), inputs, folder / "items", context)
    made = {"model": model, "references": LocalArtifact(folder / "items"), "tokenizer": inputs["tokenizer"]}
    summary = STAGE.run(config, made, folder / "out", context)
    return pq.read_table(folder / "out" / "summaries.parquet").to_pylist(), summary, context


def test_rouge_by_hand():
    same = rouge("The cats sat. They slept.", "The cat sat. They sleeps.")
    assert same["rouge1"] == pytest.approx(0.8)  # stemming: cats = cat, sleeps = sleep, slept stays
    half = rouge("a b c d", "a b x y")
    assert half["rouge1"] == 0.5 and half["rouge2"] == pytest.approx(1 / 3) and half["rougeL"] == 0.5
    swapped = rouge("One two three. Four five six.", "Four five six. One two three.")
    assert swapped["rougeLsum"] == 1 and swapped["rougeL"] == 0.5  # sentence by sentence against one sequence
    assert rouge("words", "")["rouge1"] == 0


def test_continue_asks_for_what_really_follows(inputs, tokenizer):
    documents = dict(examples.held_out(inputs["documents"], ["test"]))
    made = examples.continuations(list(documents.items()), tokenizer, CONFIG)
    assert [e.doc_id for e in made] == ["test0", "test1", "test2"]  # test3 is too short
    for example in made:
        text = documents[example.doc_id]
        assert tokenizer.decode(example.prompt) + example.references[0] == text[: 80 + 30]


def test_condense_withholds_the_opening_it_asks_for(inputs, tokenizer):
    documents = dict(examples.held_out(inputs["documents"], ["test"]))
    made = examples.condensations(list(documents.items()), tokenizer, CONFIG)
    assert len(made) == 3
    for example in made:
        prompt = tokenizer.decode(examples.prompt_of(example, tokenizer, "80", CONFIG.cue))
        title, opening, body = documents[example.doc_id].split("\n\n")
        assert example.references == (opening,) and opening not in prompt and title not in prompt
        assert prompt == body[: 80 - len("\n\nSummary:")] + "\n\nSummary:"
    assert examples.opening("Title\n\nToo short.\n \nThis is long enough to be one.", 5).group().startswith("This")
    assert examples.opening("Title\n\nToo short.", 5) is None


def test_stage_writes_every_hypothesis_beside_its_reference(inputs, tokenizer, tmp_path):
    rows, summary, _ = run(CONFIG, inputs, tokenizer, tmp_path / "a")
    assert [(r["task"], r["doc_id"]) for r in rows] == [
        (task, f"test{i}") for task in ("continue", "condense") for i in range(3)
    ]
    for row in rows:
        assert row["prompt_tokens"] == 80 and row["reference"]
        scores = rouge(row["reference"], row["hypothesis"])
        assert {k: row[k] for k in scores} == pytest.approx(scores)
    mean = sum(r["rougeL"] for r in rows[:3]) / 3
    assert summary.metrics["continue.rougeL"] == pytest.approx(mean) and f"{mean:.3f}" in summary.headline
    again, _, _ = run(CONFIG, inputs, tokenizer, tmp_path / "b")
    assert rows == again
    other, _, _ = run(CONFIG.model_copy(update={"seed": 1}), inputs, tokenizer, tmp_path / "c")
    assert [r["hypothesis"] for r in rows] != [r["hypothesis"] for r in other]


def test_fewer_documents_than_asked_is_a_warning_and_none_an_error(inputs, tokenizer, tmp_path):
    _, _, context = run(CONFIG.model_copy(update={"documents": 50}), inputs, tokenizer, tmp_path / "a")
    assert any("3 of 50" in line for line in context.warned)
    with pytest.raises(StageError, match="prompt_tokens = 5000"):
        run(CONFIG.model_copy(update={"prompt_tokens": 5000}), inputs, tokenizer, tmp_path / "b")
    with pytest.raises(StageError, match="cue alone"):
        run(CONFIG.model_copy(update={"cue": "x" * 90}), inputs, tokenizer, tmp_path / "c")


def test_pairs_are_pinned_by_digest_not_by_place(inputs, tokenizer, tmp_path):
    lines = [{"id": "b1", "text": "A long story. " * 20, "summary": "A story."}, {"text": "Other.", "summary": "Else."}]
    data = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "pairs.jsonl").write_text(data)
    config = SummarizeConfig.model_validate(
        CONFIG.model_dump() | {"tasks": ["condense"], "pairs": {"path": "pairs.jsonl"}}
    )
    pinned = pin_pairs(config, tmp_path)
    assert pinned.pairs.pin == "sha256:" + hashlib.sha256(data.encode()).hexdigest()
    assert str(tmp_path) not in json.dumps(pinned.key_fields()) and pinned.pairs.pin in json.dumps(pinned.key_fields())
    rows, _, _ = run(pinned, inputs, tokenizer, tmp_path / "a")
    assert [(r["doc_id"], r["reference"]) for r in rows] == [("b1", "A story."), ("line-2", "Else.")]
    (tmp_path / "pairs.jsonl").write_text(data + "\n")
    with pytest.raises(StageError, match="pairs"):
        run(pinned, inputs, tokenizer, tmp_path / "b")
    with pytest.raises(StageError, match=r"summarize.pairs.pin.*now has the digest"):
        pin_pairs(pinned, tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"text": "only"}')
    with pytest.raises(StageError, match="line 1 lacks"):
        run(pin_pairs(config, tmp_path), inputs, tokenizer, tmp_path / "c")
    with pytest.raises(StageError, match="no such file"):
        pin_pairs(config, tmp_path / "elsewhere")


def test_config_refuses_what_it_does_not_know():
    with pytest.raises(ValidationError, match="top_p"):
        SummarizeConfig(prompt_tokens=8, new_tokens=8, top_p=1.5)
    with pytest.raises(ValidationError, match="beams"):
        SummarizeConfig(prompt_tokens=8, new_tokens=8, beams=4)
