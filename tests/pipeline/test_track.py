"""MLflow: what a person finds in the UI after a run, a resumed run and a run whose tracking failed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from cluster import storage
from pipeline.cli.serve import serve
from pipeline.engine.execute import Outcome, execute
from pipeline.engine.origin import git_commit, version
from pipeline.engine.plan import Plan, decide
from pipeline.engine.store import Store
from pipeline.errors import StudyError
from pipeline.tracking.overview import Made, lineage, overview
from pipeline.tracking.publish import place
from pipeline.tracking.track import MlflowTracker, default_tracking_uri, flatten
from stages.stage import Execution
from tests.faults import Faults
from tests.faults.toys import toy_plan


def run(plan: Plan, store: Store, uri: str) -> Outcome:
    tracker = MlflowTracker(uri, store)
    return execute(
        plan,
        decide(plan, store),
        store,
        execution=Execution(jobs=1),
        tracker=tracker,
        address="inline",
        keep_going=True,
    )


class Tracked(NamedTuple):
    client: Any
    store: Store
    plan: Plan
    runs: list[Any]

    def children(self, step: str) -> list[Any]:
        return [run for run in self.runs if run.info.run_name == step]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    """A run in which one step fails, and the run that resumes it."""
    folder = tmp_path_factory.mktemp("tracked")
    faults, store = Faults(folder / "faults"), Store(folder / "root")
    uri = default_tracking_uri(store.root)
    faults.fail_at("count", "step 2", kind="stage_error")
    plan = toy_plan(faults)
    assert run(plan, store, uri).warnings == [("make", "one number is odd")]
    assert run(plan, store, uri).exit_code == 0
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("toy")
    return Tracked(client, store, plan, client.search_runs([experiment.experiment_id]))


def test_there_is_one_run_of_the_study_with_a_child_for_each_try(tracked: Tracked):
    parents = [run for run in tracked.runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.status for run in parents] == ["FINISHED"], "the second driver went on with the first one's run"
    children = [run for run in tracked.runs if run not in parents]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    tries = sorted((run.info.run_name, run.info.status) for run in children)
    assert tries == [
        ("count/a/0", "FAILED"),
        ("count/a/0", "FINISHED"),
        ("count/a/1", "FINISHED"),
        ("make", "FINISHED"),
        ("total", "FINISHED"),
    ]
    assert parents[0].data.params["version.ray"] and int(parents[0].data.params["system.cpus"]) >= 1


def test_the_version_and_commit_of_the_code_stand_with_artifact_run_and_report(tracked: Tracked):
    commits = {step.id: tracked.store.lookup(step.stage.name, step.key) for step in tracked.plan.steps}
    made = {name: commit for name, commit in commits.items() if commit is not None}
    facts = dict(place(tracked.plan, tracked.store, made).facts)
    assert version() is not None
    for step, commit in made.items():
        assert (commit.meta["version"], commit.meta["git_commit"]) == (version(), git_commit())
        (run,) = (run for run in tracked.children(step) if run.info.status == "FINISHED")
        assert run.data.tags["version"] == version()
        assert run.data.tags.get("git_commit") == run.data.tags.get("mlflow.source.git.commit") == git_commit()
    assert facts["version of infini-study"] == version() and facts.get("commit of the code") == git_commit()


def test_a_reused_step_links_to_the_run_that_made_it(tracked: Tracked):
    parent = next(run for run in tracked.runs if "mlflow.parentRunId" not in run.data.tags)
    make = tracked.plan["make"]
    noted = tracked.store.mlflow("make", make.key)
    assert noted is not None
    assert parent.data.tags["reused.make"] == noted["run_id"] == tracked.children("make")[0].info.run_id


def test_the_study_run_leads_to_the_pages_and_to_every_run(tracked: Tracked):
    parent = next(run for run in tracked.runs if "mlflow.parentRunId" not in run.data.tags)
    text = parent.data.tags["mlflow.note.content"]
    place = f"#/experiments/{parent.info.experiment_id}/runs"
    second = tracked.children("count/a/1")[0].info.run_id
    assert text.startswith("4 steps: 2 computed, 2 reused.")
    assert f"[page.html]({place}/{second}/artifacts/page.html?workflowType=machine_learning) of count/a/1" in text
    assert f"| make | [reused]({place}/{tracked.children('make')[0].info.run_id}) | 4 numbers |" in text
    assert f"[1]({place}/{second})" in text and "seed 0: total 14" in text


def test_from_a_step_one_can_click_to_its_pages_and_to_what_it_was_made_from(tracked: Tracked):
    ids = {step: tracked.children(step)[0].info.run_id for step in ("make", "count/a/1", "total")}
    place = f"#/experiments/{tracked.runs[0].info.experiment_id}/runs"
    count, total = (tracked.children(step)[0].data.tags["mlflow.note.content"] for step in ("count/a/1", "total"))
    page = f"[page.html]({place}/{ids['count/a/1']}/artifacts/page.html?workflowType=machine_learning)"
    assert count == f"total 15\n\n**Read:** {page}\n\n**Made from:** [make]({place}/{ids['make']})"
    assert f"[count/a/1]({place}/{ids['count/a/1']})" in total and "[count/a/0](" in total
    long = lineage("found", (), {f"step/{i}": "#/" + "x" * 40 for i in range(300)}, ("1", "2"), 8000)
    assert len(long) <= 8000 and long.endswith("), ...")


def test_an_arm_on_another_schedule_is_tracked_under_a_name_that_is_allowed(tmp_path: Path):
    """Its @ is none of the characters of a tag's name."""
    from mlflow import MlflowClient

    store, plan = Store(tmp_path / "root"), toy_plan(arm="a@b")
    uri = default_tracking_uri(store.root)
    warnings = [run(plan, store, uri).warnings for _ in range(2)]
    assert warnings == [[("make", "one number is odd")], []], "of the toy itself, and none of the tracking"
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert "reused.count/a:b/0" in parent.data.tags
    total = next(run for run in runs if run.info.run_name == "total")
    assert "input.count/a:b/1" in total.data.tags


def test_another_study_links_to_the_runs_of_the_first(tracked: Tracked):
    plan = toy_plan(study="other")
    assert run_all_reused(plan, tracked) == []
    other = tracked.client.get_experiment_by_name("other")
    (parent,) = tracked.client.search_runs([other.experiment_id])
    make = tracked.children("make")[0].info
    assert parent.data.tags["reused.make"] == make.run_id
    assert f"[reused](#/experiments/{make.experiment_id}/runs/{make.run_id})" in parent.data.tags["mlflow.note.content"]
    inputs = {one.dataset.name: one.dataset.digest for one in parent.inputs.dataset_inputs}
    assert inputs == {step.id: step.key[:36] for step in plan.steps}, "the datasets it used, to click on"


def run_all_reused(plan: Plan, tracked: Tracked, uri: str = "") -> list[str]:
    """Track a study of which nothing is left to compute; what went wrong."""
    tracker = MlflowTracker(uri or default_tracking_uri(tracked.store.root), tracked.store)
    decisions = decide(plan, tracked.store)
    assert {decision.action for decision in decisions.values()} == {"reuse"}
    outcome = execute(plan, decisions, tracked.store, execution=Execution(), tracker=tracker, address="inline")
    assert not outcome.ids("done")
    return [text for _, text in outcome.warnings]


def test_a_server_that_has_never_seen_the_artifacts_gets_them_all(tracked: Tracked, tmp_path: Path):
    uri, plan = f"sqlite:///{tmp_path}/fresh.db", toy_plan(n=4)
    notes = {step.id: tracked.store.mlflow(step.stage.name, step.key) for step in plan.steps}
    try:
        assert run_all_reused(plan, tracked, uri) == []
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        runs = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
        found = {run.info.run_name: run for run in runs if "adopted" in run.data.tags}
        assert set(found) == {step.id for step in plan.steps}
        count = found["count/a/1"]
        assert count.data.metrics["total"] == 15 and "table.Totals" in count.data.tags
        assert Path(client.download_artifacts(count.info.run_id, "page.html", str(tmp_path))).read_text() == "<p>15</p>"
        parent = next(run for run in runs if "adopted" not in run.data.tags)
        assert f"runs/{count.info.run_id})" in parent.data.tags["mlflow.note.content"]
        client.delete_run(count.info.run_id)
        assert run_all_reused(plan, tracked, uri) == []
        again = client.search_runs([parent.info.experiment_id], "attributes.run_name = 'count/a/1'")
        assert len(again) == 1 and again[0].info.run_id != count.info.run_id, "what was deleted is logged again"
    finally:
        for step in plan.steps:
            tracked.store.note_mlflow(step.stage.name, step.key, **notes[step.id])


def test_a_long_overview_stays_whole_within_the_limit():
    plan = toy_plan()
    made = {step.id: Made("0" * 32, "x" * 500 if step.seed is not None else "short") for step in plan.steps}
    made["make"] = Made("", "made elsewhere", reused=True)
    full, shorter = (overview(plan, made, [], "1", limit) for limit in (8000, 500))
    assert "x" * 500 in full and "x" * 500 not in shorter and len(shorter) <= 500
    assert "| make | reused | made elsewhere |" in shorter and "| total | [run](" in shorter
    del made["count/a/1"], made["total"]
    assert "1 failed, 1 not made" in overview(plan, made, ["count/a/1"], "1", 8000)


def test_a_child_has_config_tags_metrics_and_the_inputs_keys_as_digests(tracked: Tracked):
    child = next(run for run in tracked.children("count/a/0") if run.info.status == "FINISHED")
    step, make = tracked.plan["count/a/0"], tracked.plan["make"]
    assert child.data.params["n"] == "4"
    tags = child.data.tags
    assert (tags["stage"], tags["arm"], tags["seed"], tags["key"]) == ("count", "a", "0", step.key)
    assert tags["input.numbers"] == make.key and tags["study"] == "toy"
    datasets = {i.tags[0].value: i.dataset for i in child.inputs.dataset_inputs}
    assert datasets["numbers"].digest == make.key[:36] and datasets["numbers"].name == "make"
    assert datasets["output"].digest == step.key[:36]
    assert child.data.metrics["final.total"] == 14 and child.data.metrics["seconds"] > 0


def test_metrics_stand_at_their_training_step_once(tracked: Tracked):
    child = tracked.children("count/a/1")[0]
    history = tracked.client.get_metric_history(child.info.run_id, "total")
    assert [(m.step, m.value) for m in history] == [(0, 6.0), (1, 8.0), (2, 11.0), (3, 15.0)]


def test_tables_and_figures_are_artifacts_the_ui_shows(tracked: Tracked, tmp_path: Path):
    child = tracked.children("count/a/1")[0]
    table = json.loads(Path(tracked.client.download_artifacts(child.info.run_id, "tables/Totals.json")).read_text())
    assert table["columns"] == ["step", "total"] and table["data"][-1] == [3, 15]
    page = tracked.client.download_artifacts(child.info.run_id, "page.html", str(tmp_path))
    assert Path(page).read_text() == "<p>15</p>"
    assert child.data.tags["table.Totals"] == "4 rows"


def test_a_failed_step_says_why(tracked: Tracked):
    failed = next(run for run in tracked.children("count/a/0") if run.info.status == "FAILED")
    assert "Fix: run again" in failed.data.tags["error"]


def test_tracking_that_fails_is_a_warning_and_the_study_is_done(tmp_path: Path):
    (tmp_path / "file").write_text("")
    outcome = run(toy_plan(), Store(tmp_path / "root"), f"sqlite:///{tmp_path}/file/mlflow.db?password=hunter2")
    assert "password=***" in repr(outcome.warnings) and "hunter2" not in repr(outcome.warnings)
    assert outcome.exit_code == 0 and len(outcome.ids("done")) == 4
    assert any(step == "tracking" and "not tracked" in text for step, text in outcome.warnings)


def test_a_remote_root_needs_a_tracking_uri():
    with pytest.raises(StudyError, match="--tracking-uri: needed because root = 's3://bucket/x' is remote"):
        default_tracking_uri("s3://bucket/x")


def test_configs_become_flat_params_within_mlflows_limits():
    config = {"trunk": {"dim": 64, "bias": None}, "lengths": [1, 2], "tasks": [{"k": 1}, {"k": 2}], "text": "x" * 9000}
    flat = dict(flatten(config))
    assert flat["trunk.dim"] == "64" and flat["lengths"] == "[1, 2]" and flat["tasks.1.k"] == "2"
    assert flat["trunk.bias"] == "null" and len(flat["text"]) == 6000


@pytest.mark.slow
def test_the_password_of_the_tracking_uri_is_kept_nowhere(tmp_path: Path):
    """Runs are tracked by a server that is reached with one, and by one that cannot be reached."""
    served = Store(tmp_path / "served")
    run(toy_plan(), served, default_tracking_uri(served.root))
    command = [sys.executable, "-m", "pipeline.cli", "ui", "--root", served.root, "--port", "0"]
    store, plan = Store(tmp_path / "root"), toy_plan(n=5)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ui:
        assert ui.stdout is not None
        address = ui.stdout.readline().split()[1].partition("/#")[0]
        uri = address.replace("//", "//me:hunter2@")
        assert run(plan, store, uri).warnings == [("make", "one number is odd")]
        noted = store.mlflow("make", plan["make"].key)
        assert run(plan, store, uri.replace("hunter2", "hunter3")).warnings == []
        assert store.mlflow("make", plan["make"].key) == noted, "the same server with another password"
        ui.terminate()
    assert noted is not None and noted["tracking_uri"] == address.replace("//", "//me:***@")
    commits = {"make": store.lookup("make", plan["make"].key)}
    assert place(plan, store, commits).runs[plan["make"].key].startswith(f"{address}/#/")
    unreachable = run(plan, store, uri.replace("/me", "/you")).warnings
    assert unreachable and "hunter2" not in repr(unreachable)
    assert [path for path in (tmp_path / "root").rglob("*.*") if b"hunter" in path.read_bytes()] == []


def test_a_note_with_a_password_of_an_older_run_is_read_without_it(tmp_path: Path):
    store = Store(tmp_path)
    note = {"tracking_uri": "postgresql://me:hunter2@db/mlflow", "experiment_id": "1", "run_id": "2", "model_id": ""}
    storage.write_atomic(store.fs, f"{store.folder('make', 'a' * 64)}/mlflow.json", storage.to_json(note))
    assert store.mlflow("make", "a" * 64) == note | {"tracking_uri": "postgresql://me:***@db/mlflow"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg2://me:p@ss/w:rd@db:5432/x", "postgresql+psycopg2://me:***@db:5432/x"),
        ("https://token@host/api and http://host:80/a", "https://***@host/api and http://host:80/a"),
        ("mysql://db/x?ssl_key=/k&Password=p&user=me", "mysql://db/x?ssl_key=***&Password=***&user=me"),
        ("sqlite:////folder/a.db", "sqlite:////folder/a.db"),
    ],
)
def test_what_is_secret_in_a_url_is_starred(text: str, shown: str):
    assert storage.redacted(text) == shown and storage.redacted(shown) == shown


def test_ui_refuses_a_used_port_and_a_store_without_runs(tracked: Tracked, tmp_path: Path):
    uri = default_tracking_uri(tracked.store.root)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StudyError, match=r"--port = \d+: Address already in use. Fix: give another port"):
            serve(uri, taken.getsockname()[1], print)
    with pytest.raises(StudyError, match=r"no MLflow runs at sqlite:.*Fix: run a study first"):
        serve(default_tracking_uri(str(tmp_path)), 0, print)


def test_a_server_that_does_not_start_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    """What MLflow itself says of a file that is no database of its own is a traceback."""
    program = "raise ValueError('file is not a database')"
    monkeypatch.setattr("pipeline.cli.serve._command", lambda port: [sys.executable, "-c", program])
    (tmp_path / "x.db").write_text("x")
    with pytest.raises(StudyError, match=r"x\.db': MLflow ended: ValueError: file is not a database\. Fix: see that"):
        serve(f"sqlite:///{tmp_path / 'x.db'}", 0, print)
    assert "Traceback" not in capfd.readouterr().err


def test_ui_leads_to_the_newest_run_and_ends_whole(tracked: Tracked):
    command = [sys.executable, "-m", "pipeline.cli", "ui", "--root", tracked.store.root, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ui:
        assert ui.stdout is not None
        address = ui.stdout.readline().split()[1].partition("/#")[0]
        newest = next(line for line in ui.stdout if line.startswith("newest run of toy: "))
        parent = next(run for run in tracked.runs if "mlflow.parentRunId" not in run.data.tags)
        assert f"/runs/{parent.info.run_id}?" in newest
        seen = [" ".join(process.cmdline()) for process in psutil.Process(ui.pid).children(recursive=True)]
        assert seen and not [text for text in seen if "sqlite:" in text], "any user may read a command line"
        ui.terminate()
        assert ui.wait(30) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
