"""Everything an audit found, read from the files of its shards when asked: of the corpus only numbers are in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.data.corpus.documents import rows_at
from stages.data.decontaminate.canary import Planted
from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.decide import SEVERITY, Action, Coverage, Decision, Left, decide_document, without_notes
from stages.data.matching.index import Index, hidden
from stages.data.matching.shards import ScannedDocument, ShardScan

COPY_OF = "exact copy of "
ROWS = 2**16  # of documents compared with one another at a time


@dataclass(frozen=True)
class JudgedDocument:
    """One training document: what was found in it and what happened to it."""

    scanned: ScannedDocument
    decision: Decision
    copy_of: str | None  # an earlier document with the very same text
    bytes_out: int

    @property
    def doc_id(self) -> str:
        return self.scanned.doc_id

    @property
    def bytes(self) -> int:
        return self.scanned.bytes

    @property
    def words(self) -> int:
        return self.scanned.words

    @property
    def action(self) -> Action:
        """What happened to it; an exact copy of another training document is dropped."""
        return "drop" if self.copy_of is not None else self.decision.action

    @property
    def reason(self) -> str:
        """Why, "" for a document that was kept."""
        if self.copy_of is None:
            return self.decision.reason
        return COPY_OF + self.copy_of + (f"; {self.decision.reason}" if self.decision.reason else "")


@dataclass
class ShardState:
    """What is known of one shard in memory: its scan's summary, its spans and its documents' sizes.

    ``sizes``: bytes of each training document now, -1 once it is left out. ``copies``: numbers of the exact copies,
    ascending; ``originals``: for each the place in ``Audit.originals`` of the document it is a copy of.
    """

    scan: ShardScan
    sizes: NDArray[np.int64]
    copies: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    originals: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @cached_property
    def found(self) -> list[ScannedDocument]:
        """The documents with spans, in order: the numbers of all spans, read once, without the texts."""
        return list(self.scan.found())


@dataclass
class Audit:
    """The findings as the tables need them. ``before``, ``after``: evaluation document -> share of its words found."""

    index: Index
    books: list[dict[str, Any]]  # rows of the evaluation documents, without their texts
    rule: DecontaminateConfig
    shards: list[ShardState]
    originals: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))  # ids of documents with exact copies
    over: dict[int, float] = field(default_factory=dict)
    again: dict[str, tuple[Action, str]] = field(default_factory=dict)  # doc_id -> found again after cutting
    before: dict[int, float] = field(default_factory=dict)
    after: dict[int, float] | None = field(default_factory=dict)  # None: nothing was cleaned, nor scanned again
    removed_books: set[int] = field(default_factory=set)
    recalls: list[Planted] = field(default_factory=list)
    quotations: Planted = field(default_factory=lambda: Planted("quotation", 0, 0, 0))
    rounds: int = 0
    rescan: dict[str, float] | None = None  # the last scan of the output, where training documents were cleaned

    @cached_property
    def hidden(self) -> dict[int, str]:
        """Evaluation documents that cannot be found, whatever the training text holds -> why."""
        return hidden(self.index, self.rule.min_span_words)

    def cannot_be_found(self) -> list[dict[str, Any]]:
        """The same by name."""
        return [
            {"book_id": self.index.book_ids[book], "words": self.index.words_in(book), "reason": reason}
            for book, reason in self.hidden.items()
        ]

    def found(self) -> Iterator[JudgedDocument]:
        """The training documents that share a verified span with an evaluation document, in order of the corpus."""
        for state in self.shards:
            for scanned in state.found:
                yield self._document(state, scanned)

    def judge(self) -> None:
        """Set ``before`` and ``over`` from the spans of the whole corpus."""
        before, left = Coverage(), Left()
        for state in self.shards:
            for scanned in state.found:
                decision = decide_document(scanned.scanned, self.index.book_words, self.rule)
                before.add_all(decision)
                left.add(decision)
        self.before = before.shares(self.index.book_words)
        self.over = left.above(self.rule.coverage_limit, self.index.book_words)

    def counts(self) -> Counter[str]:
        """Documents by action, ``documents_in``, ``exact_copies``, ``bytes_in``, ``bytes_out``."""
        total: Counter[str] = Counter()
        for state in self.shards:
            copies = set(state.copies.tolist())
            for document in (self._document(state, scanned) for scanned in state.found):
                total[document.action] += 1
                copies.discard(document.scanned.row)
            total["drop"] += len(copies)
            total["keep"] += state.scan.documents_in - state.scan.documents_with_spans - len(copies)
            total["exact_copies"] += len(state.copies)
            total["documents_in"] += state.scan.documents_in
            total["bytes_in"] += state.scan.bytes
            total["bytes_out"] += int(np.maximum(state.sizes, 0).sum())
        return total

    def _document(self, state: ShardState, scanned: ScannedDocument) -> JudgedDocument:
        decision = Decision()
        if scanned.spans:
            decision = decide_document(scanned.scanned, self.index.book_words, self.rule)
            decision = without_notes(decision, self.over)
        if found := self.again.get(scanned.doc_id):
            action, reason = found
            if SEVERITY[action] > SEVERITY[decision.action]:
                because = f"{decision.reason}; after cutting: {reason}" if decision.reason else reason
                decision = replace(decision, action=action, reason=because)
        size = int(state.sizes[scanned.row])
        return JudgedDocument(scanned, decision, self._copy_of(state, scanned.row), max(0, size))

    def _copy_of(self, state: ShardState, row: int) -> str | None:
        at = int(np.searchsorted(state.copies, row))
        if at == len(state.copies) or state.copies[at] != row:
            return None
        return str(self.originals[int(state.originals[at])].as_py())


def shard_states(scans: Sequence[ShardScan]) -> tuple[list[ShardState], pa.Array]:
    """(every shard before cleaning, its exact copies known; ``Audit.originals``): of several documents with the same
    text the first stays. Beside the sizes 24 bytes a document are in memory, most of them for a while."""
    starts = np.cumsum([0, *(scan.documents_in for scan in scans)])
    numbers, originals = _copies(scans, starts)
    distinct, place = np.unique(originals, return_inverse=True)
    names = [pa.array([], pa.string())]
    for scan, start, mine in _by_shard(scans, starts, distinct):
        names.append(rows_at(scan.table()["doc_id"], distinct[mine] - start))
    states = []
    for scan, start, mine in _by_shard(scans, starts, numbers):
        sizes = np.array(scan.table()["bytes"].to_numpy())
        states.append(ShardState(scan, sizes, numbers[mine] - start, place[mine]))
    return states, pa.concat_arrays(names)


def _copies(scans: Sequence[ShardScan], starts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(numbers in the corpus of documents with the text of an earlier one, ascending; numbers of the first of each).
    Texts are the same where half of their digests is: first the first quarters are compared, then the second ones of
    those that agree."""
    quarter = np.concatenate([np.empty(0, np.uint64), *(_quarter(scan, 0) for scan in scans)])
    order = np.argsort(quarter, kind="stable")
    agree = np.zeros(len(order) + 1, bool)
    for at in range(0, len(order), ROWS):  # a block at a time: no sorted copy
        some = quarter[order[at : at + ROWS + 1]]
        agree[at + 1 : at + len(some)] = some[1:] == some[:-1]
    several = np.sort(order[agree[:-1] | agree[1:]])
    first = quarter[several]
    del order, agree, quarter
    second = np.empty(len(several), np.uint64)
    for scan, start, mine in _by_shard(scans, starts, several):
        if mine.start < mine.stop:
            second[mine] = _quarter(scan, 1)[several[mine] - start]
    by_text = np.lexsort((second, first))  # stable: copies stay in order
    first, second, several = first[by_text], second[by_text], several[by_text]
    new = np.ones(len(several), bool)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    original = several[np.maximum.accumulate(np.where(new, np.arange(len(several)), 0))]
    numbers = np.argsort(several[~new])
    return several[~new][numbers], original[~new][numbers]


def _quarter(scan: ShardScan, which: int) -> NDArray[np.uint64]:
    """Eight bytes of the sha256 of each text of a shard."""
    digits = "".join(scan.table()["sha256"].to_pylist())
    return np.frombuffer(bytes.fromhex(digits), ">u8").reshape(-1, 4)[:, which].astype(np.uint64)


def _by_shard(
    scans: Sequence[ShardScan], starts: NDArray[np.int64], numbers: NDArray[np.int64]
) -> Iterator[tuple[ShardScan, int, slice]]:
    """(scan, number of its first document, which of the ascending ``numbers`` are of it)."""
    edges = np.searchsorted(numbers, starts)
    for at, scan in enumerate(scans):
        yield scan, int(starts[at]), slice(int(edges[at]), int(edges[at + 1]))
