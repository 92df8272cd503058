"""The text that is scored and that needles are hidden in: files, or the manual that comes with Python."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path

from stages.data.corpus.manuals import TOPICS, manual_pages
from stages.stage import StageError

Texts = list[tuple[str, str]]
"""(id, text) of each document."""


def read_texts(said: Sequence[Path]) -> Texts:
    """One document a file; of a folder its *.txt files. Raises StageError naming the first that cannot be read, is
    empty, or has the name of another."""
    files: list[Path] = []
    for path in said:
        found = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
        if not found:
            raise _fault(path, "the folder has no *.txt")
        files += found
    texts: Texts = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise _fault(file, "it is not UTF-8 text") from error
        except OSError as error:
            raise _fault(file, error.strerror or "it cannot be read") from error
        if not text.strip():
            raise _fault(file, "it is empty")
        texts.append((file.name, text))
    names = [name for name, _ in texts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise StageError(
            "two files have this name, by which documents are known", field="--text", value=twice, fix="rename one"
        )
    return texts


def python_manual() -> Texts:
    """The topics of Python's own manual, which is on every machine that has Python; its text is another in another
    version of Python."""
    file = Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py"
    if not file.is_file():
        raise StageError("this Python has no manual to hide needles in", field="--text", value="", fix="give --text")
    return list(manual_pages(TOPICS, file.read_text(encoding="utf-8")))


def _fault(path: Path, reason: str) -> StageError:
    return StageError(
        reason, field="--text", value=str(path), allowed="UTF-8 text files, or folders with *.txt", fix="name another"
    )
