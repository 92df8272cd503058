"""Every write is a fault point: what Python opens for writing, renames, links, removes or makes below a folder.

    faults.fail_at("write", "rename ingest/*/attempts/*.manifest.json", kind="sigkill")
    watch_writes(faults, root)       # in the process that shall die there

The interpreter's audit events tell of a write *before* it happens, whoever makes it, so a fault there leaves all
earlier writes done and this one not; an exception raised there is what the writer gets in place of its result. Native
libraries (Parquet, safetensors) open their files unseen; what Python does before and after them is seen.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from tests.faults import Faults, happen

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NAMES = {"os.rename": "rename", "os.link": "link", "os.remove": "remove", "os.rmdir": "rmdir", "os.mkdir": "mkdir"}
# Keys and attempts, names that tempfile makes, and the report's figures, which one function writes.
_KEY = re.compile(
    r"[0-9a-f]{64}|\d{6}-[0-9a-f]{12}-[0-9a-f]{12}|[0-9a-f]{12,32}|(?<=-)[a-z0-9_]{8}(?=/|$)|(?<=figures/)[^/.]+"
)


def point(event: str, args: tuple[Any, ...], root: str) -> str | None:
    """The write's name (``rename make/*/COMMIT.json``), None for anything but a write below ``root``. Keys, attempts
    and other random parts of names are ``*``, and so are the names of figures."""
    if event == "open":
        path, _, flags = args
        if not isinstance(flags, int) or not flags & _WRITING:
            return None
        name = "open"
    elif event in _NAMES:
        name, path = _NAMES[event], args[1] if event in ("os.rename", "os.link") else args[0]
    else:
        return None
    if isinstance(path, int) or path is None:
        return None
    text = os.fsdecode(path)
    if not text.startswith(root):
        return None
    return f"{name} {_KEY.sub('*', text[len(root) :].lstrip('/'))}"


def watch_writes(faults: Faults, root: Path, record: Path | None = None) -> None:
    """From now on this process passes the fault point (``write``, name) at each write below ``root`` that a fault is
    planned for when this is called. ``record``: a file outside that each write's name is added to, a line each."""
    base = str(root.absolute())
    wanted = faults.planned("write")
    lines = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if record is not None else None
    if not wanted and lines is None:
        return

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event != "open" and event not in _NAMES:
            return
        where = point(event, args, base)
        if where is None:
            return
        if lines is not None:
            os.write(lines, f"{where}\n".encode())
        if faults.slug("write", where) in wanted:
            faults.reach("write", where)

    sys.addaudithook(hook)


def watch_nth_write(root: Path, number: int, kind: str, marker: Path) -> None:
    """The ``number``-th write below ``root`` from now on fails (``kind`` of ``Faults.fail_at``); ``marker`` then
    names the write."""
    base, seen = str(root.absolute()), 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event != "open" and event not in _NAMES:
            return
        where = point(event, args, base)
        if where is None:
            return
        seen += 1
        if seen == number:
            marker.write_text(where)
            happen(kind, f"write {number}: {where}")

    sys.addaudithook(hook)
