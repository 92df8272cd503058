"""A study as a job of a Ray cluster: submitted, its log followed, its end reported or brought about.

Ray's client waits without end for a head that hangs, so each of its calls has an end of its own, a head is knocked at
before each, and beside a log that is followed; one that gives no answer for ``GONE`` seconds is given up. ``say`` is
told what is waited for when it takes long.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from cluster import asking
from cluster.connect import ClusterError
from cluster.machines import job_server
from cluster.noted import use_token
from cluster.storage import redacted

POLL = 1.0  # seconds between two looks at a job
GONE = 10.0  # seconds without an answer after which a cluster is given up
STOPPED_IN = 60.0  # seconds a job that is told to stop may take
ANSWERS_IN = 30.0  # seconds for the answer to a question, by a head that was there a moment before
TAKEN_IN = 90.0  # and for a job to be taken: its folder is sent, its supervisor started
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
T = TypeVar("T")


def _nothing(text: str) -> None:
    """Says nothing."""


class UnknownJob(Exception):
    """The cluster has no job of this id."""


def submit(
    url: str,
    command: Sequence[str],
    *,
    files: str | None = None,
    env: Mapping[str, str] | None = None,
    field: str = "--to",
    say: Callable[[str], None] = _nothing,
) -> str:
    """Start ``command`` on the cluster whose dashboard is at ``url``; the job's id. ``files``: a folder that is copied
    to where the command runs; ``field``: what the URL is called in an error. Raises ClusterError."""
    environment: dict[str, Any] = {"env_vars": dict(env or {})}
    if files is not None:
        environment["working_dir"] = files
    client = _client(url, field, say)

    def submitted() -> str:
        return str(client.submit_job(entrypoint=shlex.join(command), runtime_env=environment))

    return _asked(submitted, url, field, "the job was not taken", say=say, seconds=TAKEN_IN)


def follow(
    url: str, job: str, write: Callable[[str], None], field: str = "--to", say: Callable[[str], None] = _nothing
) -> tuple[str, int]:
    """Write the job's log from its beginning and as it grows, until the job ends: (SUCCEEDED, FAILED or STOPPED, exit
    code of its command). Raises UnknownJob, and ClusterError also where the cluster ends before the job."""
    client = _client(url, field, say)
    _state(client, url, job, field, say)
    problem, answered = asyncio.run(_tail(client, url, job, write))
    if problem:
        write(f"(the log cannot be followed: {problem})\n")
    while True:
        try:
            job_server(url, field, GONE / 4)
            status, code = _state(client, url, job, field, say)
        except ClusterError as error:
            if time.monotonic() - answered >= GONE:
                raise ClusterError(
                    f"job = {job!r}: its cluster at {url} gives no answer any more, so that nobody knows how it ends "
                    f"({_reason(error)}). Fix: see what is left of the cluster, start it again, and submit the study "
                    "again: what is finished is kept"
                ) from error
        else:
            answered = time.monotonic()
            if status in ENDED:
                return status, code
        time.sleep(POLL)


async def _tail(client: Any, url: str, job: str, write: Callable[[str], None]) -> tuple[str, float]:
    """Write the log until it ends or the cluster gives no answer: (why it could not be followed to its end, or "", when
    the cluster answered last)."""

    async def read() -> None:
        async for lines in client.tail_job_logs(job):
            write(lines)

    reading = asyncio.ensure_future(read())
    answered = time.monotonic()
    while not (await asyncio.wait({reading}, timeout=GONE / 4))[0]:
        try:
            await asyncio.to_thread(job_server, url, timeout=GONE / 4)
            answered = time.monotonic()
        except ClusterError:
            if time.monotonic() - answered >= GONE:
                break
    if not reading.done():
        reading.cancel()
        await asyncio.wait({reading})
        return "no answer", answered
    error = reading.exception()
    return "" if error is None else _first_line(error), time.monotonic()


def stop(url: str, job: str, field: str = "--to", say: Callable[[str], None] = _nothing) -> str:
    """End the job, as Ctrl-C would, and wait for it; how it ended. Raises UnknownJob and ClusterError."""
    client = _client(url, field, say)
    status, _ = _state(client, url, job, field, say)
    if status in ENDED:
        return status
    _asked(lambda: client.stop_job(job), url, field, f"{job} was not stopped", say=say)
    said = time.monotonic()
    until = said + STOPPED_IN
    while status not in ENDED and time.monotonic() < until:
        time.sleep(POLL)
        job_server(url, field, GONE)
        status, _ = _state(client, url, job, field, say)
        if time.monotonic() - said >= asking.EVERY:
            said = time.monotonic()
            say(f"{job} was told to stop and is {status}")
    return status


def jobs(url: str, field: str = "--to", say: Callable[[str], None] = _nothing) -> list[tuple[str, str, str]]:
    """(id, status, command) of the cluster's jobs that were submitted, the newest first. Raises ClusterError."""
    client = _client(url, field, say)
    found = _asked(client.list_jobs, url, field, "its jobs are not known", say=say)
    submitted = [job for job in found if job.submission_id]
    submitted.sort(key=lambda job: -(job.start_time or 0))
    return [(str(job.submission_id), _name(job.status), job.entrypoint) for job in submitted]


def _state(client: Any, url: str, job: str, field: str, say: Callable[[str], None]) -> tuple[str, int]:
    """Status of the job, and the exit code of its command."""
    info = _asked(lambda: client.get_job_info(job), url, field, f"{job} is not known", job, say)
    status = _name(info.status)
    return status, 0 if status == "SUCCEEDED" else int(info.driver_exit_code or 1)


def _name(status: Any) -> str:
    return str(getattr(status, "value", status))


def _client(url: str, field: str, say: Callable[[str], None]) -> Any:
    use_token()
    job_server(url, field)
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it tells of each closed connection
    return _asked(lambda: JobSubmissionClient(url), url, field, "no client of Ray can use it", say=say)


def _asked(
    call: Callable[[], T],
    url: str,
    field: str,
    what: str,
    job: str = "",
    say: Callable[[str], None] = _nothing,
    seconds: float | None = None,
) -> T:
    """What ``call``, one of Ray's client, returns within ``seconds``; what it raises as ClusterError, or UnknownJob
    where there is no ``job``. ``seconds``: default ``ANSWERS_IN``."""
    from ray.exceptions import AuthenticationError

    try:
        return asking.within(seconds or ANSWERS_IN, call, f"an answer from {redacted(url)}", say)
    except AuthenticationError as error:
        raise ClusterError(
            f"{field} = {url!r}: the cluster wants its token, and none that it takes is known here. Fix: "
            "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=a copy of the file that the cluster was started with"
        ) from error
    except (RuntimeError, ValueError, OSError) as error:  # what requests raises is an OSError
        if job and "404" in str(error):
            raise UnknownJob(job) from error
        raise ClusterError(f"{field} = {url!r}: {what}: {_first_line(error)}. Fix: see the head's log") from error


def _reason(error: ClusterError) -> str:
    return str(error).partition(": ")[2].partition(". Fix:")[0]


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
