"""Text to hashed words in one pass over its UTF-8 bytes, keeping where each word stood.

Two copies of a passage must give the same words whatever their typography: case and diacritics are folded, apostrophes
dropped (don’t = dont), ``to-day`` and a hyphen or soft hyphen at a line break joined, ``--`` and every other sign
separates. What Unicode calls compatible is the same (NFKC: full-width Latin, ligatures, half-width kana, circled
letters), what is invisible (zero-width spaces and joiners, soft hyphens, byte-order marks) is not there. Ideographs,
kana and other syllables written in a row are words of their own, without marks of voicing. Vowel signs and the
lengthening stroke of Arabic are dropped as diacritics are. Scripts of letters without spaces between words (Thai, Lao,
Khmer, Burmese, Javanese, ...) are cut before letters that a hash of two letters chooses, one in four: what is copied is
cut in the same places, whatever stands around it.
"""

from __future__ import annotations

import functools
import unicodedata
from bisect import bisect_right
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

SEPARATOR, LETTER, DROPPED, HYPHEN, IDEOGRAPH, UNSPACED, INVISIBLE = range(7)
PLANES = 0x30000  # code points that the kernels have tables for; beyond are ideographs, what is invisible and no text
_APOSTROPHES = frozenset("'’‘ʼ`´")
_HYPHENS = frozenset("-‐")
_SIGNS = frozenset("™℠🅪🅫🅬")  # that a name is a mark: no letters of the word before
_SOFT_HYPHEN = 0xAD
_UNDECOMPOSED = {"æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ł": "l", "þ": "th", "ð": "d", "ı": "i", "ħ": "h"}
_BASIS, _PRIME = 0xCBF29CE484222325, 0x100000001B3  # FNV-1a, 64 bit
_LENGTHENING = frozenset("\u0640\u07fa")  # tatweel: a stroke that makes a word as wide as its line
_IDEOGRAPHS = ((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_SYLLABLES = (
    (0x3040, 0x30FF),  # kana
    (0x31F0, 0x31FF),
    (0xA000, 0xA48F),  # Yi
    (0xA500, 0xA63F),  # Vai
    (0x12000, 0x1254F),  # cuneiform
    (0x13000, 0x1342F),  # hieroglyphs
    (0x17000, 0x18D8F),  # Tangut, Khitan
    (0x1AFF0, 0x1B2FF),  # kana, Nushu
)
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A00, 0x1A1F),  # Buginese
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x1BC0, 0x1BFF),  # Batak
    (0xA980, 0xA9DF),  # Javanese
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAADF),  # Burmese, Tai Viet
    (0x11700, 0x1174F),  # Ahom
)
_IGNORABLE = (  # Default_Ignorable_Code_Point of Unicode, but for what its category says
    (0x034F, 0x034F),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x2060, 0x206F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0xE0000, 0xE0FFF),
)


class Words(NamedTuple):
    """The words of one text: 64-bit hashes and the byte ranges [start, end) they came from, all of shape [n]."""

    hashes: NDArray[np.uint64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


def fold(character: str) -> tuple[int, str]:
    """(class, folded form) of one character; the form is empty for all but letters and ideographs."""
    if character in _APOSTROPHES:
        return DROPPED, ""
    if character in _SIGNS:
        return SEPARATOR, ""
    decomposed = _decomposed(character)
    if decomposed == character and len(decomposed) == 1:
        kind = _kind(character)
        return kind, _UNDECOMPOSED.get(character, character) if kind in (LETTER, UNSPACED, IDEOGRAPH) else ""
    parts = [(c, kind) for c in decomposed if (kind := _kind(c)) not in (DROPPED, INVISIBLE)]
    if not parts:
        return (INVISIBLE if all(_kind(c) == INVISIBLE for c in decomposed) else DROPPED), ""
    letters = [(c, kind) for c, kind in parts if kind in (LETTER, UNSPACED, IDEOGRAPH)]
    if not letters:
        return HYPHEN if parts[0][1] == HYPHEN and len(parts) == 1 else SEPARATOR, ""
    form = "".join(_UNDECOMPOSED.get(c, c) for c, _ in letters)
    if any(kind == IDEOGRAPH for _, kind in letters):
        return IDEOGRAPH, form
    category = unicodedata.category(character)[0]
    if len(letters) < len(parts) and category != "L":  # with signs: (a), 1., °C and what is several words, such as 1/2
        places = [at for at, (_, kind) in enumerate(parts) if kind in (LETTER, UNSPACED)]
        if places[-1] - places[0] < len(places):
            return IDEOGRAPH, form
        return (LETTER, form) if category == "N" else (SEPARATOR, "")
    return letters[0][1], form


def _kind(character: str) -> int:
    """The class of a character that stands for no other."""
    code, category = ord(character), unicodedata.category(character)
    if _within(code, _IDEOGRAPHS):
        return IDEOGRAPH
    if character in _APOSTROPHES or character in _LENGTHENING:
        return DROPPED
    if category == "Cf" or _within(code, _IGNORABLE):
        return INVISIBLE
    if character in _HYPHENS:
        return HYPHEN
    if code >= PLANES:
        return SEPARATOR
    if category[0] == "M":
        return DROPPED
    if category[0] not in "LN":
        return SEPARATOR
    if _within(code, _SYLLABLES):
        return IDEOGRAPH
    return UNSPACED if category[0] == "L" and _within(code, _UNSPACED) else LETTER


def _within(code: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    at = bisect_right(ranges, (code, PLANES << 8)) - 1
    return at >= 0 and code <= ranges[at][1]


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
    """Built once per process, in about 0.3 s."""
    classes = np.zeros(PLANES, np.uint8)
    offsets = np.zeros(PLANES + 1, np.int32)
    flat: list[int] = []
    for code in range(PLANES):
        if 0xD800 <= code < 0xE000:
            form = ""
        elif 0x3400 <= code <= 0x9FFF or 0x20000 <= code < 0x2F800:  # three quarters of all: what ``fold`` says of them
            classes[code], form = IDEOGRAPH, chr(code)
        else:
            classes[code], form = fold(chr(code))
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
    if code <= 0x3FFFF:
        return IDEOGRAPH
    return INVISIBLE if 0xE0000 <= code <= 0xE0FFF else SEPARATOR


@njit(cache=True, nogil=True, inline="always")
def _begins(before: Any, code: Any) -> Any:
    """Whether a letter of a script without spaces begins a word after the letter ``before``. Never inside what Lao also
    writes as one letter."""
    if before == 0xEAB and code in (0xE99, 0xEA1):
        return False
    return ((before * 31 + code) * 0x9E3779B1 >> 16) & 3 == 0


@njit(cache=True, nogil=True, inline="always")
def _after_invisible(data: Any, i: Any, classes: Any) -> Any:
    """The first byte from ``i`` on that begins no invisible character."""
    while i < len(data) and data[i] >= 0x80:
        code, length = _decode(data, i)
        if _class_of(code, classes) != INVISIBLE:
            break
        i += length
    return i


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
                h = np.uint64(_BASIS)
                if code < PLANES:
                    for k in range(offsets[code], offsets[code + 1]):
                        h = (h ^ np.uint64(flat[k])) * np.uint64(_PRIME)
                else:
                    h = (h ^ np.uint64(code)) * np.uint64(_PRIME)
                hashes[count] = _mixed(h)
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
                before = np.int64(flat[offsets[code + 1] - 1])
            elif kind == LETTER and before:
                break
            if kind in (LETTER, UNSPACED):
                for k in range(offsets[code], offsets[code + 1]):
                    h = (h ^ np.uint64(flat[k])) * np.uint64(_PRIME)
                i += length
                end = i
            elif kind == HYPHEN or code == _SOFT_HYPHEN:
                j = _after_invisible(data, i + length, classes)
                if j < n and data[j] == 10:
                    j += 1
                    while j < n and (data[j] == 32 or data[j] == 9):
                        j += 1
                    j = _after_invisible(data, j, classes)
                if j < n and _class_of(_decode(data, j)[0], classes) == LETTER:
                    i = j
                elif kind == HYPHEN:
                    break
                else:
                    i += length
            elif kind in (DROPPED, INVISIBLE):
                i += length
            else:
                break
        hashes[count], starts[count], ends[count] = _mixed(h), start, end
        count += 1
    return count, i
