"""``infini-study cluster``: two nodes on this machine, a study on them, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import machines, noted
from cluster.connect import ClusterError
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
    monkeypatch.setattr(machines, "SILENCE", 0.0)
    monkeypatch.setattr(machines, "_start", lambda command, name, *_: replace(mine, name=name))
    monkeypatch.setattr(machines, "nodes", lambda cluster: [{}] * next(joined))
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
