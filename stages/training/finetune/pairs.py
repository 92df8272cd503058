"""Texts with summaries as training examples."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from stages.stage import StageError
from stages.training.finetune.config import SummaryPairs
from stages.training.tuning.data import Read, rows_of
from stages.training.tuning.rows import Row

if TYPE_CHECKING:
    from stages.data.tokens.load import StudyTokenizer

FIELD = "finetune.pairs"
_ALLOWED = '{"text": ..., "summary": ...} a line'


def read_pairs(pairs: SummaryPairs, codec: StudyTokenizer) -> Read:
    """An example for each summary: text, cue, summary and the end of the text, the last two of them targets. Raises
    StageError for other bytes than the pinned ones, for a line that is no object, and where no row can be used."""
    cue = codec.encode(pairs.cue)
    read = Read()
    for text, summaries in _rows(pairs, read):
        ids = codec.encode(text)
        for summary in summaries:
            answer = [*codec.encode(f" {summary.strip()}"), codec.eos_id]
            if len(answer) > pairs.summary_tokens:
                read.skip("summary longer than summary_tokens")
                continue
            room = pairs.max_tokens - len(codec.begin) - len(cue) - len(answer)
            if room < 1:
                read.skip("no room for the text")
                continue
            read.cut += len(ids) > room
            read.examples.append((Row.of([([*codec.begin, *ids[:room], *cue], False), (answer, True)]),))
    read.check(f"{FIELD}.path", pairs.path, _ALLOWED)
    return read


@functools.cache  # every arm and seed asks
def fault(pairs: SummaryPairs) -> StageError | None:
    """What ``read_pairs`` would raise whatever the tokenizer."""
    read = Read()
    try:
        if not sum(1 for _ in _rows(pairs, read)):
            read.check(f"{FIELD}.path", pairs.path, _ALLOWED)
    except StageError as error:
        return error
    return None


def _rows(pairs: SummaryPairs, read: Read) -> Iterator[tuple[str, list[str]]]:
    """Text and summaries of each row that has both; the others are counted in ``read``."""
    for read.row, row in enumerate(rows_of(pairs.path, pairs.pin, FIELD), 1):
        text, found = row.get("text"), row.get("summary")
        summaries = [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, str)]
        if (split := row.get("split", "train")) != "train":
            read.skip(f"of the split {split}")
        elif not isinstance(text, str) or not text.strip():
            read.skip("no text")
        elif not any(one.strip() for one in summaries):
            read.skip("no summary")
        else:
            yield text, [one for one in summaries if one.strip()]
