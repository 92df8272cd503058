"""A Ray cluster of several nodes on this machine: started, looked at, ended. One for each user.

``ray stop`` would end every Ray on the machine, another user's too, so what was started is written down (process id and
time of start) and that alone is ended. Whoever is to connect needs the token in ``token_file``; without one a cluster
that can be reached from other machines would run anybody's code.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import ipaddress
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster import asking
from cluster.connect import ENVIRONMENT, ClusterError, reachable
from cluster.noted import Cluster, Process, alive, birth, note, noted, state_folder, token_file

PATIENCE = 120.0  # seconds a node may take to join; it takes about five
LOOPBACK = "127.0.0.1"


def up(
    nodes: int,
    *,
    cpus: int | None = None,
    gpus: int = 0,
    host: str = LOOPBACK,
    port: int = 6379,
    dashboard_port: int = 8265,
    say: Callable[[str], None] = lambda text: None,
) -> Cluster:
    """Start a head without CPUs and ``nodes`` nodes with ``cpus`` (default: this machine's, shared out) and ``gpus``
    each; return when all have joined. ``port`` and ``dashboard_port`` 0: free ones.

    Raises ClusterError where one is there already, where a port is taken, and where a node does not join.
    """
    if (there := noted()) is not None:
        raise ClusterError(
            f"cluster: one runs already at {there.address}. Fix: use it (--address auto), or end it first: "
            "infini-study cluster down"
        )
    if not host.strip():
        raise ClusterError(f"--host = {host!r}: no address. Fix: {LOOPBACK}, or one of this machine's own")
    if port and port == dashboard_port:
        raise ClusterError(f"--dashboard-port = {port}: is --port as well. Fix: another, or 0 for a free one")
    port, dashboard_port = _free(host, port, "port"), _free(host, dashboard_port, "dashboard-port")
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    environment = {**ENVIRONMENT, **os.environ, **_authentication()}
    share = cpus if cpus is not None else max(1, (os.cpu_count() or 1) // nodes)
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    ray += ["--dashboard-agent-listen-port=0"]  # its fixed port can be had by one node of a machine
    head = [*ray, "--head", f"--node-ip-address={host}", f"--port={port}", "--num-cpus=0", "--num-gpus=0"]
    head += [f"--dashboard-host={host}", f"--dashboard-port={dashboard_port}"]
    address = f"{host}:{port}"
    others = [*ray, f"--address={address}", f"--node-ip-address={host}", f"--num-cpus={share}", f"--num-gpus={gpus}"]
    cluster = Cluster(address, f"http://{host}:{dashboard_port}", (), str(folder))
    try:
        for number in range(nodes + 1):  # one after the other: Ray gives each 30 s to start
            name = "head" if number == 0 else f"node{number}"
            command = head if number == 0 else others
            say(f"starting {name}" + (f" of {nodes}" if number else ""))
            for trial in (1, 2):
                started = _start(command, name, folder, environment)
                cluster = replace(cluster, processes=(*cluster.processes, started))
                note(cluster)
                try:
                    _await(cluster, number + 1, say)
                    break
                except ClusterError as error:
                    if trial == 2 or alive(started):
                        raise
                    say(f"{error.args[0].partition('. Fix:')[0]}; trying once more")
                    cluster = replace(cluster, processes=cluster.processes[:-1])
    except BaseException:
        down(cluster)
        raise
    say(f"{nodes} nodes with {share} CPUs each at {address}")
    return cluster


def down(cluster: Cluster) -> int:
    """End the cluster's processes, those alone; how many there were."""
    import psutil

    ended = sum(map(alive, cluster.processes))
    found: list[psutil.Process] = []
    for process in reversed(cluster.processes):
        with contextlib.suppress(psutil.NoSuchProcess):
            if alive(process):
                first = psutil.Process(process.pid)
                found += [first, *first.children(recursive=True)]
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(found, timeout=10)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)
    (state_folder() / "cluster.json").unlink(missing_ok=True)
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    with contextlib.suppress(OSError):  # it would lead --address auto to a cluster that is gone
        if note.read_text().strip() == cluster.address:
            note.unlink()
    return ended


def nodes(cluster: Cluster, say: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """The cluster's nodes that are alive: id, name, address, resources. ``say`` is told when it takes long. Raises
    ClusterError where the head does not answer: at once where nothing listens, where Ray would knock for a minute."""
    try:
        reachable(cluster.address)
        return asking.nodes(cluster.address, {**ENVIRONMENT, **os.environ, **_authentication()}, say)
    except ClusterError as error:
        raise ClusterError(_silent(cluster, str(error.__cause__ or error))) from error
    except OSError as error:
        raise ClusterError(_silent(cluster, str(error))) from error


def _silent(cluster: Cluster, reason: str) -> str:
    return (
        f"cluster: its head at {cluster.address} does not answer: {reason}. Fix: infini-study cluster down, then up; "
        f"its logs are in {cluster.folder}"
    )


def _await(cluster: Cluster, count: int, say: Callable[[str], None]) -> None:
    began = told = time.monotonic()
    problem = "no answer"
    while (now := time.monotonic()) < began + PATIENCE:
        if now - told >= asking.EVERY:
            say(f"still waiting for {cluster.processes[-1].name} ({now - began:.0f} s): {problem}")
            told = now
        ended = [process.name for process in cluster.processes if not alive(process)]
        if ended:
            log = (Path(cluster.folder) / f"{ended[0]}.log").read_text(errors="replace").strip().splitlines()
            reason = next((line for line in reversed(log) if "rror" in line), log[-1] if log else "it said nothing")
            raise ClusterError(f"cluster: {ended[0]} ended: {reason.strip()}. Fix: see {cluster.folder}/{ended[0]}.log")
        try:
            if len(nodes(cluster, say)) >= count:
                return
            problem = f"fewer than {count} nodes have joined"
        except ClusterError as error:
            problem = str(error).partition(". Fix:")[0]
        time.sleep(0.5)
    raise ClusterError(f"cluster: {problem} after {PATIENCE:.0f} s. Fix: see the logs in {cluster.folder}")


def _start(command: list[str], name: str, folder: Path, environment: Mapping[str, str]) -> Process:
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--node-name={name}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(environment),
            start_new_session=True,
        )
    return Process(process.pid, birth(process.pid), name)


def _authentication() -> dict[str, str]:
    """Environment with which nodes and drivers share the token, made where there is none."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return {"RAY_AUTH_MODE": "token"}
    path = token_file()
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(descriptor, secrets.token_hex(32).encode())
            os.close(descriptor)
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


def _free(host: str, port: int, option: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ClusterError(
                f"--{option} = {port}: cannot be used on {host}: {error.strerror}. Fix: another, or 0 for a free one"
            ) from error
        return int(probe.getsockname()[1])


def is_loopback(host: str) -> bool:
    """Can only this machine reach ``host``?"""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host == "localhost"


def has_job_server() -> bool:
    """Can a head that is started here take jobs? Ray alone cannot."""
    return all(importlib.util.find_spec(name) for name in ("aiohttp_cors", "grpc", "opencensus", "prometheus_client"))


def job_server(url: str, field: str = "--to", timeout: float = 5.0) -> None:
    """Raises ClusterError where no job server answers at ``url`` (``field``) in about ``timeout`` seconds."""

    def knock() -> None:
        with urllib.request.urlopen(f"{url.rstrip('/')}/api/version", timeout=timeout) as answer:
            answer.read()

    try:
        asking.within(timeout + 1, knock)  # also where its name is looked up, or it says a byte a second
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return  # it is there; the client brings the token
        raise ClusterError(_no_job_server(url, field, f"it answers {error.code}")) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ClusterError(_no_job_server(url, field, str(reason) or type(error).__name__)) from error


def _no_job_server(url: str, field: str, reason: str) -> str:
    fix = "give the URL of the dashboard" if field == "--to" else "infini-study cluster down, then up"
    return (
        f"{field} = {url!r}: no job server of Ray answers there: {reason}. Fix: {fix}; on its head node the package "
        "must be installed with its extra: pip install 'infini-study[cluster]'"
    )
