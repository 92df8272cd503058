"""The training documents by number: what the driver holds of each in memory, and what it maps from files.

In memory are two orders and a rank, the rule that drops a document and the document that stands for it: 17 bytes a
document. Ids, sizes and the like are columns of Arrow files, mapped where the work folder is on this machine, else
fetched and mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cluster import storage
from stages.data.corpus.ids import sorted_by
from stages.data.dedup.signatures import DOCUMENTS, DOCUMENTS_FILE, FILTERED, FILTERED_FILE, SignedParts
from stages.data.matching.shards import release_memory
from stages.data.saved import mapped

NO_YEAR = 2**31 - 1
KEPT, LENGTH, LANGUAGE, COPY, WORDS, EDITION, CONTAINED = range(7)
RULES = ("", "length", "language", "exact copy", "same words", "edition", "contained")
NOBODY = -1


class Corpus:
    """N training documents. ``by_id`` [N]: numbers in order of the ids; ``order`` [N]: by preference, ``rank`` [N] its
    inverse; ``rule`` [N]: of ``RULES``, why a document is dropped, ``other`` [N]: the document that stood for it then,
    else ``NOBODY``."""

    def __init__(self, runs: Sequence[SignedParts], spill: Path) -> None:
        self.runs, self.spill = tuple(runs), spill
        self.table = tables([run.url for run in runs], DOCUMENTS_FILE, DOCUMENTS, spill)
        self.size = self.table.num_rows
        self.by_id = sorted_by(self.table["doc_id"])
        self.order = preference(self.table, self.by_id)
        self.rank = inverse(self.order)
        release_memory()
        self.rule = np.zeros(self.size, np.uint8)
        self.other = np.full(self.size, NOBODY, np.int32)
        self.filtered = tables([run.url for run in runs if run.filtered], FILTERED_FILE, FILTERED, spill)
        starts = np.repeat([run.first for run in runs], [run.filtered for run in runs]).astype(np.int64)
        self.filtered_numbers = starts + self.filtered["row"].to_numpy()
        for rule in (LENGTH, LANGUAGE):
            self.rule[self.filtered_numbers[pc.equal(self.filtered["rule"], RULES[rule]).to_numpy()]] = rule

    def column(self, name: str) -> NDArray[np.int64]:
        """A column of numbers of all documents, [N]."""
        return np.asarray(self.table[name].to_numpy())

    def kept_ranks(self, *unless: NDArray[np.bool_]) -> NDArray[np.int32]:
        """[N] the rank of each document, -1 for those dropped so far and those of any of ``unless``."""
        ranks = np.where(self.rule == KEPT, self.rank, np.int32(-1))
        for out in unless:
            ranks[out] = -1
        return ranks

    def drop(self, documents: NDArray[Any], rule: int, others: NDArray[Any]) -> None:
        """``documents`` go, by ``rule``, in favour of ``others``."""
        self.rule[documents] = rule
        self.other[documents] = others

    def kept_for(self, documents: NDArray[Any]) -> NDArray[np.int64]:
        """The documents of the output that stand for ``documents``: themselves, or where their removals lead;
        ``NOBODY`` if a filter took it."""
        at = np.array(documents, np.int64)
        while True:
            moving = (at != NOBODY) & (self.rule[at] != KEPT)
            if not moving.any():
                return at
            at[moving] = self.other[at[moving]]


def preference(table: pa.Table, by_id: NDArray[Any]) -> NDArray[np.int32]:
    """Document numbers, the one to be kept first: most distinct n-grams, earliest year (none is last), smallest id.
    ``by_id``: the numbers in order of the ids."""
    fewest, years = table["distinct"].to_numpy()[by_id], pc.fill_null(table["year"], NO_YEAR).to_numpy()[by_id]
    np.negative(fewest, out=fewest)
    return np.asarray(by_id[np.lexsort((years, fewest))], np.int32)


def inverse(order: NDArray[Any]) -> NDArray[np.int32]:
    """The place of every number in ``order``."""
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return rank


def tables(urls: Sequence[str], name: str, schema: pa.Schema, spill: Path) -> pa.Table:
    """The Arrow file ``name`` of all the folders ``urls`` as one table, mapped."""
    return pa.concat_tables([schema.empty_table(), *(mapped(storage.join(url, name), spill) for url in urls)])
