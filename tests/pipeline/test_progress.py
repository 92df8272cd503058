"""The display: plain lines that are never silent for long, rates and remaining time, a live table on a terminal."""

from __future__ import annotations

import io
import threading

import pytest

from pipeline.engine import progress
from pipeline.engine.progress import Display, number, span


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_a_log_file_gets_starts_ends_and_progress_every_ten_seconds(clock: Clock):
    stream = io.StringIO()
    display = Display(stream=stream, clock=clock)
    display.begin(3, 1, 2)
    display.started("pretrain/local/0")
    for second in range(1, 26):
        clock.now = float(second)
        display.progress("pretrain/local/0", second * 4, 400, "steps", {"loss": 5.3125})
        display.tick()
    display.done("pretrain/local/0", 25.2, "loss 5.3")
    assert lines(stream) == [
        "[    0s] 3 steps: 1 reused, 2 to compute",
        "[    0s] pretrain/local/0  started",
        "[   10s] pretrain/local/0  40/400 steps  4/s  ETA 1m30s  loss 5.312",
        "[   20s] pretrain/local/0  80/400 steps  4/s  ETA 1m20s  loss 5.312",
        "[   25s] pretrain/local/0  done in 25s: loss 5.3",
    ]


def test_a_step_that_says_nothing_is_still_mentioned(clock: Clock):
    stream = io.StringIO()
    display = Display(stream=stream, clock=clock)
    display.begin(2, 0, 2)
    display.started("ingest")
    display.waiting("tokenize", "process 7 on other")
    display.waiting("tokenize", "process 7 on other")
    for second in (5, 10, 15, 20):
        clock.now = float(second)
        display.tick()
    assert lines(stream)[2:] == [
        "[    0s] tokenize  waiting for process 7 on other, which is computing it",
        "[   10s] still at ingest (10s), tokenize (waiting for process 7 on other)",
        "[   20s] still at ingest (20s), tokenize (waiting for process 7 on other)",
    ]


def test_quiet_still_shows_warnings_and_failures_and_nothing_else(clock: Clock):
    stream = io.StringIO()
    display = Display(quiet=True, stream=stream, clock=clock)
    display.begin(1, 0, 1)
    display.started("ingest")
    display.warn("ingest", "2 documents skipped")
    display.failed("ingest", "no document left", "/logs/x.log")
    assert lines(stream) == [
        "[    0s] ingest  warning: 2 documents skipped",
        "[    0s] ingest  failed: no document left",
        "  log: /logs/x.log",
    ]


def test_log_lines_are_shown_only_when_verbose(clock: Clock):
    for verbose in (False, True):
        stream = io.StringIO()
        Display(verbose=verbose, stream=stream, clock=clock).log("ingest", "reading a.txt")
        assert ("reading a.txt" in stream.getvalue()) is verbose


def test_messages_that_come_in_bursts_do_not_make_a_rate_of_their_own(clock: Clock):
    stream = io.StringIO()
    display = Display(stream=stream, clock=clock)
    display.started("base")
    for second in range(11):
        for message in range(3):  # three of the four steps of a second arrive within milliseconds
            clock.now = second + 0.001 * message
            display.progress("base", 4 * second + message, 400, "steps", {})
        display.tick()
    assert lines(stream)[-1] == "[   10s] base  42/400 steps  4/s  ETA 1m30s"


def test_a_new_phase_starts_its_own_rate(clock: Clock):
    stream = io.StringIO()
    display = Display(stream=stream, clock=clock)
    display.started("evaluate")
    for second, (done, unit) in enumerate([(0, "documents"), (50, "documents"), (0, "prompts"), (2, "prompts")]):
        clock.now = float(second)
        display.progress("evaluate", done, 100, unit, {})
    clock.now = 10.0
    display.tick()
    assert lines(stream)[-1] == "[   10s] evaluate  2/100 prompts  2/s  ETA 49s"


def test_on_a_terminal_a_table_shows_bars_and_counts(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    display = Display(stream=stream, clock=clock)
    display.begin(5, 2, 3)
    display.started("tokenize")
    display.progress("tokenize", 1, 4, "shards", {"MB": 12.0})
    display.tick()
    display.end()
    shown = stream.getvalue()
    assert "tokenize" in shown and "1/4 shards" in shown and "MB 12" in shown
    assert "0 done, 2 reused, 2 left" in shown
    assert "\x1b[3" not in shown, "no colour where NO_COLOR is set"


def test_no_progress_gives_plain_lines_even_on_a_terminal(clock: Clock):
    stream = Terminal()
    display = Display(live=False, stream=stream, clock=clock)
    display.begin(1, 0, 1)
    display.started("ingest")
    display.end()
    assert "\x1b" not in stream.getvalue() and "ingest  started" in stream.getvalue()


def test_spans_and_numbers_read_well():
    assert [span(s) for s in (0.4, 59.6, 60, 125, 7260)] == ["0s", "1m00s", "1m00s", "2m05s", "2h01m"]
    assert [number(v) for v in (3, 0.123456, 1234567.0)] == ["3", "0.1235", "1,234,567"]


def test_control_characters_of_documents_are_shown_as_text(clock: Clock):
    evil = "\x1b]0;title\x07\x1b[31mred\x9b\u202e\nfake line"
    stream = io.StringIO()
    display = Display(verbose=True, stream=stream, clock=clock)
    display.begin(1, 0, 1)
    display.started("ingest")
    display.warn("ingest", evil)
    display.log("ingest", evil)
    display.done("ingest", 1.0, evil)
    display.failed("tokenize", evil, "log")
    assert not set("\x1b\x07\x9b\u202e") & set(stream.getvalue())
    shown = r"\x1b]0;title\x07\x1b[31mred\x9b\u202e"
    assert stream.getvalue().count(shown) == 4
    assert sum(line.startswith("fake") for line in lines(stream)) <= 1, "only errors may have several lines"


def test_what_cannot_tick_is_spoken_of_every_ten_seconds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "EVERY", 0.001)
    spoken = threading.Event()

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            spoken.set()
            return super().write(text)

    stream = Stream()
    with Display(stream=stream).during("starting Ray"):
        assert spoken.wait(30)
    assert "still starting Ray (0s)" in stream.getvalue()
