"""The rule: from spans to one action per (training document, evaluation document) and per document, and what goes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.matching.chain import Scanned, Span

Action = Literal["keep", "note", "cut", "drop"]
SEVERITY: dict[Action, int] = {"keep": 0, "note": 1, "cut": 2, "drop": 3}

SOME_QUOTATIONS = 4  # of the least length to act on: as many may stand together without being a copy
LOOSE_LIMIT = 0.1  # of an evaluation document, by spans of any kind: above it even those of translations go

_BLANK = b" \t\n\r\x0b\f"


@dataclass(frozen=True)
class Pair:
    """What one training document shares with one evaluation document, and what follows from it.

    Words are those that agree or nearly agree, in the copies where there are any, else in all ``spans``. ``dense``:
    those in the stretch of the document that holds most of them. ``copies``: the spans that count as such; all where
    the pair is to be cut.
    """

    book: int
    spans: tuple[Span, ...]
    copies: tuple[Span, ...]
    matched: int
    longest: int
    dense: int
    document_share: float
    book_share: float
    action: Action
    reason: str


@dataclass(frozen=True)
class Decision:
    """What happens to one training document. ``pairs``: most severe first; ``cut``: byte ranges [start, end)."""

    action: Action = "keep"
    reason: str = ""
    pairs: tuple[Pair, ...] = ()
    cut: tuple[tuple[int, int], ...] = field(default=())


def decide_pair(
    book: int, spans: Sequence[Span], document_words: int, book_words: int, rule: DecontaminateConfig
) -> Pair:
    """The rule for one pair. Words covered by several spans count once."""
    spans = tuple(sorted(spans, key=lambda span: (span.doc_first, span)))
    copies = copies_of(spans, document_words, book_words, rule)
    counted = outermost(copies or spans)
    alike = sum(span.alike for span in counted)
    in_document = min(alike, covered((span.doc_first, span.doc_last) for span in counted))
    in_book = min(alike, covered((span.book_first, span.book_last) for span in counted))
    longest = max(span.alike for span in counted)
    dense = densest(counted)
    document_share, book_share = in_document / document_words, in_book / book_words
    action: Action = "cut"
    reason = f"a span of {longest} words, {in_document} in all"
    if not copies:
        action = "note"
        reason = f"{len(spans)} span(s) of {longest} words at most, of which fewer than {rule.copy_share:.0%} agree"
    elif longest < rule.act_words and in_book < book_words:
        action, reason = "note", f"longest span {longest} words, acted on from {rule.act_words}"
    elif dense >= rule.drop_words:
        action, reason = "drop", f"{dense} shared words in one stretch, dropped from {rule.drop_words}"
    elif document_share >= rule.drop_document_share:
        action, reason = "drop", f"{document_share:.0%} of the document, dropped from {rule.drop_document_share:.0%}"
    elif dense >= rule.drop_book_share * book_words and dense >= SOME_QUOTATIONS * rule.act_words:
        action = "drop"
        reason = f"{dense / book_words:.1%} of the evaluation document, dropped from {rule.drop_book_share:.0%}"
    elif longest < rule.act_words:
        reason = f"the whole of an evaluation document of {book_words} words"
    if action == "cut":  # beside a copy, what agrees less is the same text abridged or reworded
        copies = spans
    return Pair(book, spans, copies, in_document, longest, dense, document_share, book_share, action, reason)


def copies_of(
    spans: Sequence[Span], document_words: int, book_words: int, rule: DecontaminateConfig
) -> tuple[Span, ...]:
    """The spans that are copies, not another translation: all of them where together they make up half of either
    text, for a text that is another's from end to end is one, however much it was changed."""
    in_document = covered((span.doc_first, span.doc_last) for span in spans)
    in_book = covered((span.book_first, span.book_last) for span in spans)
    if 2 * in_document >= document_words or 2 * in_book >= book_words:
        return tuple(spans)
    outer = outermost(spans)
    alike, longer = sum(span.alike for span in outer), sum(span.longer for span in outer)
    # Where most is loose, a translator will have hit upon the same words here and there.
    least = rule.copy_share if alike >= rule.copy_share * longer else (1 + rule.copy_share) / 2
    return tuple(span for span in spans if span.alike >= least * span.longer)


def outermost(spans: Sequence[Span]) -> list[Span]:
    """The spans without the stretches of others of them: what both cover counts once."""
    found: list[Span] = []
    around: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.doc_first, -span.doc_last, span)):
        around = [other for other in around if other.doc_last >= span.doc_last]
        if not any(o.book_first <= span.book_first and span.book_last <= o.book_last for o in around):
            found.append(span)
            around.append(span)
    return found


def densest(spans: Sequence[Span]) -> int:
    """Words of the spans in the stretch of the document where they most outweigh the words between them."""
    blocks: list[tuple[int, int, int]] = []  # first, last, words: overlapping spans united
    for span in sorted(spans, key=lambda span: (span.doc_first, span.doc_last)):
        if blocks and span.doc_first <= blocks[-1][1]:
            first, last, words = blocks[-1]
            last = max(last, span.doc_last)
            blocks[-1] = (first, last, min(last - first, words + span.alike))
        else:
            blocks.append((span.doc_first, span.doc_last, min(span.doc_last - span.doc_first, span.alike)))
    best = best_words = lead = words = end = 0
    for first, last, own in blocks:
        lead -= first - end
        if lead <= 0:
            lead = words = 0
        lead, words, end = lead + own, words + own, last
        if lead > best:
            best, best_words = lead, words
    return best_words


def decide(scanned: Sequence[Scanned], book_words: Sequence[int], rule: DecontaminateConfig) -> list[Decision]:
    """One decision per scanned document, in order.

    First each pair by itself; then, for evaluation documents that the noted spans of all documents together still
    cover above ``coverage_limit`` (copies) or ``LOOSE_LIMIT`` (all), those spans are cut out as well.
    """
    decisions = [decide_document(document, book_words, rule) for document in scanned]
    left = Left()
    for decision in decisions:
        left.add(decision)
    over = left.above(rule.coverage_limit, book_words)
    return [without_notes(decision, over) for decision in decisions]


def decide_document(document: Scanned, book_words: Sequence[int], rule: DecontaminateConfig) -> Decision:
    """The decision for one document by itself."""
    by_book: dict[int, list[Span]] = defaultdict(list)
    for span in document.spans:
        by_book[span.book].append(span)
    return _settled(decide_pair(b, spans, document.words, book_words[b], rule) for b, spans in by_book.items())


def without_notes(decision: Decision, over: Mapping[int, float]) -> Decision:
    """The decision where what it leaves of the evaluation documents ``over`` (-> share that such spans cover) is cut
    out as well: copies, and above ``LOOSE_LIMIT`` all spans."""
    if decision.action == "drop" or not any(pair.book in over for pair in decision.pairs):
        return decision
    pairs = []
    for pair in decision.pairs:
        share = over.get(pair.book, 0.0)
        cut = pair.spans if share > LOOSE_LIMIT else pair.copies if share else ()
        if cut and (pair.action == "note" or cut != pair.copies):
            reason = f"{pair.reason}; but such spans cover {share:.1%} of the evaluation document"
            pairs.append(replace(pair, action="cut", copies=cut, reason=reason))
        else:
            pairs.append(pair)
    return _settled(pairs)


def _settled(pairs: Iterable[Pair]) -> Decision:
    """The document's fate is that of its worst pair; those to be cut say which text goes."""
    ordered = tuple(sorted(pairs, key=lambda pair: (-SEVERITY[pair.action], -pair.matched, pair.book)))
    if not ordered:
        return Decision()
    worst = ordered[0]
    cut: list[tuple[int, int]] = []
    if worst.action == "cut":
        cut = [(s.doc_start, s.doc_end) for pair in ordered if pair.action == "cut" for s in pair.copies]
    return Decision(worst.action, worst.reason, ordered, tuple(merged(cut)))


class Coverage:
    """Which words of the evaluation documents spans cover, united over all that are added: as large as those documents
    at most, whatever the corpus."""

    def __init__(self) -> None:
        self._ranges: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._merged_at: dict[int, int] = defaultdict(lambda: 1024)

    def add(self, book: int, spans: Iterable[Span]) -> None:
        """Unite with spans of one evaluation document."""
        ranges = self._ranges[book]
        ranges += [(span.book_first, span.book_last) for span in spans]
        if len(ranges) > self._merged_at[book]:
            ranges[:] = merged(ranges)
            self._merged_at[book] = max(1024, 2 * len(ranges))

    def add_all(self, decision: Decision) -> None:
        """Unite with all spans of one document, whatever becomes of them."""
        for pair in decision.pairs:
            self.add(pair.book, pair.spans)

    def shares(self, book_words: Sequence[int]) -> dict[int, float]:
        """Evaluation document -> share of its words that is covered; those with none are left out."""
        shares = {book: covered(ranges) / book_words[book] for book, ranges in sorted(self._ranges.items())}
        return {book: share for book, share in shares.items() if share}


class Left:
    """What decisions leave of the evaluation documents in the training text."""

    def __init__(self) -> None:
        self._copies, self._spans = Coverage(), Coverage()

    def add(self, decision: Decision) -> None:
        """The noted spans of one document, and the loose ones beside noted copies that were cut out."""
        if decision.action == "drop":
            return
        for pair in decision.pairs:
            noted = pair.action == "note"
            self._copies.add(pair.book, pair.copies if noted else ())
            self._spans.add(pair.book, pair.spans if noted else set(pair.spans).difference(pair.copies))

    def above(self, limit: float, book_words: Sequence[int]) -> dict[int, float]:
        """Those covered above ``limit`` by copies, or above ``LOOSE_LIMIT`` by spans of any kind -> share of these."""
        copies = self._copies.shares(book_words)
        every = self._spans.shares(book_words)
        return {book: share for book, share in every.items() if share > LOOSE_LIMIT or copies.get(book, 0.0) > limit}


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges [start, end) in order, overlapping and touching ones united."""
    out: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def covered(ranges: Iterable[tuple[int, int]]) -> int:
    """Length of the union of ranges."""
    return sum(end - start for start, end in merged(ranges))


def without_ranges(text: bytes | memoryview, ranges: Iterable[tuple[int, int]]) -> bytes:
    """``text`` without the byte ranges; a blank line stands where something was, so that no new sentence arises."""
    view = memoryview(text)
    edges = [0, *(edge for part in ranges for edge in part), len(view)]
    parts = []
    for at in range(0, len(edges), 2):
        start, end = edges[at], edges[at + 1]
        while at > 0 and start < end and view[start] in _BLANK:
            start += 1
        while at + 2 < len(edges) and start < end and view[end - 1] in _BLANK:
            end -= 1
        if start < end:
            parts.append(view[start:end])
    return b"\n\n".join(parts)
