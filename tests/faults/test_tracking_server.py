"""A tracking server that goes away while a study runs and comes back: nothing is lost and nothing stands twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from pipeline.tracking.outage import PATIENCE, Outage, no_answer
from tests.faults import Faults
from tests.faults.drivers import driver, result
from tests.ports import free_ports


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_outage_is_waited_out_while_steps_run_and_not_for_ever_after_the_last():
    clock = Clock()
    outage = Outage(clock)
    for _ in range(50):
        pause = outage.goes_on()
        assert pause is not None and 0 < pause <= 10
        clock.now += 100
    outage.ending = clock.now
    clock.now += PATIENCE - 1
    assert outage.goes_on() is not None
    clock.now += 2
    assert outage.goes_on() is None
    assert outage.over() == clock.now and outage.over() is None


def test_a_refusal_is_no_outage():
    import requests

    try:
        try:
            raise requests.exceptions.ConnectionError("refused")
        except requests.exceptions.ConnectionError as error:
            raise RuntimeError("API request failed") from error
    except RuntimeError as wrapped:
        assert no_answer(wrapped)
    assert not no_answer(requests.exceptions.HTTPError("404")) and not no_answer(OSError("disk full"))


class Server:
    """An MLflow server on a fixed port of loopback, which can be killed and started again with what it has."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        (self.port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError((self.folder / "log").read_text()[-2000:])

    def kill(self) -> None:
        os.killpg(self.process.pid, 9)
        self.process.wait()


@pytest.mark.slow
def test_a_server_that_is_gone_for_a_while_gets_everything_once(tmp_path: Path, faults: Faults):
    """Killed while a step runs, so that metrics, the end of that step and two whole steps happen without it."""
    from mlflow import MlflowClient

    server = Server(tmp_path / "server")
    try:
        faults.fail_at("count", "step 1", kind="wait")
        running = driver(tmp_path / "root", faults, f"track={server.uri}")
        faults.await_visit("count", "step 1")
        client = MlflowClient(server.uri)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            experiment = client.get_experiment_by_name("toy")
            if experiment and len(client.search_runs([experiment.experiment_id], "tags.step LIKE 'count%'")) == 1:
                break
        server.kill()
        faults.release()
        end = time.monotonic() + 60
        while not list((tmp_path / "root").glob("total/*/COMMIT.json")) and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(12)  # longer than MLflow's own retries, which nobody need hear of
        server.start()
        done = result(running)
        assert done["exit"] == 0, done["errors"]
        troubles = [text for step, text in done["warnings"] if step == "tracking"]
        assert len(troubles) == 1 and "did not answer for" in troubles[0] and "nothing is lost" in troubles[0]
        runs = client.search_runs([experiment.experiment_id])
        steps = {run.data.tags["step"]: run for run in runs if "step" in run.data.tags}
        assert len(runs) == 5 and sorted(steps) == ["count/a/0", "count/a/1", "make", "total"]
        assert {run.info.status for run in runs} == {"FINISHED"}
        for step in ("count/a/0", "count/a/1"):
            history = client.get_metric_history(steps[step].info.run_id, "total")
            assert [point.step for point in history] == [0, 1, 2, 3]
            assert steps[step].data.metrics["final.total"] == history[-1].value
    finally:
        server.kill()
