"""Chains aligned word by word: how many words really agree, and where they begin and end in both texts.

The words of a training document are not kept: those around its chains are read again, once for chains that lie
together. A chain inside a span that is longer than it can become is not aligned: it would be left out anyway.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stages.data.matching.index import Index
from stages.data.matching.normalize import read_words, tables

MARK = 64  # words between two places of a text that are remembered, so that a chain's words can be read again
VERIFIED_FIELDS = 8
TOGETHER = 1 << 14  # words read at once for several chains
COMPARED = 32  # spans that a chain is compared with: those of the longest chains nearby


def verified(
    data: NDArray[np.uint8],
    marks: NDArray[np.int64],
    total: int,
    chains: NDArray[np.int64],
    index: Index,
    reach: int,
    least: int,
) -> NDArray[np.int64]:
    """Chains of at least ``least`` agreeing words: int64 [v, 8] of book, first and last+1 word in the document and in
    the book, agreeing words, first byte, last byte + 1. Some that lie inside a better one are missing.

    ``chains``: int64 [c, 5], see ``chain.chained``; ``marks``: the byte at which every ``MARK``-th word of ``data``
    begins, which has ``total``; ``reach``: the words looked at beyond a disagreement.
    """
    found = np.empty((len(chains), VERIFIED_FIELDS), np.int64)
    if not len(chains):
        return found
    count = _verified(data, *tables(), marks, total, chains, index.hashes, index.first_word, reach, least, found)
    return found[:count]


@njit(cache=True, nogil=True)
def _verified(
    data: Any,
    ascii: Any,
    classes: Any,
    offsets: Any,
    flat: Any,
    marks: Any,
    total: int,
    chains: Any,
    own: Any,
    first_word: Any,
    reach: int,
    least: int,
    out: Any,
) -> int:
    """``verified``; returns how many it entered into ``out``."""
    hashes, starts, ends = np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64)
    lower = np.empty(0, np.uint32)  # of the hashes, as in the index
    at, size, count = 0, 0, 0
    order = np.argsort(chains[:, 1])
    begin = 0
    while begin < len(order):
        here, there, end = _together(chains, order, begin, total)
        before = count  # those together, the longest first
        lengths = np.empty(end - begin, np.int64)
        for k in range(begin, end):
            c = order[k]
            lengths[k - begin] = -min(chains[c, 2] - chains[c, 1], chains[c, 4] - chains[c, 3])
        longest_first = order[begin:end][np.argsort(lengths)]
        begin = end
        for c in longest_first:
            book, i0, i1, j0, j1 = chains[c, 0], chains[c, 1], chains[c, 2], chains[c, 3], chains[c, 4]
            theirs = own[first_word[book] : first_word[book + 1]]
            first, last, room = here, there, MARK
            while True:
                if first < at or last > at + size:
                    if last - first > len(hashes):
                        hashes = np.empty(2 * (last - first), np.uint64)
                        starts, ends = np.empty(len(hashes), np.int64), np.empty(len(hashes), np.int64)
                    at = first
                    size, _ = read_words(
                        data, marks[at // MARK], ascii, classes, offsets, flat, hashes[: last - at], starts, ends
                    )
                    lower = hashes[:size].astype(np.uint32)
                d0, d1, b0, b1 = _extended(lower, theirs, i0 - at, i1 - at, j0, j1)
                if (d0 > 0 or at == 0) and (d1 < size or at + d1 == total):
                    break
                room *= 8  # equal words reach the edge of what was read: read more
                first, last = max(0, i0 - room) // MARK * MARK, min(total, i1 + room)
            if _inside(out[before : min(count, before + COMPARED)], book, at + d0, at + d1, min(d1 - d0, b1 - b0)):
                continue
            matched = _agreeing(lower, theirs, d0, d1, b0, b1, reach, least)
            if matched >= least:
                out[count, 0], out[count, 1], out[count, 2] = book, at + d0, at + d1
                out[count, 3], out[count, 4], out[count, 5] = b0, b1, matched
                out[count, 6], out[count, 7] = starts[d0], ends[d1 - 1]
                count += 1
    return count


@njit(cache=True, nogil=True)
def _together(chains: Any, order: Any, begin: int, total: int) -> tuple[int, int, int]:
    """(first word to read, last word + 1, end) of the chains ``order[begin:end]``, whose words overlap: at most
    ``TOGETHER``, unless a single chain has more."""
    c = order[begin]
    first, last = max(0, chains[c, 1] - MARK) // MARK * MARK, min(total, chains[c, 2] + MARK)
    end = begin + 1
    while end < len(order):
        c = order[end]
        more = max(last, min(total, chains[c, 2] + MARK))
        if chains[c, 1] - MARK > last or (more > last and more - first > TOGETHER):
            break
        last = more
        end += 1
    return first, last, end


@njit(cache=True, nogil=True)
def _inside(found: Any, book: int, first: int, last: int, most: int) -> bool:
    """Whether words [first, last), of which at most ``most`` agree, lie inside a span with more."""
    for k in range(len(found)):
        if found[k, 0] == book and found[k, 1] <= first and last <= found[k, 2] and found[k, 5] > most:
            return True
    return False


@njit(cache=True, nogil=True)
def _extended(a: Any, b: Any, i0: int, i1: int, j0: int, j1: int) -> tuple[int, int, int, int]:
    """The chain as far as words are equal on both sides of it."""
    while i0 > 0 and j0 > 0 and a[i0 - 1] == b[j0 - 1]:
        i0, j0 = i0 - 1, j0 - 1
    while i1 < len(a) and j1 < len(b) and a[i1] == b[j1]:
        i1, j1 = i1 + 1, j1 + 1
    return i0, i1, j0, j1


@njit(cache=True, nogil=True)
def _agreeing(a: Any, b: Any, i: int, i1: int, j: int, j1: int, reach: int, least: int) -> int:
    """Agreeing words of a[i:i1] and b[j:j1]: at a disagreement go on at the nearest pair of equal words within
    ``reach`` on either side, substitutions first. Where ``least`` can no longer be reached, counting stops: most
    chains are short."""
    matched = 0
    while i < i1 and j < j1 and matched + min(i1 - i, j1 - j) >= least:
        if a[i] == b[j]:
            i, j, matched = i + 1, j + 1, matched + 1
            continue
        di, dj = 1, 1
        found = False
        for r in range(1, reach + 1):
            for k in range(r, -1, -1):
                if _agree(a, b, i + r, j + k, i1, j1):
                    di, dj, found = r, k, True
                elif _agree(a, b, i + k, j + r, i1, j1):
                    di, dj, found = k, r, True
                if found:
                    break
            if found:
                break
        i, j = i + di, j + dj
    return matched


@njit(cache=True, nogil=True, inline="always")
def _agree(a: Any, b: Any, i: int, j: int, i1: int, j1: int) -> bool:
    """Two equal words in a row, or one at the end of either side."""
    if i >= i1 or j >= j1 or a[i] != b[j]:
        return False
    return i + 1 >= i1 or j + 1 >= j1 or a[i + 1] == b[j + 1]
