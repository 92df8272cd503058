"""``infini-study cluster``: two nodes on this machine, a study on them, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import asking, jobs, machines, noted
from cluster.connect import ClusterError
from tests.pipeline.called import caller
from tests.support import executed
from tests.tiny import write_study

COMMAND = [sys.executable, "-m", "pipeline.cli", "cluster"]


def cluster(folder: Path, *arguments: str, timeout: float = 280, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_ADDRESS", "RAY_AUTH", "INFINI_STUDY"))}
    environment |= {"INFINI_STUDY_CACHE": str(folder / "cache"), "HOME": str(folder), **env}
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return executed([*COMMAND, *arguments], folder, environment, timeout)


def test_without_a_cluster_each_command_says_so(tmp_path: Path):
    write_study(tmp_path)
    assert "none of this user's runs" in cluster(tmp_path, "status").stderr
    assert cluster(tmp_path, "down").stdout == "no cluster of this user runs on this machine\n"
    refused = cluster(tmp_path, "submit", "tiny.yaml", "--json")
    assert refused.returncode == 5 and "start one: infini-study cluster up" in json.loads(refused.stdout)["message"]


def test_a_study_for_another_machine_needs_storage_that_it_reaches(tmp_path: Path):
    write_study(tmp_path)
    refused = cluster(tmp_path, "submit", "tiny.yaml", "--to", "http://127.0.0.1:1", "--root", "store")
    assert refused.returncode == 2 and "--root = 'store'" in refused.stderr and "s3://bucket/store" in refused.stderr
    refused = cluster(tmp_path, "submit", "tiny.yaml", "--to", "http://127.0.0.1:1", "--root", "s3://bucket/store")
    assert refused.returncode == 5 and "no job server of Ray answers there" in refused.stderr


def test_deployment_files_are_written_once(tmp_path: Path):
    assert "slurm.sh" in cluster(tmp_path, "files", "deploy").stdout and os.access(
        tmp_path / "deploy/slurm.sh", os.X_OK
    )
    again = cluster(tmp_path, "files", "deploy")
    assert again.returncode == 2 and "is there already. Fix: name another folder" in again.stderr


def test_a_process_that_has_the_number_of_one_that_is_gone_is_not_taken_for_it(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("INFINI_STUDY_CACHE", str(tmp_path))
    mine = noted.Process(os.getpid(), noted.birth(os.getpid()), "head")
    assert noted.alive(mine) and not noted.alive(noted.Process(os.getpid(), mine.started - 60, "head"))
    made = noted.Cluster("127.0.0.1:1", "http://127.0.0.1:2", (mine,), str(tmp_path))
    noted.state_folder().mkdir()
    noted.note(made)
    assert noted.noted() == made
    for content in ("{", "[]", '{"address": 1}', '{"processes": [{}]}'):
        (noted.state_folder() / "cluster.json").write_text(content)
        assert noted.noted() is None


def test_addresses_of_this_machine_alone():
    assert [machines.is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "10.0.0.4", "0.0.0.0")] == [
        True,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"host": " "}, "--host = ' ': no address"), ({"port": 7001, "dashboard_port": 7001}, "--dashboard-port = 7001")],
)
def test_addresses_that_cannot_be_are_told_before_anything_starts(tmp_path: Path, monkeypatch, options, said):
    monkeypatch.setenv("INFINI_STUDY_CACHE", str(tmp_path))
    monkeypatch.delattr(machines, "_start")
    with pytest.raises(ClusterError, match=said):
        machines.up(1, **options)


def test_what_is_started_and_waited_for_is_said(tmp_path: Path, monkeypatch):
    """A node takes up to half a minute on a busy machine."""
    monkeypatch.setenv("INFINI_STUDY_CACHE", str(tmp_path))
    mine = noted.Process(os.getpid(), noted.birth(os.getpid()), "head")
    joined = iter([0, 1, 1, 2])
    monkeypatch.setattr(asking, "EVERY", 0.0)
    monkeypatch.setattr(machines, "_start", lambda command, name, *_: replace(mine, name=name))
    monkeypatch.setattr(machines, "nodes", lambda cluster, say: [{}] * next(joined))
    said: list[str] = []
    machines.up(1, cpus=1, port=0, dashboard_port=0, say=said.append)
    assert [text.partition(" (")[0] for text in said[:-1]] == [
        "starting head",
        "still waiting for head",
        "still waiting for head",
        "starting node1 of 1",
        "still waiting for node1",
        "still waiting for node1",
    ]


def test_a_cluster_without_its_head_is_told_at_once(tmp_path: Path):
    """Its nodes may live on for a while, so the cluster is still known."""
    write_study(tmp_path)
    mine = noted.Process(os.getpid(), noted.birth(os.getpid()), "node1")
    state = tmp_path / "cache" / "cluster"
    state.mkdir(parents=True)
    gone = noted.Cluster("127.0.0.1:1", "http://127.0.0.1:2", (mine,), str(state))
    (state / "cluster.json").write_text(json.dumps(asdict(gone)))
    for arguments in (["status"], ["submit", "tiny.yaml"], ["follow", "job"], ["stop", "job", "--json"]):
        told = cluster(tmp_path, *arguments, timeout=60)
        assert told.returncode == 5 and "Traceback" not in told.stderr
        said = json.loads(told.stdout)["message"] if "--json" in arguments else told.stderr
        assert "Fix: infini-study cluster down, then up" in said and "--to" not in said
        assert "127.0.0.1:1 " in said or "http://127.0.0.1:2" in said


class Client:
    """Ray's, of a job that ends with ``states``; an exception among them is raised."""

    def __init__(self, *states: str | Exception, log: Sequence[str | Exception] = (), ends: bool = True) -> None:
        self.states, self.log, self.ends, self.stopped = list(states), log, ends, list[str]()

    def get_job_info(self, job: str) -> SimpleNamespace:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        return SimpleNamespace(status=state, driver_exit_code=3 if state == "FAILED" else None)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for text in self.log:
            if isinstance(text, Exception):
                raise text
            yield text
        if not self.ends:
            await asyncio.Event().wait()

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)

    def list_jobs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(submission_id="job-1", start_time=1, status="RUNNING", entrypoint="run")]


@pytest.fixture
def ray_client(monkeypatch) -> Callable[[Client, bool], None]:
    """Puts a client in the place of Ray's; whether the head goes on answering after the first time."""

    def put(client: Client, answers: bool = True) -> None:
        knocks = iter([True])

        def job_server(*_: object, **__: object) -> None:
            if not answers and not next(knocks, False):
                raise ClusterError("--to = 'http://head:1': no job server of Ray answers there: refused. Fix: another")

        monkeypatch.setattr(jobs, "GONE", 0.05)
        monkeypatch.setattr(jobs, "POLL", 0.01)
        monkeypatch.setattr(jobs, "job_server", job_server)
        monkeypatch.setattr(jobs, "_client", lambda *_: job_server() or client)

    return put


@pytest.mark.parametrize("ends", [True, False], ids=["the log breaks off", "the head hangs"])
def test_a_head_that_dies_after_the_submission_ends_the_following(ray_client, ends: bool):
    breaks: list[str | Exception] = [RuntimeError("closed with code 1006")] if ends else []
    ray_client(Client("RUNNING", log=["one line\n", *breaks], ends=ends), False)
    written: list[str] = []
    with pytest.raises(ClusterError, match=r"'job-1': its cluster at http://head:1 gives no answer.*Fix: ") as told:
        jobs.follow("http://head:1", "job-1", written.append)
    assert told.value.exit_code == 5 and written[0] == "one line\n" and "cannot be followed" in written[1]


def test_a_head_that_is_back_in_time_loses_nothing(ray_client, monkeypatch):
    client = Client("RUNNING", ConnectionError("refused"), "RUNNING", "FAILED", log=[RuntimeError("closed")])
    ray_client(client)
    monkeypatch.setattr(jobs, "GONE", 60.0)
    assert jobs.follow("http://head:1", "job-1", lambda text: None) == ("FAILED", 3)


@pytest.mark.parametrize("command", ["stop", "follow"])
def test_a_head_that_takes_a_question_and_never_answers_is_one_line(
    ray_client, tmp_path: Path, monkeypatch, capsys, command: str
):
    """Its packets are swallowed from now on; it had just answered."""
    client = Client("RUNNING")
    ray_client(client)
    monkeypatch.setattr(client, "get_job_info", lambda job: threading.Event().wait())
    monkeypatch.setattr(jobs, "ANSWERS_IN", 0.3)
    monkeypatch.setattr(asking, "EVERY", 0.1)
    said = caller(tmp_path, monkeypatch, capsys.readouterr)("cluster", command, "job-1", "--to", "http://head:1")
    *waiting, fault = said.err.splitlines()
    assert said.code == 5 and waiting and all("still waiting for an answer from http://head:1" in w for w in waiting)
    assert fault.startswith("error: --to = 'http://head:1': job-1 is not known: no answer within 0.3 s. Fix:")


def test_a_job_is_stopped_and_one_that_is_none_is_named(ray_client, tmp_path: Path, monkeypatch, capsys):
    call = caller(tmp_path, monkeypatch, capsys.readouterr)
    ray_client(running := Client("RUNNING", "RUNNING", "STOPPED"))
    assert call("cluster", "stop", "job-1", "--to", "http://head:1").out == "job job-1: STOPPED\n"
    assert running.stopped == ["job-1"]
    ray_client(Client(RuntimeError("Request failed with status code 404: Job job-2 does not exist.")))
    for command in ("stop", "follow"):
        said = call("cluster", command, "job-2", "--to", "http://head:1")
        assert said.code == 2
        assert said.faults == ["JOB = 'job-2': the cluster has no such job; did you mean 'job-1'?. Fix: name one"]


def test_a_detached_job_comes_with_commands_that_work_when_pasted(ray_client, tmp_path: Path, monkeypatch, capsys):
    write_study(tmp_path)
    call = caller(tmp_path, monkeypatch, capsys.readouterr)
    monkeypatch.setattr(jobs, "submit", lambda *_, **__: "job-1")
    place = ("--to", "http://head:1", "--root", "s3://bucket/store")
    lines = call("cluster", "submit", "tiny.yaml", *place, "--detach").out.splitlines()
    follow, stop = (line.split("  ", 1)[1].strip() for line in lines[1:])
    ray_client(Client("RUNNING", "SUCCEEDED", log=["the log\n"]))
    followed = call(*shlex.split(follow)[1:])
    assert (followed.code, followed.err, followed.out) == (0, "the log\n", "job job-1: SUCCEEDED\n")
    ray_client(Client("RUNNING", "STOPPED"))
    assert call(*shlex.split(stop)[1:]).out == "job job-1: STOPPED\n"


def test_a_head_needs_no_job_server(tmp_path: Path, monkeypatch):
    """Ray refuses to start with a dashboard that is asked for and whose packages are not installed."""
    monkeypatch.setenv("INFINI_STUDY_CACHE", str(tmp_path))
    mine = noted.Process(os.getpid(), noted.birth(os.getpid()), "head")
    commands: list[list[str]] = []
    monkeypatch.setattr(machines, "_start", lambda command, *_: commands.append(command) or mine)
    monkeypatch.setattr(machines, "nodes", lambda cluster, say: [{}] * len(commands))
    machines.up(1, cpus=1, port=0, dashboard_port=0)
    assert not [word for word in commands[0] if word.startswith("--include-dashboard")]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_run_a_study_and_end(tmp_path: Path):
    study = write_study(tmp_path)
    began = cluster(tmp_path, "up", "--nodes", "2", "--cpus", "1", "--port", "0", "--dashboard-port", "0", "--json")
    assert began.returncode == 0, began.stderr
    try:
        made = json.loads(began.stdout)
        status = json.loads(cluster(tmp_path, "status", "--json").stdout)
        assert sorted(n["name"] for n in status["nodes"]) == ["head", "node1", "node2"] and status["lost"] == []
        assert [n["resources"]["CPU"] for n in sorted(status["nodes"], key=lambda n: n["name"])] == [0, 1, 1]
        token = tmp_path / "cache" / "cluster" / "token"
        assert token.stat().st_mode & 0o777 == 0o600
        second = cluster(tmp_path, "up")
        assert second.returncode == 5 and "one runs already at" in second.stderr
        root = tmp_path / "runs" / "store"
        if _job_server():
            arguments = ["tiny.yaml", "--set", "arms={local: {kind: local}}"]
            arguments += ["--set", "ablate=null", "--set", "summarize=null"]
            done = cluster(tmp_path, "submit", *arguments)
            assert done.returncode == 0, done.stderr[-3000:]
            assert "SUCCEEDED" in done.stdout and "pretrain/local/0" in done.stderr
            failed = cluster(tmp_path, "submit", *arguments, "--set", "execution.train_workers=3", "--json")
            assert failed.returncode == json.loads(failed.stdout)["exit_code"] != 0
        else:
            command = [sys.executable, "-m", "pipeline.cli", "run", str(study), "--address", made["address"]]
            env = {**os.environ, "INFINI_STUDY_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}
            subprocess.run([*command, "--until", "tokenize"], cwd=tmp_path, env=env, check=True, capture_output=True)
        assert list(root.glob("tokenize/*/COMMIT.json"))
    finally:
        before = json.loads((tmp_path / "cache" / "cluster" / "cluster.json").read_text())["processes"]
        ended = cluster(tmp_path, "down", "--json")
    assert json.loads(ended.stdout)["ended"] == 3
    assert not any(noted.alive(noted.Process(**process)) for process in before)
    assert cluster(tmp_path, "status").returncode == 5


def _job_server() -> bool:
    try:
        import aiohttp_cors  # noqa: F401  (of ray[default])
    except ImportError:
        return False
    return True
