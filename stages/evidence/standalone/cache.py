"""What was answered so far, a line each, so that an evaluation goes on where it stopped, and with more samples too."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stages.stage import StageError

IDENTITY, ROWS = "asked.json", "answers.jsonl"
TEXT = "text"
"""Begins the names of scored texts, and is the split that their rows are of."""

_OF_TEXT = dict.fromkeys(("bucket_start", "bucket_end", "tokens", "words", "bytes"), int) | {"nll_sum": float}


class Answers:
    """Rows by item in ``folder``, of the evaluation that ``identity`` describes."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Raises StageError for a folder that holds another evaluation, or other files."""
        said = folder / IDENTITY
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not said.is_file())):
            raise _refused(folder, "it holds other files")
        if said.is_file():
            try:
                before = json.loads(said.read_text(encoding="utf-8"))
                before = before if isinstance(before, dict) else {}
            except (ValueError, RecursionError):
                before = {}
            changed = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
            if changed:
                name = changed[0]
                raise _refused(
                    folder, f"it holds an evaluation of another {name} ({before.get(name)}, now {identity.get(name)})"
                )
        folder.mkdir(parents=True, exist_ok=True)
        said.write_text(json.dumps(dict(identity), indent=1) + "\n", encoding="utf-8")
        self.file = folder / ROWS
        self.rows: dict[str, Any] = dict(self._read())

    def add(self, rows: Iterable[tuple[str, Any]]) -> None:
        """Keep them at once: what is added survives a crash."""
        made = list(rows)
        self.rows.update(made)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps([item, row]) + "\n" for item, row in made))

    def _read(self) -> Iterable[tuple[str, Any]]:
        """Whole lines; a last one that a crash cut short is taken away."""
        if not self.file.is_file():
            return
        content = self.file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            self.file.write_bytes(whole)
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                item, row = json.loads(line)
                _check(item, row)
            except (ValueError, TypeError, LookupError, RecursionError) as error:
                raise StageError(
                    f"line {number} is damaged",
                    field="--out",
                    value=str(self.file),
                    fix="delete the line: what it answers is asked again",
                ) from error
            yield item, row


def _check(item: Any, row: Any) -> None:
    """Raises ValueError, TypeError or LookupError for what ``add`` was never given."""
    if not isinstance(item, str):
        whole = False
    elif item.startswith(f"{TEXT}/"):
        whole = all(type(part[name]) is kind for part in row for name, kind in _OF_TEXT.items())
    else:
        said, nats = row
        whole = isinstance(said, str) and isinstance(nats, float)
    if not whole:
        raise ValueError(item)


def _refused(folder: Path, reason: str) -> StageError:
    return StageError(
        reason,
        field="--out",
        value=str(folder),
        allowed="a new or empty folder, or that of the same evaluation",
        fix="choose another",
    )
