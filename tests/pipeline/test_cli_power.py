"""``infini-study power`` as a user meets it: a table or JSON, one line a fault, spreads of an earlier run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli.options import open_study
from pipeline.engine.store import Store
from stages.stage import Summary
from tests.pipeline.called import Command
from tests.stages.synthetic import Synthetic

LARGE = ("--set", "seeds=[0,1,2]", "--set", "evaluate.retrieval.trials=40", "--set", "evaluate.retrieval.lengths=[512]")


def test_table_and_json_say_the_same(cli: Command) -> None:
    said = cli("power", "tiny.yaml", *LARGE)
    assert said.code == 0
    table = said.out.splitlines()
    assert table[0].split()[:3] == ["claim", "seeds", "items"]
    claims = json.loads(cli("power", "tiny.yaml", *LARGE, "--json").out)["claims"]
    assert [row["claim"] for row in claims] == [line.split()[0] for line in table[1:-2]]
    assert {row["claim"] for row in claims} == {"C1", "C2", "C3", "C5b", "C13"}  # it has no control
    assert all(row["smallest_text"] in line for row, line in zip(claims, table[1:-2], strict=True))
    assert not Path("runs").exists()


def test_hours_follow_the_rate_and_the_steps_a_claim_rests_on(cli: Command) -> None:
    slow, fast = (
        json.loads(cli("power", "tiny.yaml", *LARGE, "--json", "--tflops", rate).out) for rate in ("0.01", "0.02")
    )
    assert slow["hours"] == 2 * fast["hours"] > 0
    hours = {row["claim"]: row["hours"] for row in slow["claims"]}
    assert hours["C1"] < hours["C2"] == slow["hours"]  # knock-outs need the memory arms only


@pytest.mark.parametrize("remote", [False, True])
def test_hours_without_a_rate_follow_the_trainings_of_the_store_as_in_a_plan(
    cli: Command,
    request: pytest.FixtureRequest,
    remote: bool,
) -> None:
    root = request.getfixturevalue("s3_root") if remote else "store"

    def asked(*options: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(cli("power", "tiny.yaml", *LARGE, "--json", *options).out)
        return found

    unknown = asked()
    assert unknown["tflops"] == 0.02 and "assumed, a CPU core" in str(unknown["tflops_from"])
    card = asked("--set", "execution.gpus_per_worker=1")
    assert card["tflops"] == 0.4 * 67 and "40% of an H100's peak in fp32" in str(card["tflops_from"])
    store = Store(root)
    step = next(
        step for step in open_study(Path("tiny.yaml"), list(LARGE[1::2]), root).plan.steps if step.id.startswith("base")
    )
    attempt = store.attempt(step.stage.name, step.key)
    (attempt.directory / "made").write_text("x")
    summary = Summary("made", metrics={"flops_per_token": 2e6, "tokens_per_s": 20_000.0})
    store.commit(step.stage.name, step.key, store.seal(attempt), summary, {**step.record(), "hardware": "2 x Some CPU"})
    timed = asked("--root", root)
    assert timed["tflops"] == 0.04 and timed["tflops_from"] == "measured in 1 earlier training on 2 x Some CPU"
    assert cli("plan", "tiny.yaml", *LARGE, "--root", root, "--json").json["cost"]["rate"] == 0.04e12


def test_what_cannot_decide_is_one_line_before_any_work(cli: Command) -> None:
    for arguments, message in (
        ((), "seeds = [0]: 1 seed, and the rules decide nothing below claims.minimum_seeds = 3. Fix: name at least 3"),
        (
            ("--set", "seeds=[0,1,2]", "--set", "evaluate.retrieval.depths=[1.0]"),
            "evaluate.retrieval.trials = 2: fewer",
        ),
        ((*LARGE, "--tflops", "0"), "--tflops = 0.0: allowed is a number above 0"),
        ((*LARGE, "--set", "claims.pilot.loss_residual_sd=0"), "claims.pilot.loss_residual_sd = 0"),
    ):
        said = cli("power", "tiny.yaml", *arguments)
        assert said.code == 2 and len(said.faults) == 1 and message in said.faults[0], said.err


def test_spreads_come_from_the_last_run_of_the_study(cli: Command, tmp_path: Path) -> None:
    overrides = [value for value in LARGE if value != "--set"]
    opened = open_study(Path("tiny.yaml"), overrides, "store")
    made = Synthetic(tmp_path / "made", documents=30).evaluate(prompts=False).inputs
    store = Store("store")
    for step in opened.plan.steps:
        if step.id in made:
            attempt = store.attempt(step.stage.name, step.key)
            table = made[step.id].path("perplexity.parquet")
            (attempt.directory / "perplexity.parquet").write_bytes(table.read_bytes())
            store.commit(step.stage.name, step.key, store.seal(attempt), Summary(step.id), step.record())
    store.record_study(opened.plan.record())
    found = json.loads(cli("power", "tiny.yaml", *LARGE, "--root", "store", "--json").out)["claims"]
    pilots = {row["claim"]: row["pilot"] for row in found}
    assert pilots["C2"] == pilots["C13"] == "earlier run: 3 seeds x 30 items, widest arm"
    assert pilots["C3"] == "claims.pilot"


def test_a_plan_names_the_claims_that_the_study_is_too_small_for(cli: Command) -> None:
    found = cli("plan", "tiny.yaml", "--json").json["shortfalls"]
    assert found and all("Fix: " in text for text in found)
    assert all(f"warning: {text}" in " ".join(cli("plan", "tiny.yaml").err.split()) for text in found)
