"""``stages.data.matching.normalize.words`` said slowly in plain Python, character by character."""

from __future__ import annotations

from stages.data.matching.normalize import DROPPED, HYPHEN, IDEOGRAPH, LETTER, UNSPACED, fold

BASIS, PRIME, MASK = 0xCBF29CE484222325, 0x100000001B3, 2**64 - 1  # FNV-1a, 64 bit


def words_reference(text: str) -> list[tuple[str, int, int, int]]:
    """(folded word, hash, first byte, byte after it) of every word."""
    found: list[tuple[str, int, int]] = []
    word, start, end, position, at, before = "", 0, 0, 0, 0, 0

    def close() -> None:
        nonlocal word
        if word:
            found.append((word, start, end))
        word = ""

    while at < len(text):
        character = text[at]
        size = len(character.encode())
        kind, form = fold(character)
        if word and kind == UNSPACED and (before == 0 or _begins(before, ord(form[0]))):
            close()
        if word and kind == LETTER and before:
            close()
        if kind in (LETTER, UNSPACED):
            before = ord(form[0]) if kind == UNSPACED else 0
            start = start if word else position
            word, end = word + form, position + size
        elif kind == HYPHEN and word:
            rest = text[at + 1 :]
            if rest.startswith("\n"):
                rest = rest[1:].lstrip(" \t")
            if not rest or fold(rest[0])[0] != LETTER:
                close()
            else:
                skipped = text[at + 1 : len(text) - len(rest)]
                at, position = at + len(skipped), position + len(skipped)
        elif kind != DROPPED:
            close()
            if kind == IDEOGRAPH:
                found.append((character, position, position + size))
        at, position = at + 1, position + size
    close()
    return [(word, _hash(word), start, end) for word, start, end in found]


def _begins(before: int, code: int) -> bool:
    return ((before * 31 + code) * 0x9E3779B1 >> 16) & 3 == 0


def _hash(word: str) -> int:
    h = BASIS
    for character in word:
        h = ((h ^ ord(character)) * PRIME) & MASK
    h ^= h >> 32
    h = (h * 0x9E3779B97F4A7C15) & MASK
    return h ^ (h >> 29)
