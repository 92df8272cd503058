"""Asking what may never answer: a host that swallows packets, a head that hangs. Never for ever, and never in silence.

Ray waits for a minute and more where nobody answers, inside a call that cannot be ended; so a cluster is asked in a
process of its own, which can.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
EVERY = 8.0  # seconds after which, and between, it is said what is waited for
ANSWER = 45.0  # seconds a head that listens may take to say which nodes it has; it takes about three
UNSEEN = 15.0  # and where no node of it is seen on this machine


def within(
    seconds: float, call: Callable[[], T], what: str = "an answer", say: Callable[[str], None] = lambda text: None
) -> T:
    """What ``call()`` returns or raises. After ``seconds`` TimeoutError; the call then goes on in a thread of its own,
    which keeps no process alive. ``say`` is told meanwhile that ``what`` is waited for."""
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put((True, call()))
        except BaseException as error:
            answers.put((False, error))

    threading.Thread(target=ask, name=f"waiting for {what}", daemon=True).start()
    for pause in _pauses(seconds, what, say):
        try:
            returned, found = answers.get(timeout=pause)
        except queue.Empty:
            continue
        if returned:
            answer: T = found
            return answer
        raise found
    raise TimeoutError(f"no answer within {seconds:g} s")


def nodes(
    address: str, environment: Mapping[str, str], say: Callable[[str], None], seconds: float | None = None
) -> list[dict[str, Any]]:
    """The nodes of the cluster at ``address`` that are alive: id, name, address, resources. The asker, a child process
    with ``environment``, is part of the cluster until it ends. Raises OSError where there is no answer, or none that is
    one, within ``seconds`` (default ``ANSWER``)."""
    command, pipe = [sys.executable, "-P", "-c", _ASK, address], subprocess.PIPE
    own = {name: value for name, value in environment.items() if name != _JOB}
    asker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, env=own)
    seconds = ANSWER if seconds is None else seconds
    try:
        for pause in _pauses(seconds, f"an answer of the cluster at {address}", say):
            try:
                out, err = asker.communicate(timeout=pause)
                break
            except subprocess.TimeoutExpired:
                continue
        else:
            raise TimeoutError(f"nothing in {seconds:.0f} s")
    finally:
        if asker.poll() is None:
            asker.kill()
            asker.communicate()
    lines = out.strip().splitlines()
    if asker.returncode or not lines:
        raise ConnectionError((err.strip().splitlines()[-1:] or ["no answer"])[0].rstrip("."))
    found: list[dict[str, Any]] = json.loads(lines[-1])
    return found


_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # in a job of Ray it would make the asker a part of the job
_ASK = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(json.dumps([
    {"id": node["NodeID"], "name": node["NodeName"], "address": node["NodeManagerAddress"],
     "resources": {name: node["Resources"].get(name, 0) for name in ("CPU", "GPU", "memory")}}
    for node in ray.nodes() if node["Alive"]
]))
"""


def _pauses(seconds: float, what: str, say: Callable[[str], None]) -> Iterator[float]:
    """How long to wait each time until ``seconds`` are over; between two of them ``say`` is told."""
    began = time.monotonic()
    while (left := began + seconds - time.monotonic()) > 0:
        yield min(left, EVERY)
        if (waited := time.monotonic() - began) < seconds:
            say(f"still waiting for {what} ({waited:.0f} s)")
