"""A text as the set of its n-grams of words, and what is derived from that set: MinHash bands and fingerprints.

Words are those of ``stages.data.matching.normalize``, so that typography makes no difference. ``shingle`` rolls n-grams
along some thousand words at a time and forgets where they stood; ``located`` says it, for evidence.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stages.data.matching.normalize import as_bytes, empty_words, read_words, tables, words

MULTIPLIER = 0xD6E8FEB86659FD93  # of the rolling hash: odd, so that no word's weight ever becomes 0
_MASK = 2**64 - 1
WORDS = 4096  # read at a time: their 96 KiB stay in the second-level cache
BLOCK = 4096  # n-grams permuted at a time: 16 KiB stay in the first-level cache under all permutations


class Shingled(NamedTuple):
    """A text's number of words, a 128-bit hash of their sequence, and the distinct hashes of its n-grams, sorted."""

    words: int
    same: tuple[int, int]
    grams: NDArray[np.uint64]


def shingle(text: bytes | NDArray[np.uint8], n: int) -> Shingled:
    """The set of n-grams of words of UTF-8 ``text``; empty below ``n`` words."""
    data = as_bytes(text)
    grams = np.empty(len(data) // 2 + 2, np.uint64)  # pages beyond the last n-gram are never touched
    state, recent = np.array([0, 1, 2], np.uint64), np.zeros(n, np.uint64)
    block, total, at = empty_words(WORDS), 0, 0
    while True:
        count, at = read_words(data, at, *tables(), *block)
        _roll(block.hashes[:count], total, n, state, recent, grams)
        total += count
        if count < WORDS:
            break
    grams[: max(0, total - n + 1)].sort()
    grams.resize(_distinct(grams[: max(0, total - n + 1)]), refcheck=False)  # in place: a copy doubles the peak
    return Shingled(total, (int(state[1]), int(state[2])), grams)


def located(text: bytes | NDArray[np.uint8], n: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
    """(first byte, hash) of every n-gram in order, some thousand at a time."""
    data, block, at = as_bytes(text), empty_words(WORDS), 0
    hashes, starts = np.empty(0, np.uint64), np.empty(0, np.int64)
    m = np.uint64(MULTIPLIER)
    while True:
        count, at = read_words(data, at, *tables(), *block)
        hashes, starts = np.r_[hashes, block.hashes[:count]], np.r_[starts, block.starts[:count]]
        grams = np.zeros(max(0, len(hashes) - n + 1), np.uint64)
        for k in range(n):
            grams = grams * m + hashes[k : k + len(grams)]
        yield starts[: len(grams)], _finished_all(grams)
        if count < WORDS:
            return
        hashes, starts = hashes[len(grams) :], starts[len(grams) :]


@njit(cache=True, nogil=True, inline="always")
def _finished(h: Any) -> Any:
    """Mixed so that every bit depends on every word: samples and permutations need uniform bits (Stafford's mix 13)."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@njit(cache=True, nogil=True)
def _finished_all(grams: Any) -> Any:
    out = np.empty_like(grams)
    for i in range(len(grams)):
        out[i] = _finished(grams[i])
    return out


@njit(cache=True, nogil=True)
def _roll(hashes: Any, before: int, n: int, state: Any, recent: Any, grams: Any) -> None:
    """The next words of a text of which ``before`` were seen: writes the hash of every n-gram that ends in them.

    ``state``: the rolling polynomial of the last n words, h[0] m^(n-1) + ... + h[n-1] modulo 2^64, and two hashes of
    the whole sequence; ``recent``: those n words, word i at i modulo n.
    """
    m, leaving = np.uint64(MULTIPLIER), np.uint64(1)
    for _ in range(n):
        leaving *= m
    h, first, second = state
    slot = before % n
    for i in range(len(hashes)):
        word = hashes[i]
        h = h * m + word - recent[slot] * leaving
        recent[slot] = word
        slot = slot + 1 if slot + 1 < n else 0
        first = first * np.uint64(0x9E3779B97F4A7C15) + word
        second = (second ^ word) * np.uint64(0xFF51AFD7ED558CCD)
        second ^= second >> np.uint64(29)
        if before + i + 1 >= n:
            grams[before + i + 1 - n] = _finished(h)
    state[0], state[1], state[2] = h, first, second


@njit(cache=True, nogil=True)
def _distinct(values: Any) -> int:
    """Moves the distinct ones of sorted ``values`` to the front; how many they are."""
    kept = 0
    for i in range(len(values)):
        if i == 0 or values[i] != values[kept - 1]:
            values[kept] = values[i]
            kept += 1
    return kept


@njit(cache=True, nogil=True)
def common(a: Any, b: Any) -> int:
    """How many values two sorted sets share."""
    i = j = shared = 0
    while i < len(a) and j < len(b):
        if a[i] < b[j]:
            i += 1
        elif a[i] > b[j]:
            j += 1
        else:
            shared += 1
            i += 1
            j += 1
    return shared


class Permutations(NamedTuple):
    """Of the 32-bit numbers: x -> (factor x + offset) mod 2^32, ``factor`` odd; both of shape [permutations]."""

    factors: NDArray[np.uint32]
    offsets: NDArray[np.uint32]


def permutations(count: int) -> Permutations:
    """The first ``count`` of one fixed series (splitmix64): no library's random numbers, which may change."""
    state, drawn = 0x5DEECE66D, []
    for _ in range(2 * count):
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        drawn.append((z ^ (z >> 31)) >> 32)
    values = np.array(drawn, np.uint32)
    found = Permutations(values[:count] | np.uint32(1), values[count:].copy())
    for array in found:
        array.flags.writeable = False  # as in Ray's object store: kernels are compiled once per array type
    return found


def minhash(grams: NDArray[np.uint64], by: Permutations) -> NDArray[np.uint32]:
    """The smallest permuted n-gram under every permutation (Broder 1997); all ones for an empty set."""
    smallest = np.full(len(by.factors), 0xFFFFFFFF, np.uint32)
    _minhash(grams, by.factors, by.offsets, smallest)
    return smallest


@njit(cache=True, nogil=True)
def _minhash(grams: Any, factors: Any, offsets: Any, smallest: Any) -> None:
    low = np.empty(BLOCK, np.uint32)  # halves of some n-grams
    for start in range(0, len(grams), BLOCK):
        block = low[: min(BLOCK, len(grams) - start)]
        for i in range(len(block)):
            block[i] = np.uint32(grams[start + i])
        for j in range(len(factors)):
            factor, offset, least = factors[j], offsets[j], smallest[j]
            for i in range(len(block)):  # the compiler makes vectors of 8 or 16 n-grams of this loop
                least = min(least, np.uint32(factor * block[i] + offset))
            smallest[j] = least


def bands(smallest: NDArray[np.uint32], rows: int) -> NDArray[np.uint64]:
    """One hash of each run of ``rows`` MinHash values, shape [bands]."""
    m = np.uint64(MULTIPLIER)
    table = smallest.reshape(-1, rows).astype(np.uint64)
    hashed = np.zeros(len(table), np.uint64)
    for column in table.T:
        hashed = (hashed ^ column) * m
        hashed ^= hashed >> np.uint64(32)
    return hashed


def fingerprints(grams: NDArray[np.uint64], sample: int) -> NDArray[np.uint64]:
    """The n-grams whose hash is below 2^64 / ``sample``: the same ones of every text that has them."""
    return grams[: np.searchsorted(grams, np.uint64(_MASK // sample), side="right")].copy()


def passage(
    text: NDArray[np.uint8], other: NDArray[np.uint8], other_grams: NDArray[np.uint64], n: int, characters: int
) -> tuple[str, str]:
    """The beginning of the longest run of words of ``text`` whose n-grams all stand in ``other``, on both sides.

    The beginnings of both texts where they share no n-gram (texts shorter than one).
    """
    length, start, first = _longest_run(text, other_grams, n)
    if not length:
        return beginning(text, characters), beginning(other, characters)
    there = next(int(s[found[0]]) for s, grams in located(other, n) if len(found := np.flatnonzero(grams == first)))
    count = length + n - 1
    return _some_words(text[start:], count, characters), _some_words(other[there:], count, characters)


def _longest_run(text: NDArray[np.uint8], known: NDArray[np.uint64], n: int) -> tuple[int, int, np.uint64]:
    """(n-grams, first byte, first n-gram) of the first longest run of n-grams that are all in ``known`` (sorted)."""
    best = running = (0, 0, np.uint64(0))
    for starts, grams in located(text, n):
        at = np.minimum(np.searchsorted(known, grams), max(0, len(known) - 1))
        inside = np.zeros(len(grams) + 2, np.int8)  # with a 0 at both ends
        if len(known):
            inside[1:-1] = known[at] == grams
        edges = np.flatnonzero(np.diff(inside))
        begins, lengths = edges[::2], np.diff(edges)[::2]
        runs = [(int(lengths[k]), int(starts[begins[k]]), grams[begins[k]]) for k in _ends_and_longest(lengths)]
        if runs and begins[0] == 0 and running[0]:  # goes on from the words before
            runs[0] = (running[0] + runs[0][0], *running[1:])
        best = max(best, *runs, key=lambda run: run[0]) if runs else best
        open_end = len(edges) and edges[-1] == len(grams)
        running = runs[0 if len(begins) == 1 else -1] if open_end else (0, 0, np.uint64(0))
    return best


def _ends_and_longest(lengths: NDArray[np.int64]) -> list[int]:
    """The first run, the longest one and the last one: only these can be the longest or go on over a border."""
    return sorted({0, int(np.argmax(lengths)), len(lengths) - 1}) if len(lengths) else []


def _some_words(text: NDArray[np.uint8], count: int, characters: int) -> str:
    """The first ``count`` words of ``text``, which begins with one, or of what ``characters`` can hold of it."""
    end = min(len(text), 8 * characters)
    while end < len(text) and text[end] & 0xC0 == 0x80:  # not inside a character
        end -= 1
    ends = words(text[:end].copy()).ends
    return shortened(text[: int(ends[count - 1])] if count <= len(ends) else text, characters)


def beginning(text: NDArray[np.uint8], characters: int) -> str:
    """The first ``characters`` of a text, without blanks before them."""
    blank = 0
    while blank < len(text) and text[blank] in b" \t\r\n":
        blank += 1
    return shortened(text[blank:], characters)


def shortened(text: NDArray[np.uint8], characters: int) -> str:
    """At most ``characters`` of UTF-8 text, with a sign where it goes on."""
    said = text[: 4 * characters + 4].tobytes().decode(errors="ignore")
    return said if len(said) <= characters and len(text) <= 4 * characters + 4 else said[:characters] + " …"
