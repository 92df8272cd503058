"""What a run would come to lack hours later is one error before it starts anything, and a line of its plan."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.engine.plan import StepDecision, decide, missing
from pipeline.engine.store import Store
from pipeline.errors import StudyError
from pipeline.study.graph import expand
from pipeline.study.load import load
from stages.evidence.rate import config as rate_config
from tests.chat_server import ChatServer, serving
from tests.tiny import write_study

JUDGE = "judge={{endpoint: {{url: '{url}', model: m, key_env: {key}}}}}"
GONE = "http://127.0.0.1:9/v1"
PAIRS = "{steps: 2, batch_sequences: 1, lr: 1e-3, pairs: {path: pairs.jsonl, max_tokens: 64, summary_tokens: 16}}"
TUNED = (
    "align={{variants: {{x: {{method: {method}, steps: 1, batch_sequences: 1, lr: 1e-3, length: 64, "
    "data: {{path: {path}}}}}}}}}"
)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    return write_study(tmp_path)


def lacks(study: Path, *changes: str) -> list[str]:
    plan = expand(load(study, list(changes), environment={}), None)
    return missing(plan, decide(plan, Store(study.parent / "store")))


def command(study: Path, *arguments: str) -> tuple[int, str]:
    at = ["--root", str(study.parent / "store")]
    result = CliRunner().invoke(app, [arguments[0], str(study), *arguments[1:], *at], catch_exceptions=False)
    return result.exit_code, result.output


def test_a_missing_key_ends_a_run_before_it_starts_and_is_said_by_the_plan(study, monkeypatch):
    no_key = JUDGE.format(url=GONE, key="JUDGE_KEY")
    code, said = command(study, "plan", "--set", no_key)
    assert code == 0 and "before the run: judge.endpoint.key_env = 'JUDGE_KEY'" in " ".join(said.split())
    code, said = command(study, "plan", "--set", no_key, "--json")
    assert "export JUDGE_KEY" in json.loads(said)["missing"][0]
    result = CliRunner().invoke(app, ["run", str(study), "--set", no_key, "--root", str(study.parent / "store")])
    assert isinstance(result.exception, StudyError) and "export JUDGE_KEY" in str(result.exception)
    assert not (study.parent / "store").exists() or not list((study.parent / "store").rglob("COMMIT.json"))
    monkeypatch.setenv("JUDGE_KEY", "k")
    assert [line[:27] for line in lacks(study, no_key)] == ["judge.endpoint.url = 'http:"]
    for odd in ("sk 17", "sk17\nX-Evil: 1", "sk17é"):
        monkeypatch.setenv("JUDGE_KEY", odd)
        (line,) = lacks(study, no_key)
        assert "no key has" in line and "17" not in line


def test_a_server_is_looked_for_where_it_is_needed_later_and_not_where_answers_may_be_there(study):
    with serving(ChatServer().app()) as url:
        assert lacks(study, JUDGE.format(url=url, key="null")) == []
    gone = JUDGE.format(url=GONE, key="null")
    (line,) = lacks(study, gone)
    assert "no server answers there (Connection refused)" in line and "--until summarize" in line
    assert lacks(study, JUDGE.format(url="http://no-such-host.invalid/v1", key="null"))[0].count("no server answers")
    plan = expand(load(study, [gone], environment={}), None)
    made = {step.id: StepDecision("reuse", "") for step in plan.steps} | {"judge": StepDecision("run", "")}
    assert missing(plan, made) == [], "it asks at once, or has all answers"
    skipped = {step.id: StepDecision("skip", "") for step in plan.steps}
    assert missing(plan, skipped) == [], "the judge is not run"


def test_a_place_where_paid_answers_could_not_be_kept_is_an_error(study):
    (study.parent / "taken").write_text("a file")
    with serving(ChatServer().app()) as url:
        judge = JUDGE.format(url=url, key="null").replace("judge={", "judge={cache: CACHE, ")
        for cache, wrong in (("taken", True), ("taken/deeper", True), ("new/folder", False), ("s3://bucket/x", False)):
            found = lacks(study, judge.replace("CACHE", cache))
            assert bool(found) == wrong, cache
            assert not wrong or ("judge.cache" in found[0] and "is no folder" in found[0])
    assert not (study.parent / "new").exists(), "only looked at"


def test_rows_that_cannot_be_trained_on_are_found_before_hours_of_training(study):
    pairs, rows = study.parent / "pairs.jsonl", study.parent / "rows.jsonl"
    for content, message in (
        ('{"text": "a", "summary": ""}\n', r"no row can be trained on \(no summary: 1 \(first in row 1\)\)"),
        ('{"text": "a", "summary": "b", "split": "test"}\n', r"of the split test: 1"),
        ("", "no rows"),
    ):
        pairs.write_text(content)
        (line,) = lacks(study, f"finetune={PAIRS}")
        assert line.startswith("finetune.pairs.path") and re.search(message, line), line
    pairs.write_text('{"text": "a", "summary": "b"}\n[1]\n')
    with pytest.raises(StudyError, match=r"finetune\.pairs\.path.*line 2: no object"):
        lacks(study, f"finetune={PAIRS}")
    pairs.write_text('{"text": "a", "summary": "b"}\n{"text": "a"}\n')
    assert lacks(study, f"finetune={PAIRS}", f"finetune_summaries={PAIRS}") == [], "the good row is left"
    for method, content, message in (
        ("dpo", '{"prompt": "a", "chosen": "b"}\n', "no rejected answer: 1"),
        ("dpo", '{"prompt": "a", "chosen": "b", "rejected": "b"}\n', "are the same: 1"),
        ("sft", '{"messages": [{"role": "user", "content": "a"}]}\n', "no answer of the assistant: 1"),
        ("sft", "prose\n", "line 1 is no JSON object"),
    ):
        rows.write_text(content)
        (line,) = lacks(study, TUNED.format(method=method, path=rows))
        assert message in line
    (study.parent / "rows.parquet").write_text("x")
    assert "not a Parquet file" in lacks(study, TUNED.format(method="sft", path=study.parent / "rows.parquet"))[0]


def test_pairs_without_a_summary_are_found_before_anything_runs(study):
    (study.parent / "pairs.jsonl").write_text('{"text": "a", "summary": "b"}\n{"text": "a"}\n')
    said = "summarize={tasks: [condense], pairs: {path: pairs.jsonl}, documents: 2, prompt_tokens: 96, new_tokens: 16}"
    (line,) = lacks(study, said)
    assert "line 2 lacks text or summary" in line


def test_models_that_cannot_be_what_they_are_named_for_are_errors_of_the_plan(study, monkeypatch):
    model = study.parent / "model"
    model.mkdir()

    def refused(override: str) -> str:
        with pytest.raises(StudyError) as caught:
            expand(load(study, [override], environment={}), None)
        return str(caught.value)

    assert "holds no config.json" in refused("rate={embedding: {path: model}}")
    assert "holds no config.json" in refused("judge={local: {path: model}}")
    (model / "config.json").write_text("{")
    assert "is not JSON" in refused("rate={bertscore: {path: model}}")
    (model / "config.json").write_text('{"num_hidden_layers": 2, "id2label": {"0": "good", "1": "bad"}}')
    assert "no label that says entailment" in refused("rate={nli: {path: model}}")
    assert "allowed: 0 to 2, or -1 to -3" in refused("rate={bertscore: {path: model, layer: 3}}")
    assert lacks(study, "rate={bertscore: {path: model, layer: 2}}") == []
    monkeypatch.setattr(rate_config.importlib.util, "find_spec", lambda name: None)
    (line,) = lacks(study, "rate={bertscore: {path: model, layer: 2}}")
    assert "transformers, which is not installed" in line and "infini-study[rate]" in line
    (line,) = lacks(study, "judge={local: {path: model}}")
    assert line.startswith("judge.local")


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("budget: {tokens: 0}", "tokens = 0"),
        ("budget: {money: 0}, price_input: 1, price_output: 1", "money = 0"),
        ("budget: {money: 1}", "without price_input"),
        ("budget: {money: 1}, price_input: 1", "price_input has no effect without price_output"),
        ("price_output: 1", "price_output has no effect without price_input"),
        ("budget: {tokens: 400}", "no question fits"),
        ("key_env: sk-1234-secret", "not the name of an environment variable"),
        ("key_env: ''", "not the name of an environment variable"),
        ("url: 'https://me:secret@x'", "holds a password"),
        ("url: 'ftp://x'", "begins with http:// or https://"),
        ("attempts: 0", "attempts = 0"),
        ("timeout_s: .inf", "timeout_s"),
    ],
)
def test_endpoints_that_could_never_answer_are_refused_with_the_file(study, endpoint, message):
    at = "url: 'http://x', "
    with pytest.raises(StudyError) as caught:
        load(study, [f"judge={{endpoint: {{{'' if 'url' in endpoint else at}model: m, {endpoint}}}}}"], environment={})
    assert message in str(caught.value) and "secret" not in str(caught.value)
