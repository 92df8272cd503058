"""The MLflow server behind ``infini-study ui``: started quietly, ended whole, with links that lead somewhere.

MLflow's own start page shows traces of language-model applications; the runs of a study are two menus away. So the
links printed here go straight to the list of runs and to the newest run of each study.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cluster.storage import redacted
from pipeline.cli.render import note
from pipeline.errors import StudyError

_VIEW = "workflowType=machine_learning"  # else MLflow opens its pages for language-model applications


def free_port(port: int) -> int:
    """``port`` if it can be had on this machine, or a free one for 0. Raises StudyError otherwise."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise StudyError(
                f"--port = {port}: {error.strerror}. Fix: give another port, or 0 for a free one"
            ) from error
        return int(probe.getsockname()[1])


def serve(uri: str, port: int, say: Callable[[str], None]) -> None:
    """Serve the SQLite file of ``uri`` until it is interrupted.

    Raises StudyError where there is no such file, as nothing has been tracked there, or the server ends by itself.
    """
    database = uri.removeprefix("sqlite:///")
    if database != uri and not Path(database).is_file():
        raise StudyError(
            f"no MLflow runs at {redacted(uri)}. Fix: run a study first, or give its --root or --tracking-uri"
        )
    port = free_port(port)
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    quiet |= {"MLFLOW_LOGGING_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore"}
    quiet["MLFLOW_BACKEND_STORE_URI"] = uri  # a command line, and the password in it, is seen by every user
    note("starting MLflow, which takes some seconds")
    with tempfile.TemporaryFile() as errors:  # a traceback of MLflow's helps nobody; stdout has only greetings
        server = subprocess.Popen(
            _command(port),
            env={**os.environ, **quiet},
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        code = _served(server, port, say)
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    if code:
        named = [line for line in said if re.match(r"[\w.]+(Error|Exception): ", line)]
        reason = (named or said or ["it did not say why"])[-1]
        raise StudyError(
            f"--tracking-uri = {redacted(uri)!r}: MLflow ended: {redacted(reason.strip()[:300])}. Fix: see that it is "
            "a database of MLflow's, or leave it out for the store's own"
        )


def _command(port: int) -> list[str]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    return [*command, "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]


def _served(server: subprocess.Popen[bytes], port: int, say: Callable[[str], None]) -> int:
    """The server's exit code, 0 when it was interrupted. It is ended in any case."""
    try:
        address = f"http://127.0.0.1:{port}"
        if _answers(address, server):
            say(f"MLflow: {address}/#/experiments?{_VIEW}   (Ctrl-C ends it)")
            with contextlib.suppress(OSError, ValueError, LookupError):  # a list for convenience
                for study, run in _newest(address):
                    place = f"experiments/{run['experiment_id']}/runs/{run['run_id']}"
                    say(f"newest run of {study}: {address}/#/{place}?{_VIEW}")
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _end(server)


def _answers(address: str, server: subprocess.Popen[bytes]) -> bool:
    """Wait for the server; False when it ended instead."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return True
        except OSError:
            time.sleep(0.2)
    return False


def _newest(address: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name of the study, info of its newest run), the newest study first."""
    found = []
    for experiment in _post(address, "experiments/search", {"max_results": 1000}).get("experiments", []):
        query = {
            "experiment_ids": [experiment["experiment_id"]],
            "filter": "tags.study_key LIKE '%'",
            "order_by": ["attributes.start_time DESC"],
            "max_results": 1,
        }
        for run in _post(address, "runs/search", query).get("runs", []):
            found.append((run["info"]["start_time"], experiment["name"], run["info"]))
    for _, name, info in sorted(found, key=lambda one: -int(one[0])):
        yield name, info


def _post(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        value: dict[str, Any] = json.load(answer)
    return value


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and every process it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
