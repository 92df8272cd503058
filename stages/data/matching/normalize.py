"""Text to hashed words in one pass over its UTF-8 bytes, keeping where each word stood.

Two copies of a passage must give the same words whatever their typography: case and diacritics are folded, apostrophes
and soft hyphens dropped (don’t = dont), ``to-day`` and a hyphen at a line break joined, ``--`` and every other sign
separates. Ideographs and kana are words of their own. Vowel signs and the lengthening stroke of Arabic are dropped as
diacritics are. Scripts without spaces between words (Thai, Lao, Khmer, Burmese) are cut before letters that a hash of
two letters chooses, one in four: what is copied is cut in the same places, whatever stands around it.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

SEPARATOR, LETTER, DROPPED, HYPHEN, IDEOGRAPH, UNSPACED = range(6)
PLANES = 0x20000  # code points that the kernels have tables for; beyond are ideographs and what is no text
_APOSTROPHES = frozenset("'’‘ʼ`´＇")
_HYPHENS = frozenset("-‐‑")
_UNDECOMPOSED = {"æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ł": "l", "þ": "th", "ð": "d", "ı": "i", "ħ": "h"}
_BASIS, _PRIME = 0xCBF29CE484222325, 0x100000001B3  # FNV-1a, 64 bit
_LENGTHENING = frozenset("\u0640\u07fa")  # tatweel: a stroke that makes a word as wide as its line
_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x1950, 0x19DF),
    (0x1A20, 0x1AAF),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAADF),
)


class Words(NamedTuple):
    """The words of one text: 64-bit hashes and the byte ranges [start, end) they came from, all of shape [n]."""

    hashes: NDArray[np.uint64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


def fold(character: str) -> tuple[int, str]:
    """(class, folded form) of one character; the form is empty for all but letters."""
    if character in _APOSTROPHES or character in _LENGTHENING:
        return DROPPED, ""
    if character in _HYPHENS:
        return HYPHEN, ""
    code = ord(character)
    if 0x3040 <= code <= 0x30FF or 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x3FFFF:
        return IDEOGRAPH, ""
    category = unicodedata.category(character)
    if code >= PLANES or category[0] not in "LNMC":
        return SEPARATOR, ""
    if category in ("Mn", "Mc", "Me", "Cf"):
        return DROPPED, ""
    if category[0] not in "LN":
        return SEPARATOR, ""
    form = "".join(_UNDECOMPOSED.get(c, c) for c in _decomposed(character))
    form = "".join(c for c in form if unicodedata.category(c)[0] in "LN")
    if not form:
        return SEPARATOR, ""
    return UNSPACED if any(a <= code <= b for a, b in _UNSPACED) and category[0] == "L" else LETTER, form


def _decomposed(character: str) -> str:
    """In lower case, also where only what it stands for has a case: mathematical letters."""
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character.casefold()).casefold())


class CharacterTables(NamedTuple):
    """What the kernels look characters up in."""

    ascii: NDArray[np.uint8]  # [256] folded byte of an ASCII letter or digit, 0 for every other byte
    classes: NDArray[np.uint8]  # [PLANES] class of each code point
    offsets: NDArray[np.int32]  # [PLANES + 1] its folded form: flat[offsets[code] : offsets[code + 1]]
    flat: NDArray[np.int32]


@functools.cache
def tables() -> CharacterTables:
    """Built once per process, in about 0.1 s."""
    classes = np.zeros(PLANES, np.uint8)
    offsets = np.zeros(PLANES + 1, np.int32)
    flat: list[int] = []
    for code in range(PLANES):
        classes[code], form = fold(chr(code)) if not 0xD800 <= code < 0xE000 else (SEPARATOR, "")
        flat.extend(map(ord, form))
        offsets[code + 1] = len(flat)
    letters = [flat[offsets[b]] if b < 0x80 and classes[b] == LETTER else 0 for b in range(256)]
    return CharacterTables(np.array(letters, np.uint8), classes, offsets, np.array(flat, np.int32))


def words(text: bytes | NDArray[np.uint8]) -> Words:
    """The words of UTF-8 ``text``."""
    data = as_bytes(text)
    hashes, starts, ends = empty_words(len(data) // 2 + 2)
    count, _ = read_words(data, 0, *tables(), hashes, starts, ends)
    return Words(hashes[:count].copy(), starts[:count].copy(), ends[:count].copy())


def empty_words(size: int) -> Words:
    """Room for ``size`` words. Memory that is never written to is never taken."""
    return Words(np.empty(size, np.uint64), np.empty(size, np.int64), np.empty(size, np.int64))


def as_bytes(text: bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The text as the kernels take it. Read-only: kernels are compiled once per array type."""
    data = np.frombuffer(text, np.uint8) if isinstance(text, bytes) else text.view()
    data.flags.writeable = False
    return data


@njit(cache=True, nogil=True, inline="always")
def _decode(data: Any, i: Any) -> Any:
    """(code point, length in bytes) at ``i`` of valid UTF-8."""
    b = data[i]
    if b < 0x80:
        return np.int64(b), 1
    if b < 0xE0:
        return ((np.int64(b) & 0x1F) << 6) | (np.int64(data[i + 1]) & 0x3F), 2
    low = (np.int64(data[i + 1]) & 0x3F) << 6 | (np.int64(data[i + 2]) & 0x3F)
    if b < 0xF0:
        return ((np.int64(b) & 0x0F) << 12) | low, 3
    return ((np.int64(b) & 0x07) << 18) | (low << 6) | (np.int64(data[i + 3]) & 0x3F), 4


@njit(cache=True, nogil=True, inline="always")
def _class_of(code: Any, classes: Any) -> Any:
    if code < PLANES:
        return np.int64(classes[code])
    return IDEOGRAPH if 0x20000 <= code <= 0x3FFFF else SEPARATOR


@njit(cache=True, nogil=True, inline="always")
def _begins(before: Any, code: Any) -> Any:
    """Whether a letter of a script without spaces begins a word after the letter ``before``."""
    return ((before * 31 + code) * 0x9E3779B1 >> 16) & 3 == 0


@njit(cache=True, nogil=True, inline="always")
def _mixed(h: Any) -> Any:
    h ^= h >> np.uint64(32)
    h *= np.uint64(0x9E3779B97F4A7C15)
    return h ^ (h >> np.uint64(29))


@njit(cache=True, nogil=True)
def read_words(
    data: Any, i: int, ascii: Any, classes: Any, offsets: Any, flat: Any, hashes: Any, starts: Any, ends: Any
) -> tuple[int, int]:
    """Words from byte ``i`` on, until the arrays are full or the text ends: (number of words, where to go on).

    ``i`` must not stand inside a word; what lies before a word never matters to it. Most text is ASCII, so that path
    is short and the others are reached by one comparison.
    """
    n, room, count = len(data), len(hashes), 0
    while i < n and count < room:
        b = data[i]
        if not ascii[b]:
            if b < 0x80:
                i += 1
                continue
            code, length = _decode(data, i)
            kind = _class_of(code, classes)
            if kind == IDEOGRAPH:
                hashes[count] = _mixed((np.uint64(_BASIS) ^ np.uint64(code)) * np.uint64(_PRIME))
                starts[count], ends[count] = i, i + length
                count += 1
            if kind not in (LETTER, UNSPACED):
                i += length
                continue
        start, end, h = i, i, np.uint64(_BASIS)
        before = np.int64(0)  # the letter before, of a script without spaces
        while True:  # one turn a run of ASCII letters, then what follows it
            if before and i < n and ascii[data[i]]:
                break
            while i < n:
                letter = ascii[data[i]]
                if not letter:
                    break
                h = (h ^ np.uint64(letter)) * np.uint64(_PRIME)
                i += 1
                end = i
            if i >= n or data[i] == 32:
                break
            code, length = _decode(data, i)
            kind = _class_of(code, classes)
            if kind == UNSPACED:
                letter_here = np.int64(flat[offsets[code]])
                if end > start and (before == 0 or _begins(before, letter_here)):
                    break
                before = letter_here
            elif kind == LETTER and before:
                break
            if kind in (LETTER, UNSPACED):
                for k in range(offsets[code], offsets[code + 1]):
                    h = (h ^ np.uint64(flat[k])) * np.uint64(_PRIME)
                i += length
                end = i
            elif kind == DROPPED:
                i += length
            elif kind == HYPHEN:
                j = i + length
                if j < n and data[j] == 10:
                    j += 1
                    while j < n and (data[j] == 32 or data[j] == 9):
                        j += 1
                if j >= n or _class_of(_decode(data, j)[0], classes) != LETTER:
                    break
                i = j
            else:
                break
        hashes[count], starts[count], ends[count] = _mixed(h), start, end
        count += 1
    return count, i
