"""Recall of item i after j segments: needles written side by side where a prompt begins, one of them asked later.

Prompts of the trained model's own kind: with one item the passkey, with several the bindings, all in front, in held-out
text. What an item costs that others were written after it, and what it costs that segments were read since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.decoder import Decoder
from stages.data.tasks import later
from stages.data.tasks.haystack import Format
from stages.data.tasks.prompts import Item, PromptMaker
from stages.evidence.ablate.config import RecallConfig
from stages.evidence.evaluate import retrieval

if TYPE_CHECKING:
    from stages.data.tokens.load import StudyTokenizer

RECALL = pa.schema(
    [
        ("item", pa.string()),
        ("items", pa.int64()),
        ("asked", pa.int64()),
        ("segments", pa.int64()),
        ("expected", pa.string()),
        ("answer", pa.string()),
        ("correct", pa.int8()),
        ("in_set", pa.int8()),
        ("answer_nll", pa.float64()),
        ("distance", pa.int64()),
    ]
)


def items_of(
    config: RecallConfig,
    tokenizer: StudyTokenizer,
    haystack: NDArray[np.int32],
    format: Format,
    segment: int,
    seed: int,
) -> list[Item]:
    """Every prompt, in the order of items, segments and the asked one; each ends with the last token of a segment.
    Raises StageError where one does not fit."""
    task = later.task_of(segment)
    maker = PromptMaker(tokenizer, haystack, format, seed, "evaluation")
    later.check(maker, config.items, config.segments, segment, field="ablate.probes.recall.segments")
    found = []
    for k in config.items:
        for count in config.segments:
            length = later.length_of(maker, task, k, count, segment)
            maker.check(task, length, k, field="ablate.probes.recall.segments")
            for asked in range(k):
                for trial in range(config.trials):
                    item = maker.item(task, length, k, trial, text=trial, needle=asked)
                    found.append(replace(item, item=f"{item.item}/{asked}/{count}", source=task))
    return found


def score(
    decoder: Decoder, tokenizer: StudyTokenizer, items: Sequence[Item], progress: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Rows of recall.parquet."""
    segment = decoder.config.mixer.segment_length
    rows = []
    for item, row in zip(items, retrieval.score(decoder, tokenizer, list(items), progress), strict=True):
        rows.append(
            {
                "item": item.item,
                "items": item.k,
                "asked": item.asked_rank,
                "segments": item.segments(segment),
                **{name: row[name] for name in RECALL.names[4:]},
            }
        )
    return rows
