"""One step, where it is computed: builds what a stage sees, runs it, seals its attempt, and says how it went.

``run_step`` is the body of the Ray task and of the inline runner. It commits nothing: that is the driver's, who
checks first that it still holds the lease. Faults come back as values, so that no exception has to survive pickling.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import platform
import re
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from cluster import storage
from pipeline.engine.artifact import StoredArtifact
from pipeline.engine.store import Attempt, Sealed, Store
from pipeline.errors import UserError
from pipeline.plugins import load_plugins
from stages.stage import Config, Execution, Stage, StageError, Summary

SEND_EVERY = 0.25  # seconds between two batches of messages to the driver


@dataclass(frozen=True)
class Message:
    """What a step tells the driver while it runs: ``progress``, ``metrics``, ``log`` or ``warn``."""

    step: str
    kind: str
    text: str = ""
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    at: int = 0  # training step of ``metrics``
    values: Mapping[str, float] = field(default_factory=dict)
    time: float = 0.0  # seconds since the epoch


class Sink(Protocol):
    """Where messages go; ``last`` asks to return only when they have arrived."""

    def send(self, messages: list[Message], last: bool = False) -> None: ...


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to make one artifact. Picklable."""

    step: str
    stage: Stage[Any]
    config: Config
    key: str
    inputs: Mapping[str, StoredArtifact]
    store: Store
    execution: Execution
    token: int  # number of the lease it runs under


@dataclass(frozen=True)
class Done:
    """The stage returned; its attempt is sealed and waits for the commit."""

    sealed: Sealed
    summary: Summary
    seconds: float
    host: str
    log: str
    hardware: str = ""


@dataclass(frozen=True)
class Failed:
    """The step did not come to its end. ``message`` is one line; ``log`` has the traceback of a bug."""

    message: str
    log: str = ""
    exit_code: int = 1


@dataclass(frozen=True)
class Cancelled:
    """The driver ended it."""


class StepContext:
    """Implements ``stages.stage.Context``. Calls only append to a list; a thread sends it four times a second.

    Picklable where the sink is (on Ray), so that a stage's own workers may report through it as well.
    """

    def __init__(self, step: str, execution: Execution, work_url: str, sink: Sink) -> None:
        self.step, self._execution, self._work_url, self._sink = step, execution, work_url, sink
        self._lock = threading.Lock()
        self._progress: Message | None = None
        self._others: list[Message] = []
        self._closed = threading.Event()
        self._sender: threading.Thread | None = None
        self.warnings: list[str] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return (StepContext, (self.step, self._execution, self._work_url, self._sink))

    @property
    def execution(self) -> Execution:
        return self._execution

    @property
    def work_url(self) -> str:
        return self._work_url

    def progress(self, done: float, total: float, unit: str, **numbers: float) -> None:
        values = {name: float(value) for name, value in numbers.items()}
        message = Message(self.step, "progress", "", float(done), float(total), unit, 0, values, time.time())
        with self._lock:
            self._progress = message  # the newest is all the display needs
        self._start()

    def metrics(self, step: int, **values: float) -> None:
        numbers = {name: float(value) for name, value in values.items()}
        self._add(Message(self.step, "metrics", at=int(step), values=numbers, time=time.time()))

    def log(self, message: str) -> None:
        print(message, flush=True)  # stdout is the step's log
        self._add(Message(self.step, "log", message, time=time.time()))

    def warn(self, message: str) -> None:
        print(f"warning: {message}", flush=True)
        self.warnings.append(message)
        self._add(Message(self.step, "warn", message, time=time.time()))

    def _add(self, message: Message) -> None:
        with self._lock:
            self._others.append(message)
        self._start()

    def _start(self) -> None:
        if self._sender is None and not self._closed.is_set():
            with self._lock:
                if self._sender is None:
                    self._sender = threading.Thread(target=self._keep_sending, name="step messages", daemon=True)
                    self._sender.start()

    def _keep_sending(self) -> None:
        while not self._closed.wait(SEND_EVERY):
            self.flush()

    def flush(self, last: bool = False) -> None:
        """Send what has gathered. A message that cannot be sent must not fail the step: it is only news."""
        with self._lock:
            batch = [*self._others, *([self._progress] if self._progress else [])]
            self._others, self._progress = [], None
        if batch or last:
            with contextlib.suppress(Exception):
                self._sink.send(batch, last)

    def close(self) -> None:
        """Stop the thread and see the last messages arrive."""
        self._closed.set()
        self.flush(last=True)


def run_step(job: Job, sink: Sink, *, redirect: bool) -> Done | Failed:
    """Run the stage and seal what it wrote. ``redirect`` sends the whole process's stdout and stderr (native code
    too) to the step's log meanwhile; otherwise only Python's.

    KeyboardInterrupt and SystemExit pass through, after the attempt is discarded: that is how a step is cancelled.
    """
    try:
        return _attempted(job, sink, redirect)
    except OSError as error:  # no room for so much as its folder
        return Failed(_disk_full(error, job.store) or _one_line(error))


def _attempted(job: Job, sink: Sink, redirect: bool) -> Done | Failed:
    started = time.monotonic()
    attempt = job.store.attempt(job.stage.name, job.key, job.token)
    work_url = job.store.work_url(job.stage.name, job.key)
    if job.store.local:
        Path(work_url).mkdir(parents=True, exist_ok=True)
    context = StepContext(job.step, job.execution, work_url, sink)
    with _log_file(job, attempt) as (file, log), _output_to(file, redirect):
        print(f"{job.step} {job.key[:12]} attempt {attempt.id} on {platform.node()}, process {os.getpid()}", flush=True)
        try:
            load_plugins()
            summary = job.stage.run(job.config, job.inputs, attempt.directory, context)
            summary = _checked(summary, attempt, context)
            sealed = job.store.seal(attempt)
        except StageError as error:
            print(f"error: {error}", flush=True)
            return Failed(str(error), log)
        except UserError as error:  # a damaged input
            print(f"error: {error}", flush=True)
            return Failed(str(error), log, error.exit_code)
        except Exception as error:
            traceback.print_exc(file=file)
            return Failed(_disk_full(error, job.store) or _one_line(error), log)
        except BaseException:
            print("cancelled", flush=True)
            job.store.discard(job.stage.name, job.key, attempt.id)
            raise
        finally:
            context.close()
        return Done(sealed, summary, time.monotonic() - started, platform.node(), log, hardware())


def hardware() -> str:
    """The machine in a line: "2 x AMD EPYC 7763, 23 GiB" and, where torch was used and sees them, its GPUs."""
    import psutil

    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    text = f"{os.cpu_count()} x {model}, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    torch = sys.modules.get("torch")  # a step that did not import it used no GPU
    if torch is not None and torch.cuda.is_available():
        text += f"; {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return text


_NO_ROOM = 1 << 16  # bytes
_ROOM = "Fix: make room and run again; what is finished is kept"


def _disk_full(error: Exception, store: Store) -> str | None:
    """The line for a full disk, None for any other error. Libraries that write by themselves (safetensors, torch) raise
    errors of their own then, so the disk of a local store is looked at too."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            plain, said = os.strerror(cause.errno), str(cause.strerror)
            place = f" ({cause.filename})" if cause.filename else ""
            return f"{said if said.startswith(plain) else plain}{place}. {_ROOM}"  # Arrow words it its own way
        cause = cause.__cause__ or cause.__context__
    with contextlib.suppress(OSError):
        if store.local and shutil.disk_usage(store.root).free < _NO_ROOM:
            return f"{os.strerror(errno.ENOSPC)} ({store.root}). {_ROOM}"
    return None


def _one_line(error: Exception) -> str:
    """Kind and first line of what it says; the log has the rest."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}" if text else type(error).__name__


def _checked(summary: Summary, attempt: Attempt, context: StepContext) -> Summary:
    """The summary with plain floats; what is not finite is left out, loudly. Raises ValueError for a file it names
    that is not there."""
    if not isinstance(summary, Summary):
        raise TypeError(f"stage {attempt.stage!r} returned {type(summary).__name__}, not a Summary")
    for name in (*summary.tables.values(), *summary.figures):
        if not (attempt.directory / name).is_file():
            raise ValueError(f"stage {attempt.stage!r}: its summary names {name!r}, which it did not write")
    metrics = {name: float(value) for name, value in summary.metrics.items()}
    for name in [name for name, value in metrics.items() if not math.isfinite(value)]:
        context.warn(f"metric {name} is {metrics.pop(name)}, left out of the summary")
    return Summary(summary.headline, metrics, dict(summary.tables), [str(name) for name in summary.figures])


class _Log(io.TextIOWrapper):
    """A step's log. What a full disk does not take of it is lost: why the step fails, it says itself."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def _log_file(job: Job, attempt: Attempt) -> Iterator[tuple[IO[str], str]]:
    """The attempt's log, open for writing, and where a person finds it."""
    folder = f"{job.store.folder(job.stage.name, job.key)}/logs"
    path = Path(folder) / f"{attempt.id}.log" if job.store.local else attempt.directory.parent / f"{attempt.id}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    place = str(path) if job.store.local else f"{job.store.url(job.stage.name, job.key)}/logs/{attempt.id}.log"
    try:
        with _Log(path.open("ab", 0), encoding="utf-8", errors="backslashreplace", line_buffering=True) as file:
            yield file, place
    finally:
        if not job.store.local:
            with contextlib.suppress(Exception):  # the log is news, like a message
                storage.write_atomic(job.store.fs, f"{folder}/{attempt.id}.log", path.read_bytes())
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _output_to(file: IO[str], whole_process: bool) -> Iterator[None]:
    if not whole_process:
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    try:  # Python's own through the file as well: it takes every character, a process's stdout may not
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            yield
    finally:
        with contextlib.suppress(ValueError, OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        os.close(kept[0])
        os.close(kept[1])
