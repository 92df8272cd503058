"""Addresses are checked before any work, quickly and without Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import asking, connect


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


@pytest.fixture
def greeting_port() -> Iterator[int]:
    """Something greets as a head does, and swallows what is said to it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        doors: list[socket.socket] = []

        def greet() -> None:
            with contextlib.suppress(OSError):  # closed
                while True:
                    door, _ = listener.accept()
                    doors.append(door)
                    door.sendall(b"\0\0\0\x04\0\0\0\0\0")

        threading.Thread(target=greet, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        for door in doors:
            door.close()


def _nodes_here(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    import psutil
    import ray

    processes = [SimpleNamespace(info={"name": name}) for name in names]
    monkeypatch.setattr(psutil, "process_iter", lambda _: iter(processes))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("it would wait for a minute and more"))


def test_a_head_that_greets_and_swallows_the_rest_is_one_line_and_no_silence(
    greeting_port: int, monkeypatch: pytest.MonkeyPatch
):
    _nodes_here(monkeypatch, "raylet")
    monkeypatch.setattr(asking, "ANSWER", 1.0)
    monkeypatch.setattr(asking, "EVERY", 0.3)
    heard: list[str] = []
    with pytest.raises(connect.ClusterError, match=r"no Ray cluster answers at 127.*: nothing in 1 s\. Fix:") as caught:
        connect.connect(f"127.0.0.1:{greeting_port}", say=heard.append)
    assert "\n" not in str(caught.value) and len(heard) >= 2
    assert all("still waiting for an answer of the cluster at 127.0.0.1:" in text for text in heard)


def test_a_machine_that_is_no_node_is_told_so(greeting_port: int, monkeypatch: pytest.MonkeyPatch):
    _nodes_here(monkeypatch, "python", "bash")
    monkeypatch.setattr(asking, "UNSEEN", 0.2)
    with pytest.raises(connect.ClusterError, match=r"no node of a Ray cluster runs on this machine.*Fix:.*submit"):
        connect.connect(f"127.0.0.1:{greeting_port}")


@pytest.mark.parametrize(("seen", "patience"), [(("python",), asking.UNSEEN), (("python", "raylet"), asking.ANSWER)])
def test_a_cluster_that_answers_is_joined_whether_or_not_a_node_of_it_is_seen(
    greeting_port: int, monkeypatch: pytest.MonkeyPatch, seen: tuple[str, ...], patience: float
):
    """A node in another container is no process of this one; it is asked for, and less patiently."""
    import ray

    _nodes_here(monkeypatch, *seen)
    address, asked, joined = f"127.0.0.1:{greeting_port}", [], []
    monkeypatch.setattr(asking, "nodes", lambda address, *_: asked.append((address, _[-1])) or [{"id": "a"}])
    monkeypatch.setattr(ray, "init", lambda **options: joined.append(options["address"]))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    assert connect.connect(address) == connect.Connection(address, False, "node", {"CPU": 4.0}, True)
    assert (asked, joined) == ([(address, patience)], [address])


def test_a_name_that_nobody_looks_up_in_time_counts_as_unreachable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: threading.Event().wait())
    with pytest.raises(connect.ClusterError, match=r"answers at head:6379: no answer within"):
        connect.reachable("head:6379", timeout_s=0.1)


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
