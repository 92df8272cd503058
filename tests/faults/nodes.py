"""Several real Ray nodes on this machine, each of which can be killed, cut off the network and brought back.

    with several(tmp_path, nodes=2) as cluster:
        run = cluster.driver(root, faults, "study=tiny.yaml")     # a driver on the head node
        cluster.kill(1); cluster.add(1)

Where the system permits it (root, Linux, iproute2) every node has a network namespace of its own, with its own address
behind a bridge, and its own temporary folder: nothing but real shared storage is shared between nodes. Elsewhere they
are processes on loopback, which can be killed but not cut off. The head has no CPUs for work. Token authentication is
on, as in deployments.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.faults import Faults
from tests.faults.drivers import REPOSITORY, driver

HEAD = 0
PORT = 6390
PATIENCE = 240.0  # seconds a node may take to join on a busy machine; else it takes about five
NODES_ALIVE = """
import sys
from ray._raylet import GcsClient
print(sum(node.state == 0 for node in GcsClient(address=sys.argv[1]).get_all_node_info().values()))
"""


def namespaces_permitted() -> bool:
    """May this process make network and mount namespaces?"""
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "unshare", "nsenter")):
        return False
    name = f"try{secrets.token_hex(3)}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    tried = ["ip", "netns", "exec", name, "unshare", "-m", "--propagation", "private", "mount", "-t", "tmpfs", "x"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*tried, folder], capture_output=True, check=False)
    _ip("netns", "del", name)
    return done.returncode == 0


class Nodes:
    """A cluster of a head and workers numbered from 1. ``isolated``: each in namespaces of its own."""

    def __init__(self, folder: Path, isolated: bool, cpus: int = 1) -> None:
        self.folder, self.isolated, self.cpus = folder, isolated, cpus
        self.name = f"is{secrets.token_hex(2)}"
        self.net = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
        self.temporary = Path(tempfile.mkdtemp(prefix="rn", dir="/tmp"))  # short: sockets lie below it
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.port = PORT if isolated else 20000 + secrets.randbelow(10000)
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_health_check_initial_delay_ms": "1000",  # defaults find a dead node after up to 25 s
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "3000",  # a busy machine answers late
            "RAY_health_check_failure_threshold": "4",
            "RAY_grpc_client_keepalive_time_ms": "10000",  # notices a node that vanished while work was handed to it
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "PYTHONPATH": str(REPOSITORY),
        }
        if isolated:
            self.environment["GLOO_SOCKET_IFNAME"] = "eth0"

    @property
    def gateway(self) -> str:
        """Address at which the nodes reach this machine."""
        return f"{self.net}.254" if self.isolated else "127.0.0.1"

    @property
    def address(self) -> str:
        """Of the cluster, for drivers on the head node."""
        return f"{self._ip_of(HEAD)}:{self.port}"

    def lay_network(self) -> None:
        """The bridge that all nodes will be plugged into, with this machine at ``gateway``."""
        if self.isolated:
            _ip("link", "add", self.name, "type", "bridge")
            _ip("addr", "add", f"{self.gateway}/24", "dev", self.name)
            _ip("link", "set", self.name, "up")

    def up(self, nodes: int) -> None:
        """A head and ``nodes`` workers, all of which answer when this returns."""
        self.add(HEAD)
        self.await_nodes(1)
        for number in range(1, nodes + 1):
            self.add(number)
        self.await_nodes(1 + nodes)

    def add(self, number: int) -> None:
        """Start a node (again)."""
        if self.isolated:
            self._plug_in(number)
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        ray += [f"--node-ip-address={self._ip_of(number)}", "--object-store-memory=100000000"]
        if number == HEAD:
            ray += ["--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false"]
            ray += [f"--temp-dir={self.temporary}"]
        else:
            ray += [f"--address={self.address}", f"--num-cpus={self.cpus}"]
        command = ray
        if self.isolated:
            inside = f'mount -t tmpfs tmpfs {self.temporary} && exec "$@"'
            command = ["ip", "netns", "exec", self._space(number), "unshare", "-m", "--propagation", "private"]
            command += ["bash", "-c", inside, "node", *ray]
        with (self.folder / f"node{number}.log").open("ab") as log:
            self.running[number] = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env={**os.environ, **self.environment}
            )

    def await_nodes(self, count: int) -> None:
        """Return once exactly ``count`` nodes, the head among them, are alive."""
        end, alive = time.monotonic() + PATIENCE, "none"
        while time.monotonic() < end:
            asked = subprocess.run(
                [*self._on(HEAD), sys.executable, "-c", NODES_ALIVE, self.address],
                env={**os.environ, **self.environment},
                capture_output=True,
                text=True,
                check=False,
            )
            alive = asked.stdout.strip() or "none"
            if alive == str(count):
                return
            for number in [number for number, process in self.running.items() if process.poll() is not None]:
                self.kill(number)  # Ray gives a node 30 s to start, which a busy machine may not have
                self.add(number)
            time.sleep(0.3)
        raise TimeoutError(f"{alive} nodes instead of {count}; see {self.folder}/node*.log")

    def kill(self, number: int) -> None:
        """SIGKILL every process of the node, as a power cut does."""
        for process in self._processes(number):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.running.pop(number).wait()
        if self.isolated:
            self._unplug(number)

    def node_of(self, pid: int) -> int:
        """The node that the process runs on."""
        return next(n for n in self.running if pid in {process.pid for process in self._processes(n)})

    def cut(self, number: int) -> None:
        """Take the node's network cable out; its processes go on."""
        _ip("link", "set", self._cable(number), "down")

    def heal(self, number: int) -> None:
        """Put it back in."""
        _ip("link", "set", self._cable(number), "up")

    def driver(self, root: str | Path, faults: Faults, *options: str, **environment: str) -> subprocess.Popen[str]:
        """A driver on the head node; see ``tests.faults.driver``."""
        env = {**self.environment, **environment}
        return driver(root, faults, *options, address=self.address, env=env, before=self._on(HEAD))

    def down(self) -> None:
        """End everything."""
        for number in sorted(self.running, reverse=True):
            self.kill(number)
        if self.isolated:
            _ip("link", "del", self.name)
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _ip_of(self, number: int) -> str:
        return f"{self.net}.{10 + number}" if self.isolated else "127.0.0.1"

    def _space(self, number: int) -> str:
        return f"{self.name}n{number}"

    def _cable(self, number: int) -> str:
        return f"{self.name}v{number}"

    def _on(self, number: int) -> list[str]:
        """What makes a command run on the node."""
        return ["nsenter", "-t", str(self.running[number].pid), "-n", "-m"] if self.isolated else []

    def _processes(self, number: int) -> list[psutil.Process]:
        if self.isolated:
            pids = _ip("netns", "pids", self._space(number)).split()
            return [psutil.Process(int(pid)) for pid in pids if psutil.pid_exists(int(pid))]
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.running[number].pid)
            return [first, *first.children(recursive=True)]
        return []

    def _plug_in(self, number: int) -> None:
        space, cable = self._space(number), self._cable(number)
        _ip("netns", "add", space)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", cable, "master", self.name, "up")
        _ip("-n", space, "addr", "add", f"{self._ip_of(number)}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "route", "add", "default", "via", self.gateway)

    def _unplug(self, number: int) -> None:
        _ip("netns", "del", self._space(number))
        subprocess.run(["ip", "link", "del", self._cable(number)], capture_output=True, check=False)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def several(
    folder: Path, nodes: int = 2, cpus: int = 1, before: Callable[[Nodes], None] = lambda cluster: None
) -> Iterator[Nodes]:
    """A running cluster, which ends with the block. ``before``: called when there is a network and no node yet; what
    it puts into ``environment``, the nodes have."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Nodes(folder, namespaces_permitted(), cpus)
    try:
        cluster.lay_network()
        before(cluster)
        cluster.up(nodes)
        yield cluster
    finally:
        cluster.down()
