"""Tasks whose prompts stand in a file, in the form of RULER's data (JSON Lines: ``input``, ``outputs``,
``answer_prefix``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.data.jsonlines import filled, parsed
from stages.data.pinned import read_unchanged
from stages.data.tasks.config import PromptFile
from stages.data.tasks.haystack import Codec, Haystack, Prompt, Trial
from stages.data.tasks.prompts import Item
from stages.data.tasks.scoring import all_in, any_in, everything
from stages.data.tasks.task import Task
from stages.stage import StageError


@dataclass(frozen=True)
class FilePrompts:
    """All prompts of a file with their outputs, in order, and the task that they are."""

    task: Task
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    budget: int


def prompts_of(name: str, file: PromptFile, option: str = "") -> FilePrompts:
    """Read and checked. Raises StageError, naming the first line that is no prompt, or for other bytes than the pinned
    ones. ``option``: what named the file, where it is no study's."""
    field = option or f"evaluate.retrieval.files.{name}.path"
    content = read_unchanged(Path(file.path), file.pin, field=option or f"evaluate.retrieval.files.{name}.pin")
    rows = []
    for number, line in filled(content.splitlines()):
        try:
            rows.append(_prompt(parsed(line)))
        except (ValueError, KeyError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise StageError(
                f"line {number} is no prompt: {reason}",
                field=field,
                value=file.path,
                allowed="JSON Lines with input, outputs and perhaps answer_prefix",
                fix="mend the line",
            ) from error
    if not rows:
        raise StageError("the file has no prompts", field=field, value=file.path, fix="name another one")
    return FilePrompts(task_of_file(name, file), tuple(rows), file.budget)


def task_of_file(name: str, file: PromptFile) -> Task:
    """The task that the prompts of a file are."""
    return Task(
        name=name,
        sentence="the prompts of a file",
        draw=_drawn_already,
        shortest=lambda haystack, k: 1,
        budget=lambda format: file.budget,
        read=everything,
        score=all_in if file.match == "all" else any_in,
    )


def file_items(
    file: FilePrompts, codec: Codec, around: tuple[Sequence[int], Sequence[int]] = ((), ())
) -> Iterator[Item]:
    """Its prompts as they stand behind what documents begin with, and within ``around`` (a chat template), each as
    long as it is; ``length`` is that of the longest, with the answer. Where an output stands in a prompt, the last one
    that does is its needle; else all of the prompt is."""
    begin, end_of = (*around[0], *codec.begin), around[1]
    prompts = [(*begin, *codec.encode(text), *end_of) for text, _ in file.rows]
    longest = max(map(len, prompts))
    for number, ((text, outputs), tokens) in enumerate(zip(file.rows, prompts, strict=True)):
        answer = tuple(codec.encode(f" {', '.join(outputs)}"))[: file.budget]
        found = [text.rfind(one) + len(one) for one in outputs if one in text]
        end = len(begin) + len(codec.encode(text[: max(found)])) if found else len(tokens)
        end = min(len(tokens), end)
        yield Item(
            task=file.task.name,
            item=f"{file.task.name}/file/{number}",
            length=longest + file.budget,
            budget=file.budget,
            depth=round(end / len(tokens), 6),
            k=1,
            prompt=tokens,
            answers=outputs,
            answer_ids=answer,
            counted=tuple(any(c.isalnum() for c in codec.decode([i])) for i in answer),
            needle_end=end,
            values=outputs,
            asked_rank=len(outputs) - 1,
            source=file.task,
        )


def _prompt(row: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    text, prefix, outputs = row["input"], row.get("answer_prefix", ""), row["outputs"]
    if not isinstance(text, str) or not isinstance(prefix, str) or not text + prefix:
        raise ValueError("input and answer_prefix must be texts")
    if not isinstance(outputs, list) or not outputs or not all(isinstance(one, str) and one for one in outputs):
        raise ValueError("outputs must be a list of at least one text")
    return text + prefix, tuple(outputs)


def _drawn_already(haystack: Haystack, trial: Trial, rng: Any) -> Prompt:
    raise NotImplementedError("prompts of a file are not drawn")
