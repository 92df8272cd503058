"""Addresses are checked before any work, quickly and without Ray."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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
