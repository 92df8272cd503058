"""A study as a job of a Ray cluster: submitted, its log followed, its end reported."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.connect import ClusterError
from cluster.machines import job_server
from cluster.noted import use_token

POLL = 1.0  # seconds between two looks at a job that has no log to follow


def submit(url: str, command: Sequence[str], *, files: str | None = None, env: Mapping[str, str] | None = None) -> str:
    """Start ``command`` on the cluster whose dashboard is at ``url``; the job's id. ``files``: a folder that is copied
    to where the command runs. Raises ClusterError."""
    use_token()
    job_server(url)
    environment: dict[str, Any] = {"env_vars": dict(env or {})}
    if files is not None:
        environment["working_dir"] = files
    try:
        client = _client(url)
        return str(client.submit_job(entrypoint=shlex.join(command), runtime_env=environment))
    except (RuntimeError, ConnectionError, ValueError) as error:
        raise ClusterError(f"--to = {url!r}: the job was not taken: {_first_line(error)}") from error


def follow(url: str, job: str, write: Callable[[str], None]) -> tuple[str, int]:
    """Write the job's log as it grows, until the job ends: (SUCCEEDED, FAILED or STOPPED, exit code of its command)."""
    client = _client(url)

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            write(lines)

    try:
        asyncio.run(tail())
    except (RuntimeError, ConnectionError) as error:
        write(f"(the log cannot be followed: {_first_line(error)})\n")
    while True:
        info = client.get_job_info(job)
        status = str(getattr(info.status, "value", info.status))
        if status in ("SUCCEEDED", "FAILED", "STOPPED"):
            code = 0 if status == "SUCCEEDED" else (info.driver_exit_code or 1)
            return status, int(code)
        time.sleep(POLL)


def jobs(url: str) -> list[tuple[str, str, str]]:
    """(id, status, command) of the cluster's jobs that were submitted, the newest first. Raises ClusterError."""
    use_token()
    job_server(url)
    try:
        found = _client(url).list_jobs()
    except (RuntimeError, ConnectionError) as error:
        raise ClusterError(f"--to = {url!r}: {_first_line(error)}") from error
    submitted = [job for job in found if job.submission_id]
    submitted.sort(key=lambda job: -(job.start_time or 0))
    return [
        (str(job.submission_id), str(getattr(job.status, "value", job.status)), job.entrypoint) for job in submitted
    ]


def _client(url: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(url)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
