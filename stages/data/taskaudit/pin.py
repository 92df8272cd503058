"""The files of evaluation tasks, pinned by digest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.data.hubfiles import on_hub
from stages.data.pinned import pin_file
from stages.data.taskaudit.config import TaskSource
from stages.stage import StageError


def pin_sources(sources: tuple[TaskSource, ...], base_dir: Path) -> tuple[TaskSource, ...]:
    """The sources with absolute paths and digests.

    Raises StageError for a missing file, another digest than the pinned one, a missing column, two sources of one name.
    """
    pinned: list[TaskSource] = []
    for number, source in enumerate(sources):
        field = f"task_audit.sources.{number}"
        path, digest = pin_file(source.path, base_dir, source.pin, field=field, kind="JSONL or CSV")
        if source.name in [other.name for other in pinned]:
            raise StageError(
                "two sources have this name", field=f"{field}.name", value=source.name, fix="name each source once"
            )
        if not {"id", "text", "summary"} & set(source.columns()):
            raise StageError(
                "nothing to look for",
                field=field,
                value=source.name,
                allowed="id, text, summary: at least one",
                fix="name the column that holds it",
            )
        from stages.data.taskaudit.file import first_columns

        present = first_columns(Path(path), field)
        for role, column in source.columns().items():
            if column not in present:
                raise StageError(
                    f"{Path(path).name} has no such column",
                    field=f"{field}.{role}",
                    value=column,
                    allowed=", ".join(present) or "the file is empty",
                    fix=f"name the column that holds it, or {role}: null",
                )
        pinned.append(source.model_copy(update={"path": path, "pin": digest}))
    return tuple(pinned)


def task_of_pairs(pairs: Any, known: tuple[TaskSource, ...]) -> tuple[TaskSource, ...]:
    """The pinned pairs of ``summarize:`` (``path``, ``pin``, ``texts``, ``splits``; None for none) as a source, unless
    it is known already.

    Columns the file lacks are left to the summarization to report.
    """
    if pairs is None or pairs.pin in [source.pin for source in known]:
        return ()
    from stages.data.taskaudit.file import first_columns

    path = Path(pairs.path)
    plain = not on_hub(pairs.path) and path.suffix == ".jsonl" and pairs.texts is None and pairs.splits is None
    present = first_columns(path, "summarize.pairs") if plain else []
    if not {"text", "summary"} <= set(present) or {"book_id", "bid"} & set(present):
        where = {"path": pairs.path, "pin": pairs.pin, "texts": pairs.texts, "splits": pairs.splits}
        return (TaskSource(name=_name(known), text="text", summary="summary", layout="pairs", **where),)
    named: dict[str, Any] = {role: role if role in present else None for role in ("id", "title", "text", "summary")}
    source = TaskSource(name=_name(known), path=pairs.path, pin=pairs.pin, **named)
    return (source,) if source.columns() else ()


def _name(known: tuple[TaskSource, ...]) -> str:
    return "summarize" if "summarize" not in [source.name for source in known] else "summarize-pairs"
