"""``stages.data.matching.normalize.words`` said slowly in plain Python, character by character."""

from __future__ import annotations

from stages.data.matching.normalize import DROPPED, HYPHEN, IDEOGRAPH, INVISIBLE, LETTER, UNSPACED, fold

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
            before = ord(form[-1]) if kind == UNSPACED else 0
            start = start if word else position
            word, end = word + form, position + size
        elif (kind == HYPHEN or character == "\u00ad") and word:
            rest = _seen(text[at + 1 :])
            if rest.startswith("\n"):
                rest = _seen(rest[1:].lstrip(" \t"))
            if rest and fold(rest[0])[0] == LETTER:
                skipped = text[at + 1 : len(text) - len(rest)]
                at, position = at + len(skipped), position + len(skipped.encode())
            elif kind == HYPHEN:
                close()
        elif kind not in (DROPPED, INVISIBLE):
            close()
            if kind == IDEOGRAPH:
                found.append((form, position, position + size))
        at, position = at + 1, position + size
    close()
    return [(word, _hash(word), start, end) for word, start, end in found]


def _seen(text: str) -> str:
    """From its first character on that can be seen."""
    while text and fold(text[0])[0] == INVISIBLE:
        text = text[1:]
    return text


def _begins(before: int, code: int) -> bool:
    if chr(before) + chr(code) in ("ຫນ", "ຫມ"):
        return False
    return ((before * 31 + code) * 0x9E3779B1 >> 16) & 3 == 0


def _hash(word: str) -> int:
    h = BASIS
    for character in word:
        h = ((h ^ ord(character)) * PRIME) & MASK
    h ^= h >> 32
    h = (h * 0x9E3779B97F4A7C15) & MASK
    return h ^ (h >> 29)
