"""Raters' files and the key become one file of results: checked, merged, nothing guessed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.evidence.human.export import KEY, RATINGS, VERSION
from stages.stage import StageError

RESULTS = "infini-study human results"
CHOICES = ("left", "right", "tie")


def merged(key_file: Path, rating_files: Sequence[Path]) -> dict[str, Any]:
    """The results: every item of the key with what each rater chose.

    Files are of the page or of Label Studio. A rater may come in several files as long as they do not contradict each
    other. Raises StageError for a file of another export, an item or a choice there is not, a contradiction, or where
    nobody chose anything.
    """
    key = _json(key_file, "key")
    if not isinstance(key, dict) or key.get("format") != KEY or key.get("version") != VERSION:
        raise StageError(
            "not a key of this version", field="KEY", value=str(key_file), fix="name key.json of the export"
        )
    items = {item["id"]: item for item in key["items"]}
    answers: dict[str, dict[str, str]] = {}
    for file in rating_files:
        content = _json(file, "ratings")
        for rater, item, choice, export in _answers(content, file):
            if export != key["export"]:
                raise _fault(file, f"these are ratings of the export {export!r}, the key is of {key['export']!r}")
            if item not in items:
                raise _fault(file, f"the export has no item {item!r}")
            if choice not in CHOICES:
                raise _fault(file, f"item {item}: {choice!r} is no choice (allowed: {', '.join(CHOICES)})")
            if answers.setdefault(rater, {}).setdefault(item, choice) != choice:
                raise _fault(
                    file, f"rater {rater!r} chose {answers[rater][item]} for item {item} elsewhere, here {choice}"
                )
    if not any(answers.values()):
        raise StageError("nobody chose anything", field="RATINGS", value=[str(file) for file in rating_files])
    rows = [
        {**item, "answers": {rater: own[name] for rater, own in sorted(answers.items()) if name in own}}
        for name, item in items.items()
    ]
    counts = {rater: len(own) for rater, own in sorted(answers.items())}
    head = {"format": RESULTS, "version": VERSION, "export": key["export"], "study": key["study"]}
    return {**head, "raters": counts, "items": rows}


def _answers(content: Any, file: Path) -> Iterator[tuple[str, str, str, str]]:
    """(rater, item, choice, export) of a file of either kind."""
    if isinstance(content, list):
        yield from _label_studio(content, file)
        return
    if not isinstance(content, dict) or content.get("format") != RATINGS or content.get("version") != VERSION:
        raise _fault(file, "neither ratings of the page nor an export of Label Studio in JSON")
    rater, answers = str(content.get("rater", "")).strip(), content.get("answers")
    if not rater or not isinstance(answers, dict):
        raise _fault(file, "it names no rater or holds no answers")
    for item, answer in answers.items():
        choice = answer.get("choice") if isinstance(answer, dict) else answer
        yield rater, str(item), str(choice), str(content.get("export"))


def _label_studio(tasks: list[Any], file: Path) -> Iterator[tuple[str, str, str, str]]:
    for task in tasks:
        data = task.get("data") if isinstance(task, dict) else None
        if not isinstance(data, dict) or "item" not in data or "export" not in data:
            raise _fault(file, "a task lacks the fields item and export: not of this kit, or not exported as JSON")
        for annotation in task.get("annotations") or ():
            if annotation.get("was_cancelled"):
                continue
            by = annotation.get("completed_by", "")
            rater = str(by.get("email") or by.get("id") if isinstance(by, Mapping) else by)
            for result in annotation.get("result") or ():
                if result.get("from_name") == "choice":
                    chosen = (result.get("value") or {}).get("choices") or [""]
                    yield rater, str(data["item"]), str(chosen[0]), str(data["export"])


def _json(file: Path, what: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "no JSON"
        raise StageError(f"cannot be read: {reason}", field=what, value=str(file)) from error


def _fault(file: Path, reason: str) -> StageError:
    return StageError(reason, field="RATINGS", value=str(file), fix="leave the file out, or get the right one")
