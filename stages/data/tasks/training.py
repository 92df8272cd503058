"""Rows for retrieval fine-tuning: the same prompts as the evaluation's, from another random stream, with the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from stages.data.tasks.haystack import Codec, Format
from stages.data.tasks.needles import BINDINGS
from stages.data.tasks.prompts import Namespace, PromptMaker
from stages.data.tasks.registry import task_of
from stages.data.tasks.task import Task
from stages.stage import StageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def training_rows(
    tokenizer: Codec,
    haystack: NDArray[np.int32],
    length: int,
    count: int,
    seed: int,
    *,
    format: Format = "published",
    tasks: Sequence[str] = ("passkey", "bindings"),
    rivals: Sequence[int] = (1, 2, 4),
    loss: Literal["answer", "all"] = "answer",
    first: int = 0,
    field: str = "length",
    namespace: Namespace = "training",
    own_ks: Mapping[str, Sequence[int]] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """``count`` rows of prompt, answer and full stop, each exactly ``length`` tokens.

    Returns (tokens [count, length] int32, loss_mask [count, length] uint8). The mask marks *target* tokens: the answer
    and its full stop, or every token with ``loss="all"``; the end of a row beyond the full stop is haystack, unmasked.
    Row i depends on (seed, first + i) alone, so rows can be made batch by batch. Depths are uniform over [0, 1], tasks
    and their k alternate; ``rivals``: k of the bindings; ``own_ks``: k of tasks by name (default: the task's own).
    ``haystack`` must be training text: the random streams are disjoint from the evaluation's by namespace, the text by
    the split. Raises StageError, naming ``field``, if ``length`` cannot hold the largest k, ValueError for a task that
    there is not.
    """
    import numpy as np

    if not tasks or not rivals:
        raise StageError("no task to train on", field="tasks", value=list(tasks), allowed="names of retrieval tasks")
    # A row ends like an evaluation prompt plus budget, so its prompt has the same length as the evaluation's.
    maker = PromptMaker(tokenizer, haystack, format, seed, namespace)
    trained = [(task, (own_ks or {}).get(task.name) or trained_k(task, rivals)) for task in map(task_of, tasks)]
    for task, ks in trained:
        maker.check(task, length, max(ks), field=field)
    tokens = np.zeros((count, length), np.int32)
    mask = np.full((count, length), loss == "all", np.uint8)
    for row in range(count):
        trial = first + row
        task, ks = trained[trial % len(trained)]
        item = maker.item(task, length, ks[trial // len(trained) % len(ks)], trial)
        answer = [*item.answer_ids, *maker.end_ids]
        start, end = len(item.prompt), len(item.prompt) + len(answer)
        tokens[row, :start] = item.prompt
        if end > length:
            raise StageError("the answer does not fit its budget", field="answer", value=item.expected)
        tokens[row, start:end] = answer
        tokens[row, end:] = haystack[trial % max(1, len(haystack) - length) :][: length - end]
        mask[row, start:end] = 1
    return tokens, mask


def trained_k(task: Task, rivals: Sequence[int]) -> Sequence[int]:
    """The k that a task is trained with: the bindings ``rivals``, others their own."""
    return rivals if task is BINDINGS else task.ks
