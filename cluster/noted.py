"""What is known of the Ray cluster that this user started on this machine: processes, address, token."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.storage import filesystem, write_atomic


@dataclass(frozen=True)
class Process:
    """One ``ray start``: its id, when it began (``birth``) and what its node is called."""

    pid: int
    started: float
    name: str


@dataclass(frozen=True)
class Cluster:
    """What was started. ``address``: for ``--address``; ``dashboard``: URL of the dashboard and the job server."""

    address: str
    dashboard: str
    processes: tuple[Process, ...]
    folder: str


def state_folder() -> Path:
    """Where the cluster, its token and its logs are noted: one for each user."""
    base = os.environ.get("INFINI_STUDY_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "infini-study"
    )
    return Path(base) / "cluster"


def token_file() -> Path:
    """The file with the token: the user's own for Ray, or one beside the notes where there is none yet."""
    if os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    users = Path(os.path.expanduser("~")) / ".ray" / "auth_token"
    return users if users.is_file() else state_folder() / "token"


def use_token() -> None:
    """Let this process and those it starts know the token of a cluster that was started here."""
    if "RAY_AUTH_TOKEN" not in os.environ and token_file().is_file():
        os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(token_file()))
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def note(cluster: Cluster) -> None:
    """Keep what was started, for ``noted``."""
    fs, path = filesystem(str(state_folder() / "cluster.json"))
    write_atomic(fs, path, json.dumps(asdict(cluster), indent=1).encode())


def noted() -> Cluster | None:
    """The cluster that was started last, as far as any of its processes is left."""
    try:
        value = json.loads((state_folder() / "cluster.json").read_text(encoding="utf-8"))
        processes = tuple(Process(**process) for process in value.pop("processes"))
        cluster = Cluster(**value, processes=processes)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return cluster if any(map(alive, cluster.processes)) else None


def alive(process: Process) -> bool:
    """Is it still that process, and not another that was given its number?"""
    return is_running(process.pid, process.started)


def birth(pid: int) -> float:
    """When the process began, in seconds since this machine did; where that is not known, since the epoch. The system
    tells of the second by its clock as it is now, so that after the clock was set every process began at another time.
    Raises psutil.NoSuchProcess."""
    import psutil

    created = float(psutil.Process(pid).create_time())
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")  # the 22nd of proc(5)
    return created


def is_running(pid: int, started: float) -> bool:
    """Does the process run that began at ``started`` (``birth``, or seconds since the epoch in older notes)?"""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return any(abs(began - started) < 2.0 for began in (birth(pid), process.create_time()))
    return False
