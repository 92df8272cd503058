"""Tokens of the chunks of text seen before: a word that comes again is not encoded again.

Texts are cut at a tokenizer's ``Seams`` into chunks, mostly a word with the space before it, or a punctuation mark.
The library is asked for each distinct chunk once; in running text of some megabytes that is one chunk in forty.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stages.data.tokens.seams import Seams

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNKS = 2**19  # kept at most: some 25 MB for English text
LONGEST = 64  # bytes of a chunk worth keeping; longer ones hardly come again
LEARNT = 2**16  # chunks asked for; from then on text of which little is known (random words) is no longer learnt
PAUSE = 16  # calls at most that go to the library unseen after one that was hardly known
DEAR = 24  # bytes in running text that the library encodes while it encodes a chunk by itself
_LETTER, _WORD, _MARK, _SPACE, _BREAK = 1, 2, 4, 8, 16  # of a character; _MARK is _WORD << 1: see ``_scan``


class KnownChunks:
    """What of one tokenizer is known. Grows with use up to ``CHUNKS``, then begins anew."""

    def __init__(self, tokenizer: Tokenizer, seams: Seams) -> None:
        self._tokenizer = tokenizer
        self._classes = _classes(seams)
        # Open addressing: the upper half of the hash, and the number of the chunk plus one (0: free).
        self._slots: NDArray[np.uint64] = np.zeros(2 * CHUNKS, np.uint64)
        # Chunk i is keys[key_at[i] : key_at[i + 1]], its tokens are tokens[token_at[i] : token_at[i + 1]].
        self._keys: NDArray[np.uint8] = np.empty(CHUNKS * LONGEST, np.uint8)
        self._key_at: NDArray[np.int32] = np.zeros(CHUNKS + 1, np.int32)
        self._tokens: NDArray[np.int32] = np.empty(2**16, np.int32)
        self._token_at: NDArray[np.int64] = np.zeros(CHUNKS + 1, np.int64)
        self.count = 0
        self._asked = 0
        self._pause = self._left = 0  # calls to go to the library: after the next hardly known one, and from now on

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], list[int], list[int]]:
        """Tokens of the texts, one after the other (no special ones); tokens of each; words of each."""
        if self._left:
            self._left -= 1
            return self._whole(texts, [len(text.split()) for text in texts])
        if self.count > CHUNKS * 3 // 4:
            self._slots.fill(0)
            self.count = 0
        encoded = [text.encode() for text in texts]
        data = np.frombuffer(b"".join(encoded), np.uint8)
        bounds = np.cumsum([0, *map(len, encoded)])
        chunks: NDArray[np.int32] = np.empty(len(data), np.int32)  # where known; -1 - i: the i-th that is not kept
        strange: NDArray[np.int64] = np.empty((len(data), 2), np.int64)  # of those, beginning and end in ``data``
        of_text: NDArray[np.int64] = np.zeros((2, len(texts)), np.int64)  # chunks, words
        taken: NDArray[np.int32] = np.empty(len(data), np.int32)  # slots of the new chunks
        first = self.count
        self.count, others = _scan(
            data, bounds, self._classes, self._slots, self._keys, self._key_at, first, chunks, strange, taken, of_text
        )
        words = of_text[1].tolist()
        new = self.count - first
        long = int((strange[:others, 1] - strange[:others, 0]).sum())
        dear = self._asked >= LEARNT and (new + others) * DEAR > len(data)
        self._pause = min(max(2 * self._pause, 1), PAUSE) if dear or 2 * long > len(data) else 0
        self._left = self._pause
        if dear:
            self._slots[taken[:new]] = 0  # the last ones added, so no other stands behind them
            self.count = first
            return self._whole(texts, words)
        self._asked += new + others
        other_tokens, other_at = self._ask(first, data, strange[:others])
        lengths: NDArray[np.int64] = np.zeros(len(texts), np.int64)
        total = _measure(chunks, of_text[0], self._token_at, other_at, lengths)
        tokens: NDArray[np.int32] = np.empty(total, np.int32)
        _gather(chunks[: of_text[0].sum()], self._token_at, self._tokens, other_at, other_tokens, tokens)
        return tokens, lengths.tolist(), words

    def _whole(self, texts: Sequence[str], words: list[int]) -> tuple[NDArray[np.int32], list[int], list[int]]:
        ids = [e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        each = list(map(len, ids))
        return np.fromiter(chain.from_iterable(ids), np.int32, sum(each)), each, words

    def chunks(self) -> list[str]:
        """Those that are known."""
        return self._texts(0)

    def _texts(self, first: int) -> list[str]:
        places = self._key_at[first : self.count + 1]
        keys = self._keys[places[0] : places[-1]].tobytes()
        return [keys[start:end].decode() for start, end in pairwise((places - places[0]).tolist())]

    def _ask(
        self, first: int, data: NDArray[np.uint8], strange: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Have the chunks from ``first`` on encoded, and those that are not kept: the tokens of these, and where."""
        new = self._texts(first)
        others = [data[start:end].tobytes().decode() for start, end in strange.tolist()]
        encodings = self._tokenizer.encode_batch_fast(new + others, add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        at = np.cumsum([0, *map(len, ids)])
        flat = np.fromiter(chain.from_iterable(ids), np.int32, int(at[-1]))
        begin, kept = int(self._token_at[first]), int(at[len(new)])
        if begin + kept > len(self._tokens):
            grown: NDArray[np.int32] = np.empty(max(begin + kept, 2 * len(self._tokens)), np.int32)
            grown[:begin] = self._tokens[:begin]
            self._tokens = grown
        self._tokens[begin : begin + kept] = flat[:kept]
        self._token_at[first : self.count + 1] = begin + at[: len(new) + 1]
        return flat[kept:], at[len(new) :] - kept


@lru_cache(maxsize=4)
def _classes(seams: Seams) -> NDArray[np.uint8]:
    """What each of the first 65,536 characters is, as ``str`` has it; later ones count as nothing."""
    breaks = " " * seams.space + "\n" * seams.line
    kinds = {
        _LETTER: str.isalpha,
        _WORD: str.isalnum,
        _MARK: seams.punctuation.__contains__,
        _SPACE: str.isspace,
        _BREAK: breaks.__contains__,
    }
    return np.array([sum(bit for bit, is_it in kinds.items() if is_it(chr(i))) for i in range(2**16)], np.uint8)


@njit(cache=True, nogil=True, inline="always")
def _class(data: Any, i: int, classes: Any) -> Any:
    """Of the character at ``i`` of valid UTF-8."""
    b = np.int64(data[i])
    if b < 0x80:
        return classes[b]
    if b < 0xE0:
        return classes[(b & 0x1F) << 6 | data[i + 1] & 0x3F]
    if b < 0xF0:
        return classes[(b & 0x0F) << 12 | (data[i + 1] & 0x3F) << 6 | data[i + 2] & 0x3F]
    return np.uint8(0)


@njit(cache=True, nogil=True)
def _scan(
    data: Any,
    bounds: Any,
    classes: Any,
    slots: Any,
    keys: Any,
    key_at: Any,
    count: int,
    chunks: Any,
    strange: Any,
    taken: Any,
    of_text: Any,
) -> Any:
    """Cuts the texts, looks their chunks up and adds new ones. Returns (chunks known, chunks not kept)."""
    others = at = 0
    count_before = count
    for text in range(len(bounds) - 1):
        end = bounds[text + 1]
        i = start = bounds[text]
        h = np.uint64(0xCBF29CE484222325)  # FNV-1a
        first, words, before = at, 0, np.uint8(_SPACE)
        kind = before if start == end else _class(data, start, classes)
        while i < end:
            words += int(before & _SPACE > kind & _SPACE)
            h = (h ^ np.uint64(data[i])) * np.uint64(0x100000001B3)
            i += 1
            while i < end and data[i] & 0xC0 == 0x80:  # the other bytes of the character
                h = (h ^ np.uint64(data[i])) * np.uint64(0x100000001B3)
                i += 1
            before = kind
            if i < end:
                kind = _class(data, i, classes)
                # One branch for both kinds of seam: three that the processor cannot foresee take five times as long.
                if not kind & (_BREAK | (before & _WORD) << 1):
                    continue
                if kind & _BREAK and (i + 1 == end or not _class(data, i + 1, classes) & _LETTER):
                    continue
            # A seam, or the text's end: the chunk start .. i is looked up, and added where it is new.
            length: int = i - start
            place: int | np.int64 = -1
            if length <= LONGEST:
                mask, low = np.uint64(len(slots) - 1), np.uint64(0xFFFFFFFF)
                slot = (h ^ h >> np.uint64(32)) & mask
                while slots[slot]:
                    if slots[slot] >> np.uint64(32) == h >> np.uint64(32):
                        known = np.int64(slots[slot] & low) - 1
                        key = key_at[known]
                        if key_at[known + 1] - key == length:
                            k = 0
                            while k < length and keys[key + k] == data[start + k]:
                                k += 1
                            if k == length:
                                place = known
                                break
                    slot = (slot + np.uint64(1)) & mask
                if place < 0 and count < len(key_at) - 1:
                    slots[slot] = h & ~low | np.uint64(count + 1)
                    taken[count - count_before] = slot
                    key = key_at[count]
                    for k in range(length):
                        keys[key + k] = data[start + k]
                    key_at[count + 1] = key + length
                    place = count
                    count += 1
            if place < 0:
                strange[others, 0], strange[others, 1] = start, i
                others += 1
                place = -others
            chunks[at] = place
            at, start, h = at + 1, i, np.uint64(0xCBF29CE484222325)
        of_text[0, text], of_text[1, text] = at - first, words
    return count, others


@njit(cache=True, nogil=True)
def _measure(chunks: Any, of_text: Any, token_at: Any, other_at: Any, lengths: Any) -> int:
    """Writes the tokens of each text; returns those of all."""
    at = total = 0
    for text in range(len(of_text)):
        for i in range(at, at + of_text[text]):
            place = chunks[i]
            if place >= 0:
                lengths[text] += token_at[place + 1] - token_at[place]
            else:
                lengths[text] += other_at[-place] - other_at[-place - 1]
        at += of_text[text]
        total += lengths[text]
    return total


@njit(cache=True, nogil=True)
def _gather(chunks: Any, token_at: Any, tokens: Any, other_at: Any, other_tokens: Any, out: Any) -> None:
    at = 0
    for place in chunks:
        if place >= 0:
            for i in range(token_at[place], token_at[place + 1]):
                out[at] = tokens[i]
                at += 1
        else:
            for i in range(other_at[-place - 1], other_at[-place]):
                out[at] = other_tokens[i]
                at += 1
