"""Texts with summaries as training examples."""

from __future__ import annotations

import functools
from collections.abc import Container, Iterator
from typing import TYPE_CHECKING

from stages.data import summaries
from stages.data.pinned import unchanged
from stages.stage import StageError
from stages.training.finetune.config import SummaryPairs
from stages.training.tuning.data import LEFT_OUT, Read
from stages.training.tuning.rows import Row

if TYPE_CHECKING:
    from stages.data.tokens.load import StudyTokenizer

FIELD = "finetune.pairs"
_ALLOWED = "text and summary in a row, as stages/data/summaries.py reads them"


def read_pairs(pairs: SummaryPairs, codec: StudyTokenizer, left_out: Container[int] = ()) -> Read:
    """An example for each summary: text, cue, summary and the end of the text, the last two of them targets.
    ``left_out``: numbers of the rows that the audit found text of what is asked in. Raises StageError for other bytes
    than the pinned ones, for a line that is no object, and where no row can be used."""
    cue = codec.encode(pairs.cue)
    read = Read()
    for text, summary in _rows(pairs, read, left_out):
        ids = codec.encode(text)
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
        if not sum(1 for _ in _rows(pairs, read, ())):
            read.check(f"{FIELD}.path", pairs.path, _ALLOWED)
    except StageError as error:
        return error
    return None


def _rows(pairs: SummaryPairs, read: Read, left_out: Container[int]) -> Iterator[tuple[str, str]]:
    """Text and summary of each row that has both; the others are counted in ``read``."""
    path = summaries.located(pairs.path, f"{FIELD}.path")
    if not path.exists():
        raise StageError("no such file on this node", field=f"{FIELD}.path", value=pairs.path, fix="put it there")
    unchanged(summaries.digest(path, pairs.root, FIELD), pairs.pin, field=f"{FIELD}.pin")
    for read.row, _, row in summaries.rows(path, FIELD):
        if (split := summaries.split_of(row) or "train") not in pairs.splits:
            read.skip(f"of the split {split}")
        elif read.row in left_out:
            read.skip(LEFT_OUT)
        elif not (pair := summaries.pair_of(read.row, row, pairs.root, FIELD)).text.strip():
            read.skip("no text")
        elif not pair.summary.strip():
            read.skip("no summary")
        else:
            yield pair.text, pair.summary
