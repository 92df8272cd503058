"""Addresses are checked before any work, quickly and without Ray."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import connect


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Something listens and never answers: a hung head node."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:port", "127.0.0.1:1", ":6379"])
def test_an_address_without_a_cluster_is_refused_by_name(address: str):
    with pytest.raises(connect.ClusterError, match="address") as caught:
        connect.reachable(address, timeout_s=2)
    assert address in str(caught.value)


@pytest.mark.parametrize("failures", [1, 2])
def test_a_ray_that_does_not_start_in_time_is_tried_once_more(failures: int, monkeypatch: pytest.MonkeyPatch):
    """The fault is injected where Ray raises it."""
    import ray

    heard: list[str] = []
    late = iter([True] * failures)

    def start(**options):
        if next(late, False):
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    if failures == 1:
        assert connect.connect(say=heard.append) == connect.Connection("local", True, "node", {"CPU": 1.0}, True)
    else:
        with pytest.raises(connect.ClusterError, match=r"Ray did not start or join: The current node.*Fix:") as caught:
            connect.connect(say=heard.append)
        assert caught.value.exit_code == 5 and "\n" not in str(caught.value)
    assert len(heard) == 1 and heard[0].endswith("trying once more") and next(late, None) is None


def test_sigterm_while_ray_starts_is_an_interrupt_and_the_handler_stays(monkeypatch: pytest.MonkeyPatch):
    import ray

    from pipeline.interrupt import terminable

    def start(**options):
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as Ray does at once
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal ends it")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with terminable():
        own = signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            connect.connect()
        assert signal.getsignal(signal.SIGTERM) is own


def test_a_head_node_that_hangs_counts_as_unreachable(silent_port: int):
    with pytest.raises(connect.ClusterError, match="timed out"):
        connect.reachable(f"127.0.0.1:{silent_port}", timeout_s=0.2)


def test_auto_without_a_cluster_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(connect.ClusterError, match="no cluster runs on this machine"):
        connect.reachable("auto")


def test_the_users_environment_wins(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    connect.set_environment()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["RAY_USAGE_STATS_ENABLED"]) == ("7", "0")


def test_refusing_an_address_does_not_cost_an_import_of_ray():
    code = (
        "import sys\nfrom cluster import connect\n"
        "try:\n    connect.connect('127.0.0.1:1')\nexcept connect.ClusterError: print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
