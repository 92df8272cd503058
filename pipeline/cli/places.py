"""Places that an option names to be written: checked before any work, by writing there."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import StudyError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def place(field: str) -> Callable[[str], Path]:
    """Parser of an option or argument ``field`` that names a place on this machine. It raises StudyError for no name,
    such as a variable of the shell that is not set gives, and for a URL, of which a folder ``s3:`` would be made."""

    def parsed(text: str) -> Path:
        if not str(text).strip():
            raise StudyError(f"{field} = {str(text)!r}: no name (allowed: a path on this machine). Fix: give one")
        if _URL.match(str(text)):
            from cluster.storage import redacted

            raise _wrong(field, redacted(str(text)), "is a URL, and is written on this machine", "a path")
        return Path(os.path.expanduser(text))

    return parsed


def check_folder(field: str, folder: Path, *, empty: bool = False) -> None:
    """Raises StudyError for a folder that cannot be written to, or made; with ``empty`` for one that holds anything.
    Nothing is left behind."""
    _check(field, folder, "a new or empty folder" if empty else "a folder", lambda: _write_into(folder, empty))


def check_file(field: str, file: Path) -> None:
    """Raises StudyError for a file that cannot be written, or made with the folders above it. One that is there stays
    as it is, and no new one is left behind."""

    def write() -> None:
        if file.is_dir():
            raise _Unfit("is a folder")
        if file.exists():
            with file.open("ab"):
                return
        _check_link(file)
        _write_into(file.parent, False)
        file.open("xb").close() if file.parent.is_dir() else _check_name(file)
        file.unlink(missing_ok=True)

    _check(field, file, "a file", write)


class _Unfit(Exception):
    """What a place is instead."""


def _check(field: str, path: Path, what: str, write: Callable[[], None]) -> None:
    try:
        write()
    except _Unfit as error:
        raise _wrong(field, str(path), str(error), what) from error
    except OSError as error:
        raise _wrong(field, str(path), f"cannot be written: {error.strerror or error}", what) from error


def _wrong(field: str, value: str, why: str, what: str) -> StudyError:
    shown = value if len(value) <= 200 else f"{value[:200]}..."
    return StudyError(
        f"{field} = {shown!r}: {why} (allowed: {what} on this machine that this user may write to). Fix: name another"
    )


def _write_into(folder: Path, empty: bool) -> None:
    if folder.is_dir():
        if empty and any(folder.iterdir()):
            raise _Unfit("is there already, with files in it")
    elif folder.exists():
        raise _Unfit("is there already, as a file" if empty else "is a file")
    made: list[Path] = []
    try:
        missing = [folder] if not folder.exists() else []
        while missing and not missing[-1].parent.exists():
            missing.append(missing[-1].parent)
        for one in reversed(missing):
            _check_link(one)
            if one.parent.exists() and not one.parent.is_dir():
                raise _Unfit(f"{one.parent} is a file")
            one.mkdir(exist_ok=True)
            made.append(one)
        with tempfile.TemporaryFile(dir=folder, prefix=".written-"):
            pass
    finally:
        for one in reversed(made):
            with contextlib.suppress(OSError):  # somebody else writes there too
                one.rmdir()


def _check_link(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise _Unfit(f"{path} is a link that leads nowhere")


def _check_name(file: Path) -> None:
    """Of a file in a folder that is not there yet: whether a file system takes its name."""
    if len(os.fsencode(file.name)) > 255:
        raise _Unfit("cannot be written: File name too long")
