"""The command that shows the rows behind a number: what a reader pastes into a terminal."""

from __future__ import annotations

import re
import shlex
from typing import Any

DIGITS = 12  # of a key, as everywhere on the command line: two keys of one store do not begin alike
_PLAIN = re.compile(r"[^\"$`\\]*")


def show(key: str, table: str = "", row_filter: str = "", options: str = "") -> str:
    """``infini-study show KEY --table T --where "FILTER"``; "" for a number that no artifact holds. ``options``: what
    leads the command to the store, such as " --root DIR"."""
    if not key:
        return ""
    parts = [f"infini-study show {key[:DIGITS]}{options}"]
    if table:
        parts.append(f"--table {shlex.quote(table.removesuffix('.parquet'))}")
    if row_filter:
        parts.append(f"--where {_quoted(row_filter)}")
    return " ".join(parts)


def _quoted(text: str) -> str:
    """In double quotes where nothing in it means something there: filters are full of single ones."""
    return f'"{text}"' if _PLAIN.fullmatch(text) and not text.endswith("!") else shlex.quote(text)


def with_commands(value: Any, options: str) -> Any:
    """``value`` (plain data) with a ``command`` beside every key, table and filter in it."""
    if isinstance(value, list):
        return [with_commands(item, options) for item in value]
    if not isinstance(value, dict):
        return value
    made = {name: with_commands(item, options) for name, item in value.items()}
    if {"step", "key", "table", "filter"} <= set(value):
        made["command"] = show(value["key"], value["table"], value["filter"], options)
    return made
