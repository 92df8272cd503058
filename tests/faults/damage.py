"""Damage to files that were written: what a failing disk, a cut-off copy or a careless hand leaves."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path


def flip(path: Path) -> None:
    """One bit in the middle of the file is another."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    """The second half is gone."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path: Path) -> None:
    """The file is gone."""
    path.unlink()


DAMAGES: Mapping[str, Callable[[Path], None]] = {"flipped": flip, "truncated": truncate, "missing": remove}


def damage_something(root: Path, rng: random.Random) -> str | None:
    """Damage a random file of a resume point or of an attempt that was not committed below ``root``; what was done,
    None where there is no such file. Committed files are spared: their damage is an error that a person mends."""
    candidates = [path for path in sorted(root.glob("*/*/work/**/*")) if path.is_file()]
    for folder in sorted(root.glob("*/*/attempts")):
        if not (folder.parent / "COMMIT.json").exists():
            candidates += [path for path in sorted(folder.rglob("*")) if path.is_file()]
    candidates = [path for path in candidates if path.stat().st_size]
    if not candidates:
        return None
    kind = rng.choice(sorted(DAMAGES))
    DAMAGES[kind](rng.choice(candidates))
    return kind
