"""One way into Ray: embedded in this process, or an existing cluster that is checked before any work.

Bare ``ray.init()`` follows a file that outlives a killed cluster and then retries for 20 s, so an address is always
given, and an address of a cluster is first knocked at. ``ray stop`` would end every Ray on the machine, also another
user's: an embedded Ray ends with its driver, which owns its processes.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import asking
from cluster.noted import noted, use_token

# Set where the user has not: see the reasons beside each. Read by Ray when it is imported or starts a process.
ENVIRONMENT: Mapping[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else workers rebuild an environment under `uv run`
    "RAY_DEDUP_LOGS": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # else shutdown may wait 30 s
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_task_oom_retries": "2",  # a step that needs more memory than there is would be tried for ever
    # A step that is being handed to a node when it vanishes waits for this ping (ray-project/ray#63405), by default
    # five minutes; Ray's servers take one a minute.
    "RAY_grpc_client_keepalive_time_ms": "65000",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_USE_DATASOURCE_V2": "0",  # the V2 Parquet reader takes 2-3 s for a small read
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leave CUDA_VISIBLE_DEVICES alone for tasks without a GPU
    "OMP_NUM_THREADS": "1",  # two contending thread pools slow small operations 200 times
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# Settings of the storage's address that workers of a remote cluster need; credentials come from the nodes' own roles.
FORWARDED = (
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "OMP_NUM_THREADS",
    "HF_HUB_OFFLINE",
    "INFINI_STUDY_PLUGINS",
)

LOCAL = "local"
_LONGEST_TEMP_DIR = 45  # bytes; Ray adds about 60, and a socket's path may have 107


class ClusterError(Exception):
    """No Ray at the address, or not one that can run this; one line with the fix."""

    exit_code = 5


@dataclass
class Connection:
    """A started or joined Ray. ``close`` ends what ``connect`` started and nothing else."""

    address: str
    embedded: bool
    node_id: str
    resources: Mapping[str, float] = field(default_factory=dict)
    owned: bool = True

    def close(self) -> None:
        """Leave the cluster; an embedded one ends."""
        if self.owned:
            import ray

            ray.shutdown()


def set_environment() -> None:
    """Defaults for Ray and the libraries below it; what the user has set stays. Call before ``import ray``."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect(
    address: str = LOCAL,
    *,
    cpus: int | None = None,
    object_store_bytes: int = 400 * 2**20,
    temp_dir: str | None = None,
    timeout_s: float = 5.0,
    say: Callable[[str], None] = lambda text: None,
) -> Connection:
    """Start Ray in this process (``local``) or join the cluster at ``host:port`` or ``auto``.

    An already initialised Ray is used as it is and left running. An embedded one that does not start in the 30 s Ray
    gives itself is tried once more, after ``say`` was told. A cluster is asked for its nodes first, by a process that
    can be ended. Raises ClusterError within about ``timeout_s`` where nothing answers, within ``asking.UNSEEN`` seconds
    more where this machine is no node of a cluster and ``asking.ANSWER`` of a head that says no more than that it is
    there, after the second try, and for ``ray://`` (the client is slow; jobs are submitted instead).
    KeyboardInterrupt: SIGTERM came while Ray, which then has a handler of its own, was starting.
    """
    set_environment()
    if address == LOCAL:
        _token_without_home()
    else:
        address = reachable(address, timeout_s)
        if (here := noted()) is not None and here.address == address:
            use_token()
    import ray

    if ray.is_initialized():
        return _connection(address, owned=False)
    if address != LOCAL:
        _check_joinable(address, say)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    if address == LOCAL:
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": object_store_bytes}
        options |= {"_temp_dir": _short_temp_dir(temp_dir), "runtime_env": {"worker_process_setup_hook": _hook()}}
    else:
        variables = {name: os.environ[name] for name in FORWARDED if name in os.environ}
        options["runtime_env"] = {"env_vars": variables, "worker_process_setup_hook": _hook()}
    try:
        _init(address, options)
    except ClusterError as error:
        if address != LOCAL:
            raise
        say(f"{error.args[0].partition('. Fix:')[0]}; trying once more")
        _init(address, options)
    return _connection(address, owned=True)


def _init(address: str, options: Mapping[str, Any]) -> None:
    """``ray.init``, of which nothing stays when it fails. Raises ClusterError."""
    import psutil
    import ray

    before = set(psutil.Process().children(recursive=True))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, **options)
    except SystemExit as error:  # what Ray's own handler of SIGTERM does
        raise KeyboardInterrupt from error
    except Exception as error:  # a start that takes too long is a bare Exception there
        ray.shutdown()
        for process in set(psutil.Process().children(recursive=True)) - before:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise ClusterError(f"--address = {address!r}: Ray did not start or join: {reason}. {_FIX}") from error
    finally:
        if threading.current_thread() is threading.main_thread() and callable(handler):
            signal.signal(signal.SIGTERM, handler)  # the caller's own; Ray puts its own in its place


def _check_joinable(address: str, say: Callable[[str], None]) -> None:
    """Raises ClusterError where ``ray.init`` would wait for a minute or two: where this machine has no node that a
    driver can be part of, and where a head greets and then says nothing."""
    import psutil

    # A node in another container of this machine is not seen. Rays that ask the head for the node of their address
    # (2.51) join it all the same, those that look at processes themselves (2.60) do not.
    here = any(process.info["name"] == "raylet" for process in psutil.process_iter(["name"]))
    try:
        asking.nodes(address, os.environ, say, asking.ANSWER if here else asking.UNSEEN)
    except OSError as error:
        if here:
            raise ClusterError(f"--address = {address!r}: {_NOBODY} at {address}: {error}. {_FIX}") from error
        raise ClusterError(
            f"--address = {address!r}: no node of a Ray cluster runs on this machine, so a study cannot be run from "
            "it. Fix: run it on a node of the cluster, or submit it: infini-study cluster submit STUDY --to "
            "http://HEAD:8265"
        ) from error


def _hook() -> Callable[[], None]:
    """What each worker calls when it starts: Ray puts this process's folder first on the workers' search path, and a
    ``model.py`` in it must not stand for ours. A function in a function, because such a one travels by its code and
    not by the name of a module that would have to be imported first."""
    home = Path(__file__).absolute().parents[1]

    def claim_our_packages() -> None:
        with contextlib.suppress(ModuleNotFoundError):  # a source tree that is on no search path but the driver's own
            importlib.import_module("infini_study").claim(home)

    return claim_our_packages


def _token_without_home() -> None:
    """Ray keeps its token below the home folder and does not start where that cannot be written (a service's user, a
    container's): an embedded Ray then gets one that lives as long as this process."""
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    folder = Path(os.path.expanduser("~")) / ".ray"
    if (folder / "auth_token").is_file():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


_NOBODY = "no Ray cluster answers"
_FIX = "Fix: give the host:port of a running head node, or 'local' for a Ray of its own"


def reachable(address: str, timeout_s: float = 5.0) -> str:
    """``host:port`` of the cluster that ``address`` (``auto`` or ``host:port``) means, after it answered.

    Raises ClusterError. Does not import Ray.
    """
    if "://" in address:
        raise ClusterError(
            f"--address = {address!r}: Ray clients are not supported (allowed: local, auto, host:port). "
            "Fix: submit the study as a job to the cluster, or run it on the head node with --address auto"
        )
    target = _find_running() if address == "auto" else address
    host, colon, port = target.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or not host:
        raise ClusterError(f"--address = {address!r}: not an address (allowed: local, auto, host:port)")

    def knock() -> None:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s) as door:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                _greet(door)

    try:
        asking.within(timeout_s + 1, knock)  # looking its name up, and all its addresses together
    except (OSError, OverflowError) as error:
        raise ClusterError(f"--address = {address!r}: {_NOBODY} at {target}: {error}. {_FIX}") from error
    return target


def _greet(door: socket.socket) -> None:
    """Exchange the first frames of HTTP/2, which a head node's gRPC server speaks: ``ray.init`` would try for 40 s
    on a port where something else listens, or on a head node that hangs. Raises OSError."""
    settings_frame = b"\0\0\0\x04\0\0\0\0\0"  # RFC 9113, 4.1 and 6.5: length 0, type 4, no flags, stream 0
    door.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings_frame)
    header = b""
    while len(header) < len(settings_frame):
        received = door.recv(len(settings_frame) - len(header))
        if not received:
            break
        header += received
    if header[3:4] != b"\x04":
        raise ConnectionError("something listens there that is no head node")


def _find_running() -> str:
    """The cluster of this machine: RAY_ADDRESS, else the file a started head leaves in its temporary folder."""
    named = os.environ.get("RAY_ADDRESS", "")
    if named and named not in ("auto", LOCAL):
        return named
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    try:
        return note.read_text().strip()
    except OSError as error:
        if (here := noted()) is not None:
            return here.address
        raise ClusterError(
            "--address = 'auto': no cluster runs on this machine (RAY_ADDRESS is not set either). " + _FIX
        ) from error


def _short_temp_dir(wanted: str | None) -> str:
    """A folder for Ray's sockets and logs; too long a path or somebody else's folder gives way to a short own one."""
    default = wanted or str(Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray")
    place = Path(default)
    try:
        place.mkdir(parents=True, exist_ok=True)
        usable = os.access(place, os.W_OK | os.X_OK) and len(os.fsencode(default)) <= _LONGEST_TEMP_DIR
    except OSError:
        usable = False
    if usable:
        return default
    if wanted is not None:
        raise ClusterError(f"temp_dir = {wanted!r}: not writable, or longer than {_LONGEST_TEMP_DIR} bytes")
    return tempfile.mkdtemp(prefix="ray-", dir="/tmp")


def _connection(address: str, *, owned: bool) -> Connection:
    import ray

    context = ray.get_runtime_context()
    return Connection(address, address == LOCAL, context.get_node_id(), dict(ray.cluster_resources()), owned)
