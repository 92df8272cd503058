"""Chains aligned word by word: how many words really agree, and where they begin and end in both texts.

A chain grows at both ends as long as words agree or nearly agree (``_alike``): of a badly scanned copy only some
stretches are chained. The words of a training document are not kept: those around its chains are read again, once for
chains that lie together. A chain inside a span that is longer than it can become is not aligned: it would be left out
anyway.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stages.data.matching.index import Index
from stages.data.matching.normalize import read_words, tables

MARK = 64  # words between two places of a text that are remembered, so that a chain's words can be read again
AROUND = 16  # words read before and after a chain: most do not grow at all
VERIFIED_FIELDS = 17
LOOSE = 0.925  # of a span's words agree or nearly agree: below it the stretch where most do is a span by itself too
APART = 13  # what a disagreement costs in such a stretch: in it, and from its ends on, 92.8% agree or nearly do
TOGETHER = 1 << 14  # words read at once for several chains
COMPARED = 32  # spans that a chain is compared with: those of the longest chains nearby
LETTERS = 32  # bytes of a word that are compared; of longer ones none is nearly another
COST, GIVE_UP = 2, 8  # of a disagreement when a chain grows (agreement: 1), and how far below its best it may fall
SHIFT = 3  # words lost or inserted at a time when it grows


def verified(
    data: NDArray[np.uint8],
    marks: NDArray[np.int64],
    total: int,
    chains: NDArray[np.int64],
    index: Index,
    reach: int,
    least: int,
) -> NDArray[np.int64]:
    """Chains of at least ``least`` words that agree or nearly agree, half of which agree, and those that are the whole
    of an evaluation document of fewer: int64 [v, 17] of book, first and last+1 word in the document and in the book,
    agreeing words, first byte, last byte + 1, nearly agreeing words; and of its best stretch (``APART``) the same but
    for the book. Some that lie inside a better one are missing.

    ``chains``: int64 [c, 5], see ``chain.chained``; ``marks``: the byte at which every ``MARK``-th word of ``data``
    begins, which has ``total``; ``reach``: the words looked at beyond a disagreement.
    """
    found = np.empty((len(chains), VERIFIED_FIELDS), np.int64)
    if not len(chains):
        return found
    theirs = index.hashes, index.starts, index.ends, index.text, index.first_byte, index.first_word
    count = _verified(data, *tables(), marks, total, chains, *theirs, reach, least, found)
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
    book_hashes: Any,
    book_starts: Any,
    book_ends: Any,
    book_text: Any,
    first_byte: Any,
    first_word: Any,
    reach: int,
    least: int,
    out: Any,
) -> int:
    """``verified``; returns how many it entered into ``out``."""
    hashes, starts, ends = np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64)
    lower = np.empty(0, np.uint32)  # of the hashes, as in the index
    row, best = np.empty(LETTERS + 1, np.int64), np.empty(6, np.int64)
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
            own, next_own = first_word[book], first_word[book + 1]
            text = book_text[first_byte[book] : first_byte[book + 1]]
            theirs = book_hashes[own:next_own]
            b = (theirs, book_starts[own:next_own], book_ends[own:next_own], text)
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
                a = (lower, starts, ends, data)
                d0, b0, more_before = _grown(a, b, i0 - at, j0, -1, ascii, row)
                d1, b1, more_after = _grown(a, b, i1 - at, j1, 1, ascii, row)
                if (not more_before or at == 0) and (not more_after or at + size == total):
                    break
                room *= 8  # it would go on beyond what was read: read more
                first, last = max(0, i0 - room) // MARK * MARK, min(total, i1 + room)
            if _inside(out[before : min(count, before + COMPARED)], book, at + d0, at + d1, min(d1 - d0, b1 - b0)):
                continue
            short = len(theirs) < least
            matched, near = _agreeing(a, b, d0, d1, b0, b1, reach, len(theirs) if short else least, ascii, row, best)
            if matched == len(theirs) if short else matched + near >= least and 2 * matched >= least:
                out[count, 0], out[count, 1], out[count, 2] = book, at + d0, at + d1
                out[count, 3], out[count, 4], out[count, 5] = b0, b1, matched
                out[count, 6], out[count, 7], out[count, 8] = starts[d0], ends[d1 - 1], near
                out[count, 9], out[count, 10], out[count, 11] = at + best[0], at + best[1], best[2]
                out[count, 12], out[count, 13], out[count, 16] = best[3], best[4], best[5]
                out[count, 14], out[count, 15] = starts[best[0]], ends[max(best[0], best[1] - 1)]
                count += 1
    return count


@njit(cache=True, nogil=True)
def _together(chains: Any, order: Any, begin: int, total: int) -> tuple[int, int, int]:
    """(first word to read, last word + 1, end) of the chains ``order[begin:end]``, whose words overlap: at most
    ``TOGETHER``, unless a single chain has more."""
    c = order[begin]
    first, last = max(0, chains[c, 1] - AROUND) // MARK * MARK, min(total, chains[c, 2] + AROUND)
    end = begin + 1
    while end < len(order):
        c = order[end]
        more = max(last, min(total, chains[c, 2] + AROUND))
        if chains[c, 1] - AROUND > last or (more > last and more - first > TOGETHER):
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
def _grown(a: Any, b: Any, i: int, j: int, step: int, ascii: Any, row: Any) -> tuple[int, int, bool]:
    """The end of a chain that ends before words i and j (``step`` 1) or begins with them (-1), as far as it grows:
    (its new end in a and in b, whether a's words that were read ran out first). It ends with words that agree."""
    back = step < 0
    score, best, best_i, best_j = 0, 0, i, j
    while score > best - GIVE_UP:
        p, q = i - back, j - back
        if q < 0 or q >= len(b[0]):
            return best_i, best_j, False
        if p < 0 or p >= len(a[0]):
            return best_i, best_j, True
        if a[0][p] == b[0][q]:
            i, j, score = i + step, j + step, score + 1
            if score > best:
                best, best_i, best_j = score, i, j
        elif _alike(a, p, b, q, ascii, row):
            i, j, score = i + step, j + step, score + 1
        else:
            ahead_i, ahead_j = 1, 1
            for s in range(1, SHIFT + 1):
                if _both(a[0], b[0], p + s * step, q, step):
                    ahead_i, ahead_j = s, 0
                    break
                if _both(a[0], b[0], p, q + s * step, step):
                    ahead_i, ahead_j = 0, s
                    break
            i, j, score = i + ahead_i * step, j + ahead_j * step, score - COST * max(ahead_i, ahead_j)
    return best_i, best_j, False


@njit(cache=True, nogil=True, inline="always")
def _both(a: Any, b: Any, p: int, q: int, step: int) -> bool:
    """Two equal words in a row."""
    if min(p, p + step) < 0 or max(p, p + step) >= len(a) or min(q, q + step) < 0 or max(q, q + step) >= len(b):
        return False
    return bool(a[p] == b[q] and a[p + step] == b[q + step])


@njit(cache=True, nogil=True)
def _alike(a: Any, p: int, b: Any, q: int, ascii: Any, row: Any) -> bool:
    """Whether two words (hashes, starts, ends, bytes of a text; which word) differ by at most a third of their letters:
    the edit distance of their bytes, case aside."""
    start, other = np.int64(a[1][p]), np.int64(b[1][q])
    m, n = np.int64(a[2][p]) - start, np.int64(b[2][q]) - other
    allowed = max(m, n) // 3
    if abs(m - n) > allowed or max(m, n) > LETTERS:
        return False
    for y in range(n + 1):
        row[y] = y
    for x in range(1, m + 1):
        letter = _folded(a[3][start + x - 1], ascii)
        diagonal, row[0] = row[0], x
        least = x
        for y in range(1, n + 1):
            cost = diagonal + int(letter != _folded(b[3][other + y - 1], ascii))
            diagonal = row[y]
            row[y] = min(cost, min(row[y], row[y - 1]) + 1)
            least = min(least, row[y])
        if least > allowed:
            return False
    return bool(row[n] <= allowed)


@njit(cache=True, nogil=True, inline="always")
def _folded(letter: Any, ascii: Any) -> Any:
    return ascii[letter] if ascii[letter] else letter


@njit(cache=True, nogil=True)
def _agreeing(
    a: Any, b: Any, i: int, i1: int, j: int, j1: int, reach: int, least: int, ascii: Any, row: Any, best: Any
) -> tuple[int, int]:
    """(agreeing, nearly agreeing) words of a[i:i1] and b[j:j1]: at a disagreement of more than a few letters go on at
    the nearest pair of equal words within ``reach`` on either side, substitutions first. Where ``least`` can no longer
    be reached, counting stops: most chains are short. ``best`` takes up the stretch in which agreement outweighs
    ``APART`` times disagreement most, the first of several: first and last+1 word in a and in b, agreeing and
    nearly agreeing words."""
    matched, near = 0, 0
    score, most = 0, 0
    best[0], best[1], best[2], best[3], best[4], best[5] = i, i, j, j, 0, 0
    first_i, first_j, before, before_near = i, j, 0, 0
    while i < i1 and j < j1 and matched + near + min(i1 - i, j1 - j) >= least:
        same = a[0][i] == b[0][j]
        if same or _alike(a, i, b, j, ascii, row):
            if score == 0:
                first_i, first_j, before, before_near = i, j, matched, near
            i, j, score = i + 1, j + 1, score + 1
            matched, near = matched + int(same), near + int(not same)
            if score > most:
                most = score
                best[0], best[1], best[2], best[3] = first_i, i, first_j, j
                best[4], best[5] = matched - before, near - before_near
            continue
        di, dj = 1, 1
        found = False
        for r in range(1, reach + 1):
            for k in range(r, -1, -1):
                if _agree(a[0], b[0], i + r, j + k, i1, j1):
                    di, dj, found = r, k, True
                elif _agree(a[0], b[0], i + k, j + r, i1, j1):
                    di, dj, found = k, r, True
                if found:
                    break
            if found:
                break
        if di == dj:
            for k in range(1, di):
                near += int(_alike(a, i + k, b, j + k, ascii, row))
        i, j, score = i + di, j + dj, max(0, score - APART * max(di, dj))
    return matched, near


@njit(cache=True, nogil=True, inline="always")
def _agree(a: Any, b: Any, i: int, j: int, i1: int, j1: int) -> bool:
    """Two equal words in a row, or one at the end of either side."""
    if i >= i1 or j >= j1 or a[i] != b[j]:
        return False
    return i + 1 >= i1 or j + 1 >= j1 or a[i + 1] == b[j + 1]
