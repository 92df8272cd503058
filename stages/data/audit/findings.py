"""Everything an audit found, read from the files of its shards when asked: of the corpus only numbers are in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.data.decontaminate.canary import Planted
from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.decide import SEVERITY, Action, Coverage, Decision, Left, decide_document, without_notes
from stages.data.matching.index import Index, hidden
from stages.data.matching.shards import ScannedDocument, ShardScan


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
        return f"exact copy of {self.copy_of}" + (f"; {self.decision.reason}" if self.decision.reason else "")


@dataclass
class ShardState:
    """What is known of one shard in memory: its scan's summary, its spans and a few numbers per document.

    ``sizes``: bytes of each training document now, -1 once it is left out. ``copies``: number of an exact copy ->
    id of the document it is a copy of.
    """

    scan: ShardScan
    copies: dict[int, str]
    sizes: NDArray[np.int64]

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

    def not_found(self) -> Iterator[JudgedDocument]:
        """The others, in order of the corpus."""
        for state in self.shards:
            for scanned in state.scan.without_spans():
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
            copies = set(state.copies)
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
        return JudgedDocument(scanned, decision, state.copies.get(scanned.row), max(0, size))


def shard_states(scans: Sequence[ShardScan]) -> list[ShardState]:
    """Every shard before cleaning, its exact copies known: of several documents with the same text the first stays."""
    sizes, halves = [], [np.empty((0, 2), np.uint64)]
    for scan in scans:  # a table at a time: as numbers they are a fifth of it
        table = scan.table()
        sizes.append(np.array(table["bytes"].to_numpy()))
        digests = np.frombuffer(bytes.fromhex("".join(table["sha256"].to_pylist())), ">u8").reshape(-1, 4)
        halves.append(digests[:, :2].astype(np.uint64))
    keys = np.concatenate(halves)
    del halves
    counts = [len(some) for some in sizes]
    shard = np.repeat(np.arange(len(scans), dtype=np.int32), counts)
    row = np.concatenate([np.empty(0, np.int32), *(np.arange(count, dtype=np.int32) for count in counts)])
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: copies stay in order
    same = np.zeros(len(order), bool)
    same[1:] = (keys[order][1:] == keys[order][:-1]).all(axis=1)
    original = order[np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))] if len(order) else order
    copies, originals = order[same], original[same]
    names: dict[int, str] = {}
    for at in np.unique(shard[originals]):
        ids = scans[at].table()["doc_id"]
        names |= {int(i): ids[int(row[i])].as_py() for i in np.unique(originals[shard[originals] == at])}
    found: list[dict[int, str]] = [{} for _ in scans]
    for copy, first in sorted(zip(copies.tolist(), originals.tolist(), strict=True)):
        found[shard[copy]][int(row[copy])] = names[first]
    return [
        ShardState(scan, shard_copies, shard_sizes)
        for scan, shard_copies, shard_sizes in zip(scans, found, sizes, strict=True)
    ]
