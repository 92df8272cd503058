"""Prompts that users bring (``evaluate.retrieval.files``), looked for in rows that models are tuned on.

A prompt is found by what answers it, not by the text around: by any run of as many words as a short evaluation document
needs (8) that holds one of its outputs where it first or last stands in the prompt, word for word. So a needle counts
in whatever text it lies, and another needle in the same text does not. Where no output stands in a prompt, runs of its
last words and the outputs behind them are looked for. Runs that stand in several prompts of a file are its template,
and no evidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.data.matching.config import MatchingConfig
from stages.data.matching.index import ngrams
from stages.data.matching.normalize import words
from stages.data.tasks.config import PromptFile
from stages.data.tasks.files import prompts_of

TAIL = 64  # last words of a prompt in which no output stands
FOUND = pa.schema([("row", pa.int64()), ("item", pa.string()), ("words", pa.string())])
"""Of ``prompts.parquet``: number of the row, the prompt's ``item`` as in ``tasks.parquet``, what stands in both."""

Hashes = NDArray[np.uint64]


class AskedPrompts(NamedTuple):
    """Runs of ``run`` words: sorted ``hashes`` [n], of each the prompt ``owner`` [n] in ``items``. ``unseen``: prompts
    that have no run of their own."""

    run: int
    hashes: Hashes
    owner: NDArray[np.int64]
    items: list[str]
    unseen: list[str]

    @classmethod
    def of(cls, files: Mapping[str, PromptFile], rule: MatchingConfig) -> AskedPrompts:
        """Raises StageError as ``prompts_of`` does."""
        run, items, unseen = rule.item_words, list[str](), list[str]()
        hashes, owner = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for name, file in files.items():
            prompts = prompts_of(name, file).rows
            near = [_around_outputs(text, outputs, run) for text, outputs in prompts]
            last = [_behind(text, outputs, run) for text, outputs in prompts]
            own = zip(_own(near, rule), _own(last, rule), strict=True)
            for number, (of_outputs, of_end) in enumerate(own):
                item = f"{name}/file/{number}"
                if not len(chosen := of_outputs if len(of_outputs) else of_end):
                    unseen.append(item)
                    continue
                hashes.append(chosen)
                owner.append(np.full(len(chosen), len(items), np.int64))
                items.append(item)
        every, whose = np.concatenate(hashes), np.concatenate(owner)
        order = np.argsort(every, kind="stable")
        return cls(run, every[order], whose[order], items, unseen)

    def within(self, text: bytes) -> Iterator[tuple[str, str]]:
        """(item, the first words it has in common) of each prompt that UTF-8 ``text`` answers."""
        if not len(self.hashes):
            return
        read = words(text)
        runs = ngrams(read.hashes, self.run)
        first = np.searchsorted(self.hashes, runs)
        behind = np.searchsorted(self.hashes, runs, side="right")
        seen = set[int]()
        for at in np.flatnonzero(behind > first).tolist():
            for prompt in self.owner[first[at] : behind[at]].tolist():
                if prompt not in seen:
                    seen.add(prompt)
                    start, end = int(read.starts[at]), int(read.ends[at + self.run - 1])
                    yield self.items[prompt], text[start:end].decode()


def _around_outputs(text: str, outputs: Sequence[str], run: int) -> Hashes:
    """Every run of words that holds the first or the last stand of an output; of a longer output those inside it."""
    data = text.encode()
    read = words(data)
    runs, chosen = ngrams(read.hashes, run), set[int]()
    for output in (one.encode() for one in outputs):
        for at in {data.find(output), data.rfind(output)} - {-1}:
            first = int(np.searchsorted(read.ends, at, side="right"))
            behind = int(np.searchsorted(read.starts, at + len(output)))
            low, high = sorted((first, behind - run))
            chosen.update(range(max(low, 0), min(high, len(runs) - 1) + 1) if behind > first else ())
    return np.unique(runs[sorted(chosen)])


def _behind(text: str, outputs: Sequence[str], run: int) -> Hashes:
    """Every run of the last words and the outputs behind them."""
    said = words(", ".join(outputs).encode()).hashes
    return np.unique(ngrams(np.concatenate([words(text.encode()).hashes[-TAIL:], said]), run))


def _own(found: Sequence[Hashes], rule: MatchingConfig) -> list[Hashes]:
    """Without those of more prompts than may share an n-gram."""
    each, count = np.unique(np.concatenate(found), return_counts=True)
    common = each[count > rule.max_books_per_ngram]
    return [runs[~np.isin(runs, common)] for runs in found]
