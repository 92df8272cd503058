"""Prompts in RULER's form from a file: in the plan, in the key, as rows of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pipeline.errors import StudyError
from pipeline.study.graph import expand
from pipeline.study.load import load
from stages.data.tasks.config import PromptFile, RetrievalConfig
from stages.data.tasks.files import file_items, prompts_of
from stages.data.tokens.load import load_tokenizer
from stages.evidence.evaluate import retrieval
from stages.evidence.evaluate.stage import STAGE, EvaluateConfig, PerplexityConfig
from stages.stage import Execution
from tests.stages.evaluation_inputs import SEGMENT, build, decoder, save
from tests.stages.readers import Bytes
from tests.support import LocalContext
from tests.tiny import write_study

ROWS = [
    {
        "index": 0,
        "input": "One number is 71. The rest is text.\n" * 4,
        "outputs": ["71"],
        "answer_prefix": "The number is",
    },
    {"index": 1, "input": "Nothing is said here.", "outputs": ["red", "blue"]},
]


def write(folder: Path, *rows: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows or ROWS))
    return path


def test_prompts_are_asked_as_they_stand(tmp_path):
    file = PromptFile(path=str(write(tmp_path)), budget=8)
    first, second = file_items(prompts_of("mine", file), Bytes())
    text = Bytes().decode(first.prompt)
    assert text == ROWS[0]["input"] + "The number is" and first.answers == ("71",)
    assert text[: first.needle_end].endswith("71") and text[first.needle_end :].count("71") == 0
    assert first.length == len(first.prompt) + 8 == second.length and len(second.prompt) == 21
    assert second.needle_end == len(second.prompt) and second.item != first.item
    assert [first.record.score(" It is 71.", first.answers), second.record.score("Red", second.answers)] == [1, 0.5]
    part = PromptFile(path=file.path, match="part")
    assert prompts_of("mine", part).task.score("Red", second.answers) == 1


class Begun(Bytes):
    begin = (1,)


def test_they_begin_with_what_documents_begin_with(tmp_path):
    file = prompts_of("mine", PromptFile(path=str(write(tmp_path))))
    for plain, begun in zip(file_items(file, Bytes()), file_items(file, Begun()), strict=True):
        assert begun.prompt == (1, *plain.prompt) and begun.distance == plain.distance


def test_an_evaluation_has_their_rows_beside_those_of_tasks(tmp_path):
    inputs = build(tmp_path / "inputs")
    tokenizer = load_tokenizer(inputs["tokenizer"])
    inputs["model"] = save(decoder(vocab_size=tokenizer.vocab_size), tmp_path / "model")
    asked = RetrievalConfig(
        format="compact",
        lengths=(96,),
        trials=2,
        rivals=(1,),
        binding_trials=1,
        control_trials=0,
        tasks={"niah_multikey_1": {"k": (2,), "lengths": (160, 320)}, "vt": {"k": (1,), "lengths": (200,)}},
        files={"mine": PromptFile(path=str(write(tmp_path)), budget=8)},
    )
    config = EvaluateConfig(perplexity=PerplexityConfig(max_documents=1), retrieval=asked)
    (tmp_path / "out").mkdir()
    context = LocalContext(str(tmp_path / "work"), execution=Execution(device="cpu"))
    STAGE.run(config, inputs, tmp_path / "out", context)
    rows = pq.read_table(tmp_path / "out" / "tasks.parquet").to_pylist()
    assert [row["task"] for row in rows] == ["niah_multikey_1"] * 4 + ["vt"] * 2 + ["mine"] * 2
    for row in rows[:6]:
        assert row["prompt_tokens"] + row["budget"] == row["length"]
        end = row["prompt_tokens"] - row["distance"]
        assert row["segments"] == (row["prompt_tokens"] - 1) // SEGMENT - (end - 1) // SEGMENT
        assert len(row["offsets"]) == len(row["values"]) and row["beyond_local"] == (row["segments"] > 0)


def test_blocks_hold_few_prompts_and_change_nothing(tmp_path, monkeypatch):
    inputs = build(tmp_path / "inputs")
    tokenizer = load_tokenizer(inputs["tokenizer"])
    model = decoder(vocab_size=tokenizer.vocab_size)
    items = list(file_items(prompts_of("mine", PromptFile(path=str(write(tmp_path)), budget=4)), tokenizer))
    whole = retrieval.answers(model, tokenizer, items, lambda _: None)
    monkeypatch.setattr(retrieval, "BLOCK_TOKENS", 1)
    assert [len(block) for block in retrieval.blocks(items)] == [1, 1]
    again = [
        one for block in retrieval.blocks(items) for one in retrieval.answers(model, tokenizer, block, lambda _: None)
    ]
    assert [said for said, _ in again] == [said for said, _ in whole]
    assert np.allclose([nats for _, nats in again], [nats for _, nats in whole])


def test_the_plan_pins_the_file_and_its_place_does_not_count(tmp_path):
    study = write_study(tmp_path)
    plain = expand(load(study, environment={}), None)["evaluate/local/0"].key
    keys = []
    for folder in ("", "there/"):
        (tmp_path / folder).mkdir(exist_ok=True)
        write(tmp_path / folder)
        change = f"evaluate.retrieval.files={{mine: {{path: {folder}prompts.jsonl}}}}"
        keys.append(expand(load(study, [change], environment={}), None)["evaluate/local/0"].key)
    write(tmp_path, ROWS[0])
    change = "evaluate.retrieval.files={mine: {path: prompts.jsonl}}"
    other = expand(load(study, [change], environment={}), None)["evaluate/local/0"].key
    assert keys[0] == keys[1] != plain and other not in (plain, keys[0])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"input": "a"}], r"files\.mine\.path = .*line 1 is no prompt: no field 'outputs'"),
        ([ROWS[1], {"input": "a", "outputs": []}], r"line 2 is no prompt: outputs must be a list"),
        ([ROWS[1], "a"], r"line 2 is no prompt: no object"),
        (None, r"files\.mine\.path = 'prompts\.jsonl': no such file"),
    ],
)
def test_a_file_that_holds_no_prompts_is_one_error_in_the_plan(tmp_path, rows, message):
    study = write_study(tmp_path)
    if rows is not None:
        write(tmp_path, *rows)
    with pytest.raises(StudyError, match=message) as caught:
        expand(load(study, ["evaluate.retrieval.files={mine: {path: prompts.jsonl}}"], environment={}), None)
    assert len(str(caught.value).splitlines()) == 1


def test_a_prompt_nested_too_deep_is_one_error_in_the_plan(tmp_path):
    study = write_study(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"input": "a", "outputs": ' + "[" * 50_000 + "]" * 50_000 + "}")
    with pytest.raises(StudyError, match="line 1 is no prompt"):
        expand(load(study, ["evaluate.retrieval.files={mine: {path: prompts.jsonl}}"], environment={}), None)


def test_knock_outs_are_not_asked_prompts_of_files(tmp_path):
    study = write_study(tmp_path)
    with pytest.raises(StudyError, match=r"retrieval\.files = \['mine'\]: the knock-outs are asked"):
        load(study, ["ablate.retrieval.files={mine: {path: prompts.jsonl}}"], environment={})


def test_a_name_that_a_task_has_is_refused():
    with pytest.raises(ValidationError, match=r"vt: allowed are names .* that no task has"):
        RetrievalConfig(lengths=(96,), trials=1, files={"vt": PromptFile(path="x")})
