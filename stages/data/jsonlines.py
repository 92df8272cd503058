"""JSON Lines: one object a line; lines without a character say nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, AnyStr


def filled(lines: Iterable[AnyStr]) -> Iterator[tuple[int, AnyStr]]:
    """The lines that say something, with their numbers from 1. ``lines``: an open file, or ``bytes.splitlines()``;
    ``str.splitlines()`` also cuts at characters that JSON allows within a text."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line


def parsed(line: str | bytes, *, halves: bool = False) -> dict[str, Any]:
    """The object. Raises ValueError for no JSON, other bytes than UTF-8, too many brackets within one another, for
    anything but an object, and, unless ``halves``, for half of a character: no tokenizer and no file takes one."""
    try:
        row = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(row, dict):
        raise ValueError("no object")
    if not halves and ("\\u" in line if isinstance(line, str) else b"\\u" in line):
        check_whole(row)
    return row


def check_whole(value: Any) -> None:
    """Raises ValueError where a text within holds half of a character."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("half of a character (a lone surrogate)") from error


def objects(lines: Iterable[AnyStr]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of every line that says something. Raises ValueError naming the first that is none."""
    for number, line in filled(lines):
        try:
            yield number, parsed(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
