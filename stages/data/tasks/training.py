"""Rows for retrieval fine-tuning: the same prompts as the evaluation's, from another random stream, with the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from stages.data.tasks.config import Format, Task
from stages.data.tasks.prompts import Codec, PromptMaker
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
    format: Format = "landmark",
    tasks: Sequence[Literal["passkey", "bindings"]] = ("passkey", "bindings"),
    rivals: Sequence[int] = (1, 2, 4),
    loss: Literal["answer", "all"] = "answer",
    first: int = 0,
    field: str = "length",
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """``count`` rows of prompt, answer and full stop, each exactly ``length`` tokens.

    Returns (tokens [count, length] int32, loss_mask [count, length] uint8). The mask marks *target* tokens: the answer
    and its full stop, or every token with ``loss="all"``; the end of a row beyond the full stop is haystack, unmasked.
    Row i depends on (seed, first + i) alone, so rows can be made batch by batch. Depths are uniform over [0, 1], tasks
    and rivals alternate. ``haystack`` must be training text: the random streams are disjoint from the evaluation's by
    namespace, the text by the split. Raises StageError, naming ``field``, if ``length`` cannot hold the largest k.
    """
    import numpy as np

    if not tasks or not rivals:
        raise StageError("no task to train on", field="tasks", value=list(tasks), allowed="passkey, bindings")
    # A row ends like an evaluation prompt plus budget, so its prompt has the same length as the evaluation's.
    maker = PromptMaker(tokenizer, haystack, format, seed, "training")
    for task in tasks:
        k = max(rivals) if task == "bindings" else 1
        maker.check(length, k, field=field, bindings=task == "bindings")
    tokens = np.zeros((count, length), np.int32)
    mask = np.full((count, length), loss == "all", np.uint8)
    for row in range(count):
        trial = first + row
        task_name: Task = tasks[trial % len(tasks)]
        k = rivals[trial // len(tasks) % len(rivals)] if task_name == "bindings" else 1
        item = maker.item(task_name, length, k, trial)
        answer = [*item.answer_ids, *maker.end_ids]
        start, end = len(item.prompt), len(item.prompt) + len(answer)
        tokens[row, :start] = item.prompt
        if end > length:
            raise StageError("the answer does not fit its budget", field="answer", value=item.expected)
        tokens[row, start:end] = answer
        tokens[row, end:] = haystack[trial % max(1, len(haystack) - length) :][: length - end]
        mask[row, start:end] = 1
    return tokens, mask
