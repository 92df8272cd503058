"""Inputs from outside a study: a file, a folder, a listing, each known by a digest (``pin``) instead of by where it
lies. The plan computes the digest; a study file may state it, and then anything else is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.stage import StageError

Pin = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


def digest_of(content: bytes) -> str:
    """``sha256:`` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def agreed(found: str, pin: str | None, *, field: str, what: str = "the file", required: bool = False) -> str:
    """``found``, the digest of what is there. Raises StageError, naming ``field``, unless it is the pinned one or
    none is pinned. ``required``: the study file cannot do without."""
    if pin not in (None, found):
        digest = "the new digest" if required else "the new digest (or none)"
        raise StageError(
            f"{what} is not the pinned one; it now has the digest {found}",
            field=field,
            value=pin,
            fix=f"restore it, or accept it by writing {digest} into the study file",
        )
    return found


def unchanged(found: str, pin: str | None, *, field: str, what: str = "the file") -> None:
    """The same when a step runs: the plan that pinned it may be older than what is there."""
    if pin not in (None, found):
        raise StageError(
            f"{what} changed after the plan was made; it now has the digest {found}",
            field=field,
            value=pin,
            fix="restore it, or run again, so that the plan sees the change",
        )


def read_unchanged(path: Path, pin: str | None, *, field: str) -> bytes:
    """The bytes of a pinned file when a step runs. Raises StageError as ``unchanged``, and where there is no file."""
    if not path.is_file():
        raise StageError("no such file on this node", field=field, value=str(path), fix="put it there, or plan again")
    content = path.read_bytes()
    unchanged(digest_of(content), pin, field=field)
    return content


def pin_file(said: str, base_dir: Path, pin: str | None, *, field: str, kind: str) -> tuple[str, str]:
    """Absolute path and digest of the local file that ``said`` names, from ``base_dir``. ``kind`` of file: for the fix.
    Raises StageError at ``field``.path where there is none, at ``field``.pin where it is another one."""
    path = base_dir / said
    if not path.is_file():
        raise StageError("no such file", field=f"{field}.path", value=said, fix=f"put a {kind} file at {path}")
    return str(path), agreed(digest_of(path.read_bytes()), pin, field=f"{field}.pin")


def pin_folder(said: str, base_dir: Path, pin: str | None, *, field: str, kind: str) -> tuple[str, str]:
    """The same of a local folder: the digest is over the names and digests of all its files, hidden ones left out."""
    path = (base_dir / said).absolute()
    if not path.is_dir():
        raise StageError("no such folder", field=f"{field}.path", value=said, fix=f"put a {kind} folder at {path}")
    return str(path), agreed(folder_digest(path), pin, field=f"{field}.pin", what="the folder")


def folder_digest(path: Path) -> str:
    """sha256 over the names and digests of the files below ``path``."""
    lines = []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_file() and not any(part.startswith(".") for part in name.split("/")):
            with file.open("rb") as content:
                lines.append(f"{name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n")
    return digest_of("".join(lines).encode())
