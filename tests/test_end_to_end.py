"""The whole study through the command line: it runs, a second run finds nothing to do, a killed one completes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from model.arms import variants
from pipeline.engine.store import Store
from pipeline.study.yamlfile import parse
from stages.verdict.claims.table import CLAIMS
from tests.support import executed
from tests.tiny import write_study

COMMAND = [sys.executable, "-m", "pipeline.cli"]
ENVIRONMENT = {
    k: v for k, v in os.environ.items() if not k.startswith(("RAY_ADDRESS", "INFINI_STUDY", "MLFLOW_TRACKING"))
}


def study(folder: Path, *arguments: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    return executed([*COMMAND, *arguments], folder, ENVIRONMENT, timeout)


def digests(root: Path) -> dict[str, str]:
    """Step -> digest of its files, for the steps that promise the same bytes."""
    return {c.step: c.digest for c in Store(root).commits() if c.meta["deterministic"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """An uninterrupted run of the tiny study with everything in it."""
    folder = tmp_path_factory.mktemp("whole")
    write_study(folder)
    return folder, study(folder, "run", "tiny.yaml")


def test_a_study_ends_with_its_verdicts_and_the_way_to_them(whole):
    folder, done = whole
    assert done.returncode == 0, done.stderr[-4000:]
    for claim in CLAIMS:
        assert f"\n{claim.id} " in done.stdout
    assert "not measured" in done.stdout and "report.html" in done.stdout and "infini-study ui" in done.stdout
    assert (folder / "runs/store/reports/tiny/report.html").stat().st_size > 50_000
    assert "/s" in done.stderr  # progress with a rate


def test_every_arm_runs_through_the_study(tmp_path):
    """The arms the tiny study leaves out: trained from one base, evaluated, generating, exported."""
    options = {"rmt": {"memory_tokens": 4}, "memorizing": {"top_k": 4}, "landmark": {"block_tokens": 15}}
    path = write_study(tmp_path)
    changed = parse(path.read_text(), path.name)
    arms = {name: {**variants()[name], **options.get(name, {})} for name in variants() if name not in changed["arms"]}
    changed = {name: section for name, section in changed.items() if name != "ablate"} | {"arms": arms}
    changed["pretrain"] |= {"steps": 2, "curriculum_share": 0.5}
    path.write_text(json.dumps(changed))
    done = study(tmp_path, "run", "tiny.yaml")
    assert done.returncode == 0, done.stderr[-4000:]
    store = Store(tmp_path / "runs/store")
    made = {commit.step: store.artifact(commit) for commit in store.commits()}
    assert len(arms) == 7
    for arm in arms:
        rows = pq.read_table(made[f"evaluate/{arm}/0"].path("perplexity.parquet")).to_pylist()
        nll = sum(row["nll_sum"] for row in rows) / sum(row["tokens"] for row in rows)
        assert 1 < nll < 7, arm  # nats per byte; ln 258 = 5.55 knows nothing
        cost = json.loads(made[f"pretrain/{arm}/0"].path("cost.json").read_text())
        assert cost["flops_per_token_training"] > 0 and cost["tokens_per_s"] > 0
    done = study(tmp_path, "export", "pretrain/landmark/0", "exported", "--json")
    assert done.returncode == 0 and (tmp_path / "exported/config.json").is_file(), done.stderr[-2000:]


def test_the_planted_passage_was_cut_from_training(whole):
    folder, _ = whole
    done = study(folder, "audit", "tiny.yaml", "--json")
    (pair,) = json.loads(done.stdout)["pairs"]
    assert (pair["doc_id"].endswith("107"), pair["book_id"].endswith("1")) == (True, True)
    assert 200 <= pair["matched_words"] <= 240


def test_a_second_run_does_nothing_and_imports_nothing_heavy(whole):
    folder, _ = whole
    code = (
        "import sys, runpy\nsys.argv = ['infini-study', 'run', 'tiny.yaml']\n"
        "try: runpy.run_module('pipeline.cli', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "print('HEAVY', sorted({'ray', 'torch', 'mlflow', 'datasets', 'pandas', 'numba'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr
    assert "nothing to do" in done.stdout and "C13" in done.stdout


def test_a_change_runs_only_what_depends_on_it(whole):
    folder, _ = whole
    done = study(folder, "plan", "tiny.yaml", "--set", "ablate.seed=1", "--json")
    plan = json.loads(done.stdout)
    run = {step["step"]: step["reason"] for step in plan["steps"] if step["action"] == "run"}
    assert set(run) == {"ablate/infini-linear/0", "ablate/infini-delta/0", "report"}
    assert run["ablate/infini-linear/0"] == "seed: 0 -> 1"
    explained = study(folder, "explain", "tiny.yaml", "ablate/infini-delta/0", "--set", "ablate.seed=1")
    assert "  seed: 0 -> 1" in explained.stdout.splitlines()


def test_a_changed_book_is_named_in_the_plan(whole):
    folder, _ = whole
    book = folder / "books" / "train" / "100.txt"
    text = book.read_text()
    book.write_text(text + "one more\n")
    try:
        plan = json.loads(study(folder, "plan", "tiny.yaml", "--json").stdout)
    finally:
        book.write_text(text)
    assert plan["counts"] == {"run": len(plan["steps"])}
    assert plan["steps"][0]["reason"].startswith("changed: train/100.txt; sources.0.pin:")


def test_every_number_has_its_rows(whole):
    folder, _ = whole
    report = json.loads((folder / "runs/store/reports/tiny/report.json").read_text())
    sources = [source for verdict in report["verdicts"] for source in verdict["sources"]]
    assert sources
    store = Store(folder / "runs" / "store")
    known = {commit.key for commit in store.commits()}
    assert {source["key"] for source in sources if not source["step"].startswith("model.")} <= known


def test_the_commands_that_look_at_things_agree_with_the_store(whole):
    folder, _ = whole
    listed = json.loads(study(folder, "ls", "--json").stdout)["artifacts"]
    assert len(listed) == len(list(Store(folder / "runs" / "store").commits()))
    rows = json.loads(study(folder, "show", "evaluate/local/0", "--table", "perplexity", "--json").stdout)
    assert rows["total_rows"] == len(rows["rows"]) > 0
    assert "all files as committed" in study(folder, "verify").stdout
    assert study(folder, "lineage", "report").stdout.count("ingest") >= 1
    assert "0 B would go" in study(folder, "gc").stdout
    shell = f"set -o pipefail; {' '.join(COMMAND)} show evaluate/local/0 --table perplexity --limit 9999 | head -n 1"
    cut = subprocess.run(
        ["bash", "-c", shell], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (cut.returncode, cut.stderr) == (0, "")
    assert "did you mean" in study(folder, "show", "evaluate/locl/0").stderr
    status = json.loads(study(folder, "status", "tiny.yaml", "--json").stdout)["stages"]
    assert all(stage["made"] == stage["total"] for stage in status.values())


def test_mlflow_has_a_run_per_step_under_the_study(whole):
    import mlflow

    folder, _ = whole
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/runs/store/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id], max_results=500)
    steps = {run.data.tags.get("step"): run for run in runs if "mlflow.parentRunId" in run.data.tags}
    commits = {c.step: c for c in Store(folder / "runs" / "store").commits()}
    assert set(steps) == set(commits)
    trained = steps["pretrain/infini-delta/0"]
    assert trained.info.status == "FINISHED" and trained.data.tags["arm"] == "infini-delta"
    names = ("tokenize", "tokenizer", "base/0", "pretrain/infini-delta/0")
    assert {d.dataset.digest for d in trained.inputs.dataset_inputs} == {commits[name].key[:36] for name in names}
    assert len(client.get_metric_history(trained.info.run_id, "loss")) >= 2
    paths = {f.path for f in client.list_artifacts(steps["decontaminate"].info.run_id)}
    assert "audit.html" in paths
    tables = {f.path for f in client.list_artifacts(steps["decontaminate"].info.run_id, "tables")}
    assert len(tables) >= 4  # evaluation documents, decisions, pairs, spans


def test_killed_at_any_moment_it_completes_to_the_same_artifacts(whole, tmp_path):
    """SIGKILL of the driver while the corpus, then while a model is made; the next run finishes to the same bytes."""
    folder, _ = whole
    write_study(tmp_path)
    root = tmp_path / "runs" / "store"
    for moment in ("ingest/*/attempts", "pretrain/*/work"):
        driver = subprocess.Popen(
            [*COMMAND, "run", "tiny.yaml", "-q"], cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 200
        while driver.poll() is None and not list(root.glob(moment)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert driver.poll() is None, driver.stderr.read() if driver.stderr else ""
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
    done = study(tmp_path, "run", "tiny.yaml", "-q")
    assert done.returncode == 0, done.stderr[-4000:]
    assert digests(root) == digests(folder / "runs" / "store")
