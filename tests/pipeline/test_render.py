"""Tables: one line per row in a pipe; on a narrow terminal nothing is cut, the long column stands below its row."""

from __future__ import annotations

import io
import re
import sys

import pytest

from pipeline.cli.render import table

COLUMNS = ["claim", "", "verdict", "why"]
ROWS = [
    ["C1", "memory-is-used", "refuted", "costs less than 5% accuracy and 3% perplexity (TOST)"],
    ["C2", "seeds", "not measured", ""],
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, width: int) -> list[str]:
    monkeypatch.setattr(sys, "stdout", stream)
    for name, value in (("COLUMNS", str(width)), ("NO_COLOR", "1"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    table(COLUMNS, ROWS, {"refuted": "red"}, last_below=True)
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(("stream", "width"), [(io.StringIO(), 40), (Terminal(), 100)])
def test_a_row_is_one_line_where_it_fits_and_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, width: int
):
    assert shown(monkeypatch, stream, width)[1:] == [
        "C1     memory-is-used  refuted       costs less than 5% accuracy and 3% perplexity (TOST)",
        "C2     seeds           not measured",
    ]


@pytest.mark.parametrize(("width", "first"), [(60, "C1     memory-is-used  refuted"), (30, "C1     memory-is-used")])
def test_a_narrow_terminal_keeps_every_word(monkeypatch: pytest.MonkeyPatch, width: int, first: str):
    lines = shown(monkeypatch, Terminal(), width)
    assert lines[1] == first and max(map(len, lines)) <= width
    words = " ".join(lines).split()
    assert all(word in words for row in ROWS for cell in row for word in cell.split())
