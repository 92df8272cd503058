"""What a run looks like while it goes: a live table on a terminal, plain lines elsewhere; all on stderr.

Without a terminal a line is written at each start and end, and every ten seconds one for each step that has moved
(or, if nothing moves, one that says what is being waited for), so that no log is ever silent for longer.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from pipeline.engine.escape import escaped

if TYPE_CHECKING:
    from rich.console import RenderableType

EVERY = 10.0  # seconds between two plain lines of one step
_SMOOTHING = 0.3  # weight of the newest rate
_MEASURED_OVER = 1.0  # seconds, at least: messages arrive in bursts, and two of one burst make any rate


def span(seconds: float) -> str:
    """``42s``, ``3m05s``, ``2h07m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def number(value: float) -> str:
    """At most four significant digits, thousands written out."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@dataclass
class _Row:
    """A running step."""

    started: float
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    rate: float = 0.0  # units per second, smoothed
    since: tuple[float, float] = (0.0, 0.0)  # (time, done) that the next rate is measured from
    moved: float = 0.0
    moves: int = 0
    printed: float = 0.0
    printed_moves: int = 0

    def move(self, now: float, done: float, total: float, unit: str, numbers: Mapping[str, float]) -> None:
        then, had = self.since
        if not self.moves or unit != self.unit or done < self.done:
            self.rate, self.since = 0.0, (now, done)  # a new phase
        elif done > had and now - then >= _MEASURED_OVER:
            rate = (done - had) / (now - then)
            self.rate = rate if not self.rate else (1 - _SMOOTHING) * self.rate + _SMOOTHING * rate
            self.since = (now, done)
        if done != self.done or unit != self.unit or not self.moves:
            self.moved = now
            self.moves += 1
        self.done, self.total, self.unit, self.numbers = done, total, unit, dict(numbers)

    def left(self) -> float | None:
        """Seconds until this phase is done, if it can be told."""
        return (self.total - self.done) / self.rate if self.rate and self.total >= self.done else None

    def words(self) -> str:
        """``120/400 steps  3.1/s  loss 5.31``."""
        if not self.moves:
            return "started"
        parts = [f"{number(self.done)}/{number(self.total)} {self.unit}"]
        if self.rate:
            parts.append(f"{number(self.rate)}/s")
        left = self.left()
        if left is not None:
            parts.append(f"ETA {span(left)}")
        parts += [f"{name} {number(value)}" for name, value in self.numbers.items()]
        return "  ".join(parts)


class Display:
    """Progress of one run. All calls come from the driver's loop; ``tick`` at least once a second."""

    def __init__(
        self,
        *,
        quiet: bool = False,
        live: bool | None = None,
        verbose: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``quiet``: only failures and warnings. ``live``: the moving table; default: on a terminal (``--no-progress``
        passes False). ``verbose``: the steps' log lines too. ``NO_COLOR`` is honoured."""
        self.stream = stream or sys.stderr
        self.quiet, self.verbose, self.clock = quiet, verbose, clock
        on_terminal = self.stream.isatty() and os.environ.get("TERM", "") != "dumb"
        self.live = not quiet and (on_terminal if live is None else live and on_terminal)
        self.rows: dict[str, _Row] = {}
        self.total = self.reused = self.finished = self.failures = 0
        self._waiting: dict[str, str] = {}
        self._began = self._spoke = clock()
        self._screen: Any = None

    def begin(self, total: int, reused: int, left: int) -> None:
        """Numbers of the plan: all steps, those reused, those to compute."""
        self.total, self.reused, self._began = total, reused, self.clock()
        self._line(f"{total} steps: {reused} reused, {left} to compute" + ("" if left else "; nothing to do"))
        if self.live and left:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self.stream, no_color="NO_COLOR" in os.environ or None)
            self._screen = Live(
                get_renderable=self._table, console=console, refresh_per_second=4, auto_refresh=False, transient=True
            )
            self._screen.start()

    def note(self, text: str) -> None:
        """A line about the run as a whole."""
        self._line(text)

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Something that may take long and cannot call ``tick``: a line every ten seconds says that it goes on."""
        ended, began = threading.Event(), self.clock()

        def remind() -> None:
            while not ended.wait(EVERY):
                self._line(f"still {what} ({span(self.clock() - began)})")

        thread = threading.Thread(target=remind, name=what, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def started(self, step: str) -> None:
        """A step is being computed from now on."""
        now = self.clock()
        self._waiting.pop(step, None)
        self.rows[step] = _Row(now, moved=now, printed=now)
        if self._screen is None:
            self._line(f"{step}  started")

    def waiting(self, step: str, holder: str) -> None:
        """Another driver computes this step."""
        if self._waiting.get(step) != holder:
            self._waiting[step] = holder
            self._line(f"{step}  waiting for {holder}, which is computing it")

    def progress(self, step: str, done: float, total: float, unit: str, numbers: Mapping[str, float]) -> None:
        """What ``Context.progress`` reported last."""
        if step in self.rows:
            self.rows[step].move(self.clock(), done, total, unit, numbers)

    def log(self, step: str, text: str) -> None:
        """A line of the step's log, shown with ``verbose``."""
        if self.verbose:
            self._line(f"{step}  {escaped(text)}")

    def warn(self, step: str, text: str) -> None:
        """Shown even when quiet."""
        self._line(f"{step}  warning: {escaped(text)}", style="yellow", always=True)

    def done(self, step: str, seconds: float, headline: str) -> None:
        """A step is committed."""
        self._close(step)
        self.finished += 1
        self._line(f"{step}  done in {span(seconds)}: {escaped(headline)}", style="green")

    def adopted(self, step: str, headline: str) -> None:
        """Another driver has made it meanwhile."""
        self._close(step)
        self.reused += 1
        self._line(f"{step}  made by another run meanwhile: {escaped(headline)}")

    def failed(self, step: str, message: str, log: str) -> None:
        """A step failed; shown even when quiet."""
        self._close(step)
        self.failures += 1
        self._line(f"{step}  failed: {message}" + (f"\n  log: {log}" if log else ""), style="red", always=True)

    def cancelled(self, step: str) -> None:
        """A step was ended before its end."""
        self._close(step)
        self._line(f"{step}  cancelled")

    def tick(self) -> None:
        """Redraw the table, or write the lines that are due."""
        if self._screen is not None:
            self._screen.refresh()
            return
        now = self.clock()
        for step, row in self.rows.items():
            if row.moves != row.printed_moves and now - row.printed >= EVERY:
                row.printed, row.printed_moves = now, row.moves
                self._line(f"{step}  {row.words()}")
        if now - self._spoke >= EVERY and (self.rows or self._waiting):
            still = [f"{step} ({span(now - row.started)})" for step, row in self.rows.items()]
            still += [f"{step} (waiting for {holder})" for step, holder in self._waiting.items()]
            self._line("still at " + ", ".join(still))

    def end(self) -> None:
        """Take the table away. May be called more than once."""
        if self._screen is not None:
            self._screen.stop()
            self._screen = None

    def _close(self, step: str) -> None:
        self.rows.pop(step, None)
        self._waiting.pop(step, None)

    def _line(self, text: str, style: str = "", always: bool = False) -> None:
        if self.quiet and not always:
            return
        self._spoke = self.clock()
        shown = escaped(text, keep="\n")
        stamped = f"[{span(self._spoke - self._began):>6}] {shown}"
        if self._screen is not None:
            from rich.text import Text

            self._screen.console.print(Text(stamped, style=style))
        else:
            self.stream.write(stamped + "\n")
            self.stream.flush()

    def _table(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        now = self.clock()
        for step, row in self.rows.items():
            share = ProgressBar(total=row.total or 1, completed=row.done, width=20, pulse=not row.moves)
            table.add_row(
                Text(step), share, Text(row.words(), overflow="ellipsis", no_wrap=True), span(now - row.started)
            )
        left = self.total - self.finished - self.reused - self.failures - len(self.rows)
        counts = f"{self.finished} done, {self.reused} reused, {left} left"
        counts += f", {self.failures} failed" if self.failures else ""
        waits = [Text(f"{step}  waiting for {holder}") for step, holder in self._waiting.items()]
        return Group(table, *waits, Text(f"{span(now - self._began)}  {counts}", style="dim"))
