"""Texts with summaries as training examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.training.finetune.config import SummaryPairs
from stages.training.tuning.data import Read, rows_of
from stages.training.tuning.rows import Row

if TYPE_CHECKING:
    from stages.data.tokens.load import StudyTokenizer

FIELD = "finetune.pairs"


def read_pairs(pairs: SummaryPairs, codec: StudyTokenizer) -> Read:
    """An example for each summary: text, cue, summary and the end of the text, the last two of them targets. Raises
    StageError for other bytes than the pinned ones, for a line that is no object, and where no row can be used."""
    cue = codec.encode(pairs.cue)
    read = Read()
    for row in rows_of(pairs.path, pairs.pin, FIELD):
        if (split := row.get("split", "train")) != "train":
            read.skip(f"of the split {split}")
            continue
        text, found = row.get("text"), row.get("summary")
        summaries = [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, str)]
        if not isinstance(text, str) or not text.strip():
            read.skip("no text")
            continue
        if not any(one.strip() for one in summaries):
            read.skip("no summary")
            continue
        ids = codec.encode(text)
        for summary in filter(str.strip, summaries):
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
    read.check(f"{FIELD}.path", pairs.path, '{"text": ..., "summary": ...} a line')
    return read
