"""Raters' files and the key become one file of results: checked, merged, nothing guessed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError

from stages.data.jsonlines import check_whole
from stages.evidence.human.export import KEY, RATINGS, VERSION
from stages.stage import StageError

RESULTS = "infini-study human results"
CHOICES = ("left", "right", "tie")


def merged(key_file: Path, rating_files: Sequence[Path]) -> dict[str, Any]:
    """The results: every item of the key with what each rater chose.

    Files are of the page or of Label Studio. A rater may come in several files as long as they do not contradict each
    other; what stands in more than one counts once, and is counted (``repeated``). Raises StageError for a file of
    another export, an item or a choice there is not, a contradiction, or where nobody chose anything.
    """
    key = _json(key_file, "KEY")
    if not isinstance(key, dict) or key.get("format") != KEY or key.get("version") != VERSION:
        raise StageError(
            "not a key of this version", field="KEY", value=str(key_file), fix="name key.json of the export"
        )
    items = {item["id"]: item for item in items_of(key, "KEY", str(key_file), "name key.json of the export")}
    answers: dict[str, dict[str, str]] = {}
    repeated: Counter[str] = Counter()
    for file in rating_files:
        content = _json(file, "RATINGS")
        for rater, item, choice, export in _answers(content, file):
            if export != key["export"]:
                raise _fault(file, f"these are ratings of the export {export!r}, the key is of {key['export']!r}")
            if item not in items:
                raise _fault(file, f"the export has no item {item!r}")
            if choice not in CHOICES:
                raise _fault(file, f"item {item}: {choice!r} is no choice (allowed: {', '.join(CHOICES)})")
            own = answers.setdefault(rater, {})
            repeated[rater] += item in own
            if own.setdefault(item, choice) != choice:
                raise _fault(file, f"rater {rater!r} chose {own[item]} for item {item} elsewhere, here {choice}")
    if not any(answers.values()):
        raise StageError("nobody chose anything", field="RATINGS", value=[str(file) for file in rating_files])
    rows = [
        {**item, "answers": {rater: own[name] for rater, own in sorted(answers.items()) if name in own}}
        for name, item in items.items()
    ]
    counts = {rater: len(own) for rater, own in sorted(answers.items())}
    head = {"format": RESULTS, "version": VERSION, "export": key["export"], "study": key["study"]}
    twice = {rater: count for rater, count in sorted(repeated.items()) if count}
    return {**head, "raters": counts, **({"repeated": twice} if twice else {}), "items": rows}


class RatedSide(BaseModel):
    """A summary as the key knows it."""

    system: str
    seed: int
    sha256: str
    measured: dict[str, FiniteFloat]


class Rated(BaseModel):
    """An item of the key, or of the results, where it has answers by rater."""

    id: str
    task: str
    level: str
    doc_id: str
    book: str
    left: RatedSide
    right: RatedSide
    answers: dict[str, Literal["left", "right", "tie"]] = {}


def items_of(value: Mapping[str, Any], field: str, name: str, fix: str) -> list[dict[str, Any]]:
    """The items of a key or of results. Raises StageError for what export or import did not write so."""
    try:
        TypeAdapter(list[Rated]).validate_python(value.get("items"), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("items", *first["loc"])))
        raise StageError(f"{place}: {first['msg']}", field=field, value=name, fix=fix) from error
    if missing := [one for one in ("export", "study") if not isinstance(value.get(one), str)]:
        raise StageError(f"{missing[0]}: it says none", field=field, value=name, fix=fix)
    found: list[dict[str, Any]] = value["items"]
    ids = Counter(item["id"] for item in found)
    if twice := [one for one, count in ids.items() if count > 1]:
        raise StageError(f"items: {twice[0]!r} stands there twice", field=field, value=name, fix=fix)
    return found


def _answers(content: Any, file: Path) -> Iterator[tuple[str, str, str, str]]:
    """(rater, item, choice, export) of a file of either kind."""
    if isinstance(content, list):
        yield from _label_studio(content, file)
        return
    if not isinstance(content, dict) or content.get("format") != RATINGS or content.get("version") != VERSION:
        raise _fault(file, "neither ratings of the page nor an export of Label Studio in JSON")
    rater, answers = content.get("rater"), content.get("answers")
    rater = rater.strip() if isinstance(rater, str) else ""
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
        for annotation in _objects(task.get("annotations"), file):
            if annotation.get("was_cancelled"):
                continue
            by = annotation.get("completed_by", "")
            rater = str((by.get("email") or by.get("id") or "") if isinstance(by, Mapping) else by).strip()
            if not rater:
                raise _fault(file, f"item {data['item']}: its annotation names no rater (completed_by)")
            for result in _objects(annotation.get("result"), file):
                if result.get("from_name") == "choice":
                    value = result.get("value")
                    chosen = value.get("choices") if isinstance(value, dict) else None
                    said = ", ".join(map(str, chosen)) if isinstance(chosen, list) else ""
                    yield rater, str(data["item"]), said, str(data["export"])


def _objects(value: Any, file: Path) -> list[dict[str, Any]]:
    """A list of objects, or nothing."""
    found = [] if value is None else value
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise _fault(file, "not an export of Label Studio in JSON: annotations and results are lists of objects")
    return found


def _json(file: Path, what: str) -> Any:
    try:
        value = json.loads(file.read_text(encoding="utf-8-sig"))
        check_whole(value)
        return value
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"no JSON: {error}"
        raise StageError(f"cannot be read: {reason}", field=what, value=str(file)) from error


def _fault(file: Path, reason: str) -> StageError:
    return StageError(reason, field="RATINGS", value=str(file), fix="leave the file out, or get the right one")
