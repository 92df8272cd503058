"""What the terminal shows: tables on stdout, rich only where stdout is a terminal, plain text elsewhere."""

from __future__ import annotations

import codecs
import json
import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.engine.escape import escaped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

SCHEMA_VERSION = 1

VERDICT_STYLE = {"supported": "green", "refuted": "red", "inconclusive": "yellow", "not measured": "dim"}
ACTION_STYLE = {"run": "yellow", "reuse": "green", "skip": "dim", "blocked": "red"}


_SPELLED = {
    "−": "-",
    "–": "-",
    "—": "-",
    "…": "...",
    "’": "'",
    "“": '"',
    "”": '"',
    "×": "x",
    "±": "+-",
    "≤": "<=",
    "≥": ">=",
    "·": "*",
    "→": "->",
    "β": "beta",
    "λ": "lambda",
    "σ": "sigma",
}


def open_what_is_closed() -> None:
    """``>&-`` leaves Python without a stream, and the next file that is opened in its place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def spell_what_cannot_be_shown() -> None:
    """From now on characters that the terminal's or the pipe's encoding does not have are spelled in those it has,
    where Python would end the command on them."""
    codecs.register_error("spelled", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what else stands in their place takes any text
            stream.reconfigure(errors="spelled")


def _spelled(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(_spelling, error.object[error.start : error.end])), error.end


def _spelling(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return _SPELLED.get(character) or plain or character.encode("ascii", "backslashreplace").decode()


def print_json(command: str, body: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, "command": command, **body}, indent=2)
    _write(text.replace("\x7f", "\\u007f"))  # the only control character that JSON leaves as it is


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    styles: Mapping[str, str] | None = None,
    last_below: bool = False,
) -> None:
    """A table; cells found in ``styles`` are coloured on a terminal, and text wraps to its width there.

    ``last_below``: on a terminal too narrow for whole rows the last column stands under its row, which leaves the
    others readable; a pipe always gets one line per row.
    """
    rows = [[escaped(str(cell)) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, rows, styles or {}, last_below)
        return
    widths = [max(len(str(row[i])) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        line("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _rich_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[str, str], last_below: bool
) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    cells = [[Text(str(cell), style=styles.get(str(cell), "")) for cell in row] for row in rows]
    needed = [max(len(str(row[i])) for row in [columns, *rows]) for i in range(len(columns))]
    if not last_below or sum(needed) + 2 * len(columns) <= console.width:
        shown = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for row in cells:
            shown.add_row(*row)
        console.print(shown)
        return
    fit = len(needed) - 1
    while fit > 1 and sum(needed[:fit]) + 2 * (fit - 1) > console.width:
        fit -= 1
    _print_row(console, [Text(column, style="bold") for column in columns[:fit]], needed)
    for row in cells:
        _print_row(console, row[:fit], needed)
        for below in (Text("  ").join(row[fit:-1]), Text(row[-1].plain, style="dim")):
            if below.plain.strip():
                console.print(Padding(below, (0, 0, 0, needed[0] + 2)))


def _print_row(console: Console, row: Sequence[Text], widths: Sequence[int]) -> None:
    from rich.text import Text

    padded = [cell.copy() for cell in row]
    for cell, width in zip(padded, widths, strict=False):
        cell.pad_right(width - cell.cell_len)
    console.print(Text("  ").join(padded), no_wrap=True)


def line(text: str = "") -> None:
    """One line on stdout, at once, control characters escaped. Ends the command quietly where the reader, such as
    ``head``, has seen enough."""
    _write(escaped(text, keep="\n\t"))


def _write(text: str) -> None:
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes nowhere
        if isinstance(error, BrokenPipeError):
            raise SystemExit(0) from None
        raise


def note(text: str) -> None:
    """One line on stderr: for the person, not for the pipe."""
    sys.stderr.write(escaped(text, keep="\n\t") + "\n")
