"""SIGKILL at every kind of write of every stage, and a soak of random faults: the files are those of a clean run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.study.graph import expand
from pipeline.study.load import load
from pipeline.study.yamlfile import parse
from stages.stage import Stage
from tests.chat_server import ChatServer, serving
from tests.faults import Faults
from tests.faults.drivers import REPOSITORY, driver, result
from tests.faults.writes import point

SOAK = 200
WITHOUT = {"rate", "human"}  # they copy what a downloaded model and people said
FURTHER = """
dedup: {}
task_audit: {sources: [{name: pairs, path: pairs.jsonl, id: null, text: text, summary: summary}]}
capacity:
  {keys: [random], feature_maps: [elu1], rules: [linear], associations: [2, 4], overwrite_associations: [2], seeds: [0]}
calibrate:
  schlag: {associations: {elu1: [2]}, d_key: 4, steps: 2, evaluate_every: 1, evaluation_sequences: 2, batch: 2}
  mqar: {arms: [full, infini-delta], dims: [16], steps: 2, graft_steps: 2, batch: 2, trials: 4}
control:
  base: {steps: 2, evaluate_every: 1, batch: 2, held_trials: 2}
  graft: {steps: 2, evaluate_every: 1, batch: 2, held_trials: 2}
  competitors: []
  trials: 4
  knockout_trials: 2
  distances: [2]
  distance_trials: 2
finetune:
  {steps: 2, batch_sequences: 2, lr: 1e-3, tasks: {format: compact, phases: [{until: 1, length: 128}], text_share: 0.5}}
align:
  variants:
    dpo: {method: dpo, steps: 2, batch_sequences: 1, lr: 1e-4, length: 192, data: {path: preferences.jsonl}}
judge: {endpoint: {url: URL, model: tiny, key_env: null}, documents: 2, answer_tokens: 40}
"""


@pytest.fixture(scope="module")
def further(tiny: Path) -> Iterator[Path]:
    """That study with nearly every stage there is."""
    (tiny.parent / "pairs.jsonl").write_text(json.dumps({"text": "A long text. " * 20, "summary": "Short."}) + "\n")
    rows = [{"prompt": "Is it so? ", "chosen": "Yes.", "rejected": "No."}] * 2
    (tiny.parent / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tiny.with_name("further.yaml")
    with serving(ChatServer().app()) as url:
        study = {**parse(tiny.read_text(), tiny.name), **parse(FURTHER.replace("URL", url), "further")}
        path.write_text(json.dumps(study))
        yield path


def every_stage() -> set[str]:
    """Names of the stages that there are in this repository."""
    found, classes = set(), [Stage]
    while classes:
        one = classes.pop()
        classes += one.__subclasses__()
        if one.__module__.startswith("stages.") and one is not Stage and not one.__subclasses__():
            found.add(one.name)
    return found


def test_the_study_has_every_stage(further: Path):
    assert {step.stage.name for step in expand(load(further, ()), None).steps} == every_stage() - WITHOUT


def boundaries(study: Path, folder: Path, count: int, *stages: str, timeout: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.faults.boundaries", str(study), str(folder), str(count), "0", *stages]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_writes_are_told_apart_and_reads_are_none(tmp_path: Path):
    root, key = str(tmp_path), "a" * 64
    assert point("open", (f"{root}/make/{key}/x.json", "w", os.O_WRONLY), root) == "open make/*/x.json"
    assert (
        point("os.rename", (f"{root}/a", f"{root}/make/{key}/COMMIT.json", -1, -1), root) == "rename make/*/COMMIT.json"
    )
    assert point("open", (f"{root}/make/{key}/x.json", "r", os.O_RDONLY), root) is None
    assert point("open", (f"{root}/figures/bindings.svg", "w", os.O_WRONLY), root) == "open figures/*.svg"
    assert point("open", ("/elsewhere/x", "w", os.O_WRONLY), root) is None


TOY_WRITES = (
    "mkdir make/*",
    "open make/*/attempts/*/first.json",
    "open count/*/work/.checkpoint.json.*.tmp",
    "rename count/*/work/checkpoint.json",
    "link total/*/COMMIT.json",
    "remove make/*/.COMMIT.json.*.tmp",
    "open make/*/lease/.1.json.*.tmp",
)


@pytest.mark.parametrize("where", TOY_WRITES)
def test_a_driver_killed_before_a_write_leaves_what_the_next_completes(
    where: str, tmp_path: Path, faults: Faults, expected: dict[str, str]
):
    faults.fail_at("write", where, kind="sigkill")
    killed = driver(tmp_path / "root", faults)
    killed.communicate(timeout=120)
    assert (killed.returncode, faults.visits("write", where)) == (-9, 1)
    assert result(driver(tmp_path / "root", faults))["digests"] == expected


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_stage_survives_death_before_each_kind_of_write(further: Path, tmp_path: Path):
    found = boundaries(further, tmp_path / "boundaries", 0, timeout=2900)
    print(json.dumps(found["stages"]), f"{found['seconds']} s")
    assert found["failures"] == [] and set(found["stages"]) == every_stage() - WITHOUT
    for stage in found["stages"].values():
        assert stage["points"] == stage["survived"] >= 10


@pytest.mark.slow
@pytest.mark.timeout(3700)
def test_two_hundred_random_faults_change_no_file(tiny: Path, tmp_path: Path):
    soak = boundaries(tiny, tmp_path / "soak", SOAK, timeout=3600)
    print(json.dumps(soak["soak"]), f"{soak['seconds']} s")
    assert soak["failures"] == [] and soak["soak"]["injected"] >= SOAK
