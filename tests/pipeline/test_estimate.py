"""What a plan says that a study costs, against the arithmetic done by hand; and that plans stay cheap themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model.config import MixerConfig, ModelConfig
from model.cost import cost
from pipeline.cli.app import app
from pipeline.engine.plan import decide
from pipeline.engine.store import Store
from pipeline.study.estimate import count, estimate, lines
from pipeline.study.graph import expand
from pipeline.study.load import load
from stages.data.tokens.config import TokenizerConfig
from stages.data.tokens.stage import TOKENIZER
from stages.stage import Summary
from tests.support import LocalContext
from tests.tiny import write_study

RUNS = Path(__file__).parents[2] / "runs"


def test_the_cost_of_the_tiny_study_is_the_sum_over_its_steps(tmp_path: Path):
    loaded = load(write_study(tmp_path), ())
    plan, store = expand(loaded, None), Store(tmp_path / "root")
    found = estimate(loaded.study, plan, decide(plan, store), store)
    assert found.trainings == 6 and found.tokens == 4 * 256 + 5 * 4 * 4 * 128
    trunk = loaded.study.trunk
    full = ModelConfig(trunk=trunk, mixer=MixerConfig(kind="full", segment_length=32), vocab_size=258)
    flops, parameters = 4 * 256 * cost(full, 32).flops_per_token_training, cost(full, 32).parameters
    for mixer in loaded.study.arms.values():
        model = ModelConfig(trunk=trunk, mixer=mixer, vocab_size=258)
        flops += 4 * 4 * 128 * cost(model, 128).flops_per_token_training
        parameters += cost(model, 128).parameters
    assert found.training_flops == pytest.approx(flops)
    # passkeys: 4 and a control at 256 tokens; bindings: 2 and a control, for two k; six models, of two arms ablated
    asked = 256 * (2 * 2 + 1) + 256 * 2 * (2 + 1)
    ablated = 5 * (256 * 2 + 256 * 1 * 2)
    assert found.read_tokens == 6 * asked + 2 * ablated
    assert found.storage == 4 * parameters and found.memory > 16 * found.parameters
    assert found.rate is None and ["time", "unknown (no training was timed yet)"] in lines(found)
    assert any(
        row[0] == "not counted" and row[1] == "text of evaluate.perplexity (no max_documents)" for row in lines(found)
    )


def test_models_are_as_large_as_the_vocabulary_of_a_given_tokenizer(tmp_path: Path):
    study = write_study(tmp_path)
    TOKENIZER.run(TokenizerConfig(kind="bytes"), {"documents": None}, tmp_path, LocalContext(""))
    of = []
    for given in ("tokenizer={kind: bytes}", "tokenizer={kind: file, path: tokenizer.json, eos_token: <eos>}"):
        loaded = load(study, [given])
        plan, store = expand(loaded, None), Store(tmp_path / "root")
        of.append(estimate(loaded.study, plan, decide(plan, store), store).parameters)
    assert of[0] == of[1]


def test_hours_follow_from_trainings_that_were_timed_and_only_of_the_same_kind_of_machine(tmp_path: Path):
    loaded = load(write_study(tmp_path), ())
    plan, store = expand(loaded, None), Store(tmp_path / "root")

    def add(key: str, hardware: str, rate: float) -> None:
        attempt = store.attempt("pretrain", key)
        (attempt.directory / "x").write_text("x")
        meta = {"step": "pretrain/local/0", "hardware": hardware, "config": {}, "inputs": {}, "code_version": 1}
        summary = Summary("", {"flops_per_token": 1000.0, "tokens_per_s": rate})
        store.commit("pretrain", key, store.seal(attempt), summary, meta)

    for number, rate in enumerate((100.0, 300.0, 200.0)):
        add(f"{number:064x}", "2 x CPU, 8 GiB", rate)
    add("f" * 64, "2 x CPU, 8 GiB; 1 x GPU", 1e9)
    found = estimate(loaded.study, plan, decide(plan, store), store)
    assert found.rate == 200_000 and "3 earlier trainings on 2 x CPU" in found.rate_from
    assert found.hours == pytest.approx((found.training_flops + found.evaluation_flops) / 200_000 / 3600)
    assert found.gpu_hours is None


def test_what_is_made_costs_nothing_more(tmp_path: Path):
    loaded = load(write_study(tmp_path), ())
    plan, store = expand(loaded, None), Store(tmp_path / "root")
    for step in plan.steps:
        attempt = store.attempt(step.stage.name, step.key)
        (attempt.directory / "x").write_text("x")
        store.commit(step.stage.name, step.key, store.seal(attempt), Summary("", {}), step.record())
    found = estimate(loaded.study, plan, decide(plan, store), store)
    assert (found.trainings, found.tokens, found.evaluations) == (0, 0, 0) and lines(found) == []


def test_numbers_have_the_prefix_that_keeps_them_short():
    rounded = {12: "12 ", 1500: "1.5 k", 2.5e9: "2.5 G", 1.1e21: "1.1 Z", 999_999: "1 M"}
    assert [count(v) for v in rounded] == list(rounded.values())


@pytest.mark.parametrize(
    ("name", "arms", "gpus", "parameters"),
    [("single-gpu", 12, 1, (50e6, 150e6)), ("passkey-1m", 3, 1, (50e6, 150e6)), ("paper-1b", 5, 16, (0.9e9, 1.5e9))],
)
def test_the_large_studies_are_planned_without_a_network(
    name: str, arms: int, gpus: int, parameters: tuple[float, float], tmp_path: Path
):
    done = CliRunner().invoke(app, ["run", str(RUNS / f"{name}.yaml"), "--root", str(tmp_path), "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert (
        set(told["counts"]) == {"run"}
        and len({s["step"].split("/")[1] for s in told["steps"] if s["step"].startswith("pretrain/")}) == arms
    )
    costs = told["cost"]
    assert costs["gpus"] == gpus and parameters[0] < costs["parameters"] < parameters[1]
    assert costs["memory"] < 80e9 and costs["gpu_hours"] > 1 and costs["rate_from"].startswith("assumed: 40%")
