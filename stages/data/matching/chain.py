"""From a training document to verified spans it shares with evaluation documents.

Seeds (n-grams of the index) are chained per evaluation document along a diagonal: a chain goes on while the next seed
is at most ``max_gap`` words away and shifted by at most ``max_drift``. Each chain is then aligned word by word, so that
a span counts the words that really agree and has readable text on both sides as evidence.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stages.data.matching.align import LOOSE, MARK, verified
from stages.data.matching.boilerplate import body
from stages.data.matching.index import MULTIPLIER, Index, bits_of, leaving, shortest, slot_of
from stages.data.matching.normalize import as_bytes, empty_words, read_words, tables

OPEN_CHAINS = 512  # at the same time; beyond it the stalest is closed
CHAIN_FIELDS, OPEN_FIELDS = 5, 6
I0, I1, G0, G1, LOW, HIGH = range(6)
"""An open chain: its first and last+1 word in the document and in the index, and where the evaluation document's words
begin and end in the index; ``LOW`` is ``UNKNOWN`` until that matters: most chains are one seed."""
UNKNOWN, NONE = -1, 1 << 62
Integer = int | np.int64
"""What the kernels count in: compiled, both are 64 bits."""
BLOCK = 4096  # words read before they are looked up: 100 KB, about half of a core's own cache


class Span(NamedTuple):
    """Text that a training document shares with one evaluation document. Word and byte ranges are [start, end)."""

    book: int
    doc_first: int
    doc_last: int
    book_first: int
    book_last: int
    matched: int
    doc_start: int
    doc_end: int
    book_start: int
    book_end: int
    near: int = 0
    """Words that disagree by a few letters only: misread, or spelled otherwise."""

    @property
    def identity(self) -> float:
        """Agreeing words over the words of the longer side."""
        return self.matched / self.longer

    @property
    def alike(self) -> int:
        """Words that agree or nearly agree."""
        return self.matched + self.near

    @property
    def longer(self) -> int:
        """Words of the longer side."""
        return max(self.doc_last - self.doc_first, self.book_last - self.book_first)


class Scanned(NamedTuple):
    """What was found in one training document: its size, and its spans in order of position."""

    bytes: int
    words: int
    spans: list[Span]


def scan(text: bytes | NDArray[np.uint8], index: Index, max_gap: int, max_drift: int, min_span_words: int) -> Scanned:
    """All verified spans of at least ``min_span_words`` words in UTF-8 ``text``, without its boilerplate, and the whole
    of evaluation documents that have fewer. Words count that agree or nearly agree; half of a span's least must agree.
    Of a span of which less than ``LOOSE`` does the stretch that is a copy comes as a span too, inside it.

    Positions of words count from the first word of the body, byte positions from the beginning of ``text``. Beside
    the text, memory is a hundredth of it: the words are not kept, those around a chain are made again.
    """
    data = as_bytes(text)
    first, last = body(data)
    inside = data[first:last]
    marks = np.empty(len(inside) // (2 * MARK) + 2, np.int64)
    chains, document_words = _chained(inside, marks, index, max_gap, max_drift, min_span_words)
    found = verified(inside, marks, document_words, chains, index, max_gap + index.ngram, min_span_words)
    spans = dict(zip(_spans(found[:, :9], first, index), _spans(_stretches(found), first, index), strict=True))
    kept = _without_nested(list(spans))
    stretches = {spans[span] for span in kept if span.alike < LOOSE * span.longer}
    return Scanned(len(data), document_words, sorted([*kept, *(s for s in stretches if s.alike >= min_span_words)]))


def _chained(
    data: NDArray[np.uint8], marks: NDArray[np.int64], index: Index, max_gap: int, max_drift: int, least: int
) -> tuple[NDArray[np.int64], int]:
    """(chains [c, 5]: book, first and last+1 word in the document, first and last+1 word in the book; words)."""
    size = 1024
    block = empty_words(BLOCK)
    while True:
        out = np.empty((size, CHAIN_FIELDS), np.int64)
        count, total = _chains(
            data,
            *tables(),
            *block,
            index.ngram,
            index.table,
            index.postings,
            index.first_word,
            index.bitmap,
            index.whole,
            min(index.floor, shortest(least)),
            max_gap,
            max_drift,
            least,
            np.empty((OPEN_CHAINS, OPEN_FIELDS), np.int64),
            marks,
            out,
        )
        if count <= size:
            return out[:count], total
        size = count


def _stretches(found: NDArray[np.int64]) -> NDArray[np.int64]:
    """The best stretches of ``verified`` spans, as rows of spans."""
    return np.concatenate([found[:, :1], found[:, 9:]], axis=1)


def _spans(found: NDArray[np.int64], offset: int, index: Index) -> Iterator[Span]:
    for book, d0, d1, b0, b1, matched, start, end, near in found.tolist():
        base = int(index.first_word[book])
        own = int(index.starts[base + b0]), int(index.ends[base + b1 - 1])
        yield Span(book, d0, d1, b0, b1, matched, offset + start, offset + end, *own, near)


@njit(cache=True, nogil=True)
def _chains(
    data: Any,
    ascii: Any,
    classes: Any,
    offsets: Any,
    flat: Any,
    hashes: Any,
    starts: Any,
    ends: Any,
    n: int,
    table: Any,
    postings: Any,
    first_word: Any,
    bitmap: Any,
    whole: Any,
    floor: int,
    max_gap: int,
    max_drift: int,
    least: int,
    live: Any,
    marks: Any,
    out: Any,
) -> tuple[int, int]:
    """Words, n-grams, look-up and chains in one pass over the bytes, a block of words at a time so that they stay in
    the cache. Returns (chains found, words); chains beyond the length of ``out`` are counted, not kept."""
    block = np.zeros(len(hashes) + n, np.uint64)  # hashes of the last n words of the block before, then this one's
    grams = np.empty(len(hashes), np.uint64)
    candidates = np.empty(len(hashes), np.int32)
    slots, there = np.empty(len(hashes), np.int64), np.empty(len(hashes), np.uint64)
    seeds = np.empty((len(hashes), 2), np.int64)
    gram = np.uint64(0)
    total, at = 0, 0
    alive, count = 0, 0
    stalest = NONE  # no open chain ends before this word
    run, next_word = NONE, 0  # the chain that the seed before prolonged along its diagonal, and how on
    next_place: Integer = 0
    while True:
        size, at = read_words(data, at, ascii, classes, offsets, flat, block[n:], starts, ends)
        if size == 0:
            break
        for k in range((-total) % MARK, size, MARK):
            marks[(total + k) // MARK] = starts[k]
        gram = _roll(block, n, size, gram, grams)
        some = _prefiltered(grams, max(0, n - 1 - total), size, bitmap, candidates)
        found = _looked_up(grams, candidates, some, table, slots, there, seeds)
        for s in range(found):
            i, value = total + seeds[s, 0] + 1 - n, np.uint64(seeds[s, 1])
            if i - stalest > max_gap:
                alive, count, stalest = _close_stale(
                    live, alive, i - max_gap, first_word, whole, floor, out, count, least
                )
                run = NONE
            stalest = min(stalest, i + n)
            if value >> np.uint64(63) == 0:
                place = np.int64(value)
                if run != NONE and i == next_word and place == next_place and place < live[run, HIGH]:
                    live[run, I1], live[run, G1] = i + n, place + n  # no other can have come nearer
                else:
                    alive, count, run = _chain(
                        i, place, n, first_word, whole, floor, max_gap, max_drift, least, live, alive, out, count
                    )
                next_word, next_place = i + 1, place + 1
                continue
            first = np.int64(value & np.uint64((1 << 40) - 1))
            for p in range(first, first + np.int64((value >> np.uint64(40)) & np.uint64(0xFFFF))):
                place = np.int64(postings[p])
                alive, count, _ = _chain(
                    i, place, n, first_word, whole, floor, max_gap, max_drift, least, live, alive, out, count
                )
        total += size
        block[:n] = block[size : size + n]
    for c in range(alive):
        count = _close(live[c], first_word, whole, floor, out, count, least)
    return count, total


@njit(cache=True, nogil=True)
def _roll(block: Any, n: int, size: int, gram: Any, grams: Any) -> Any:
    """Hashes of the n-grams that end with each word of the block: ``index.ngrams``, rolled on from block to block."""
    m, last = np.uint64(MULTIPLIER), leaving(n)
    for k in range(size):
        gram = gram * m + block[n + k] - block[k] * last
        grams[k] = max(gram, np.uint64(1))
    return gram


@njit(cache=True, nogil=True)
def _prefiltered(grams: Any, first: int, size: int, bitmap: Any, candidates: Any) -> int:
    """Which n-grams the bitmap lets through. Without a branch, so that the memory is asked for many at a time."""
    some = 0
    for k in range(first, size):
        word, bits = bits_of(grams[k], bitmap)
        candidates[some] = k
        some += int(bitmap[word] & bits == bits)
    return some


@njit(cache=True, nogil=True)
def _looked_up(grams: Any, candidates: Any, some: int, table: Any, slots: Any, there: Any, seeds: Any) -> int:
    """Enter what the index knows: [place in the block, second number of the slot]. First what stands where each search
    begins, for in contaminated text every one is a cache miss, and so the memory is asked for many at a time."""
    for c in range(some):
        slots[c] = slot_of(grams[candidates[c]], len(table))
        there[c] = table[slots[c], 0]
    found = 0
    for c in range(some):
        gram, slot, known = grams[candidates[c]], slots[c], there[c]
        while known != gram:
            if known == 0:  # the n-gram is not there
                break
            slot = slot + 1 if slot + 1 < len(table) else 0
            known = table[slot, 0]
        if known == gram:
            seeds[found, 0], seeds[found, 1] = candidates[c], np.int64(table[slot, 1])
            found += 1
    return found


@njit(cache=True, nogil=True, inline="always")
def _chain(
    i: int,
    place: Integer,
    n: int,
    first_word: Any,
    whole: Any,
    floor: int,
    max_gap: int,
    max_drift: int,
    least: int,
    live: Any,
    alive: int,
    out: Any,
    count: int,
) -> tuple[int, int, int]:
    """Let the seed at word ``i``, which stands at ``place`` of the index, prolong a chain or begin one. Returns (open
    chains, finished ones, the chain it prolonged without drift or ``NONE``)."""
    best, best_drift = alive, max_drift + 1
    for c in range(alive):
        ahead = place - live[c, G1]
        drift = abs((i - live[c, I1]) - ahead)
        if drift < best_drift and -n < ahead <= max_gap + max_drift and i + n > live[c, I1]:
            if live[c, LOW] == UNKNOWN:
                book = _book_at(live[c, G0], first_word)
                live[c, LOW], live[c, HIGH] = first_word[book], first_word[book + 1]
            if live[c, LOW] <= place < live[c, HIGH]:
                best, best_drift = c, drift
                if drift == 0:
                    break
    if best < alive:
        live[best, I1], live[best, G1] = i + n, place + n
        return alive, count, best if best_drift == 0 else NONE
    if alive == len(live):
        best = 0
        for c in range(1, alive):
            if live[c, I1] < live[best, I1]:
                best = c
        count = _close(live[best], first_word, whole, floor, out, count, least)
    else:
        alive += 1
    live[best, I0], live[best, I1], live[best, G0], live[best, G1] = i, i + n, place, place + n
    live[best, LOW] = UNKNOWN
    return alive, count, NONE


@njit(cache=True, nogil=True)
def _book_at(place: int, first_word: Any) -> int:
    """Number of the evaluation document that a place of the index lies in."""
    book, high = 0, len(first_word) - 1
    while high - book > 1:
        middle = (book + high) // 2
        if first_word[middle] <= place:
            book = middle
        else:
            high = middle
    return book


@njit(cache=True, nogil=True)
def _close_stale(
    live: Any, alive: int, end: int, first_word: Any, whole: Any, floor: int, out: Any, count: int, least: int
) -> tuple[int, int, int]:
    """Close the chains that end before word ``end``. Returns (open chains, finished ones, least end of an open one)."""
    stalest = NONE
    c = 0
    while c < alive:
        if live[c, I1] < end:
            count = _close(live[c], first_word, whole, floor, out, count, least)
            alive -= 1
            live[c] = live[alive]
        else:
            stalest = min(stalest, live[c, I1])
            c += 1
    return alive, count, stalest


@njit(cache=True, nogil=True, inline="always")
def _close(chain: Any, first_word: Any, whole: Any, floor: int, out: Any, count: int, least: int) -> int:
    """Keep a finished chain unless it is too short to grow into a span: quotations of phrases, far too many to verify.
    Equal words beyond its ends would have been seeds, unless they are no evidence; misread ones are found when the
    chain is verified. Of an evaluation document shorter than a span the chain must be as long as that of its copy. No
    chain kept is shorter than ``floor``."""
    size = min(chain[I1] - chain[I0], chain[G1] - chain[G0])
    if size < floor:
        return count
    book = _book_at(chain[G0], first_word)
    base = first_word[book]
    if size < (shortest(least) if first_word[book + 1] - base >= least else whole[book]):
        return count
    if count < len(out):
        out[count, 0], out[count, 1], out[count, 2] = book, chain[I0], chain[I1]
        out[count, 3], out[count, 4] = chain[G0] - base, chain[G1] - base
    return count + 1


def _without_nested(spans: list[Span]) -> list[Span]:
    """In order of position, without spans that lie inside a better one of the same evaluation document."""
    best_first = sorted(spans, key=lambda s: (-s.alike, s))
    ranges = np.array([(s.book, s.doc_first, s.doc_last) for s in best_first], np.int64).reshape(-1, 3)
    return sorted(span for span, keep in zip(best_first, _not_nested(ranges), strict=True) if keep)


@njit(cache=True, nogil=True)
def _not_nested(ranges: Any) -> Any:
    keep = np.ones(len(ranges), np.bool_)
    for i in range(len(ranges)):
        for k in range(i):
            if (
                keep[k]
                and ranges[k, 0] == ranges[i, 0]
                and ranges[k, 1] <= ranges[i, 1]
                and ranges[i, 2] <= ranges[k, 2]
            ):
                keep[i] = False
                break
    return keep
