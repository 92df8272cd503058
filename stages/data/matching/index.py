"""Every n-gram of the evaluation documents: an open-addressing table with postings behind a bitmap prefilter.

Built once, then read by all scanning tasks from shared memory. N-grams found in more than ``max_books_per_ngram``
evaluation *works* are common phrases and left out; copies and editions of one another count as one work, else text
that stands in three evaluation documents could never be found in training.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import xxhash
from numba import njit
from numpy.typing import NDArray

from stages.data.matching.boilerplate import LIST_NGRAM, body
from stages.data.matching.normalize import Words, words

SEVERAL = 1 << 63
"""In a slot's second number: what stands below is not a place (a word counted through all documents) but where in
``postings`` the places begin, and above bit 40 how many there are."""
LOAD = 0.75  # of the table's slots are taken
MULTIPLIER = 0x9E3779B97F4A7C15  # of the rolling hash: odd, so that no word's weight ever becomes 0
MAX_POSTINGS = 16  # of one n-gram: a refrain needs no more to be chained
NEVER = 1 << 40  # words: longer than any chain
MIN_ITEM_WORDS = 8  # of a document that is found only as a whole
SAME_WORK_SHARE = 0.5  # of the smaller document's n-grams: copies and editions lie above 0.8, retellings below 0.1
SHARED_SHARE = 0.01  # evaluation documents that share more than this are named in the audit


class Index(NamedTuple):
    """Evaluation documents and their n-grams. B documents, W words, P postings, S slots, K bits.

    Of the n-grams nearly all stand in one place, which the table holds itself: in contaminated text every look-up is a
    cache miss, and one is better than four.

    A book's words are ``hashes[first_word[b] : first_word[b + 1]]``; positions count from the book's first word.
    """

    book_ids: list[str]
    ngram: int
    text: NDArray[np.uint8]  # all texts, one after the other
    first_byte: NDArray[np.int64]  # [B + 1]
    hashes: NDArray[np.uint32]  # [W] lower half of each word's hash: enough to align words that shared n-grams lead to
    starts: NDArray[np.uint32]  # [W], bytes, within the book
    ends: NDArray[np.uint32]  # [W]
    first_word: NDArray[np.int64]  # [B + 1]
    table: NDArray[np.uint64]  # [S, 2]: n-gram (0 in an empty slot) and where it stands, see ``SEVERAL``
    postings: NDArray[np.uint32]  # [P] places of n-grams with several
    bitmap: NDArray[np.uint64]  # [K / 64]; K is a power of two
    excluded: NDArray[np.int64]  # [B] n-grams taken out because they stand in the exclusion lists
    shared: list[tuple[int, int, float]]  # (book, book, shared share of the smaller one's n-grams), largest first
    whole: NDArray[np.int64]  # [B] words from its first to its last n-gram in the table; NEVER: none, or too short
    floor: int  # the least of ``whole``
    min_item_words: int  # of a document that is found as a whole

    @property
    def book_words(self) -> list[int]:
        """Words per evaluation document, at least 1."""
        return [max(1, int(words)) for words in np.diff(self.first_word)]

    def words_in(self, book: int) -> int:
        """Words of one evaluation document."""
        return int(self.first_word[book + 1] - self.first_word[book])

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return sum(array.nbytes for array in self if isinstance(array, np.ndarray))

    @property
    def digest(self) -> str:
        """16 hex digits over ids, texts and n-grams: indexes with the same digest find the same."""
        found = xxhash.xxh3_64(repr((self.book_ids, self.ngram)).encode())
        for array in (self.text, self.first_byte, self.first_word, self.table, self.postings, self.whole):
            found.update(np.ascontiguousarray(array).view(np.uint8).data)
        return found.hexdigest()

    def evidence(self, book: int, start: int, end: int) -> str:
        """Bytes [start, end) of one evaluation document as text."""
        base = int(self.first_byte[book])
        return self.text[base + start : base + end].tobytes().decode(errors="replace")


def build(
    books: list[tuple[str, bytes]],
    ngram: int,
    max_books_per_ngram: int,
    excluded: NDArray[np.uint64] | None = None,
    min_item_words: int = MIN_ITEM_WORDS,
) -> Index:
    """Index of (id, UTF-8 text) of at least one evaluation document.

    Licences and front matter of transcribers (``boilerplate.body``) are left out. ``excluded``: sorted hashes of
    ``LIST_NGRAM`` words each; n-grams made of such words alone are no evidence (publicly quoted sources, licences).
    ``min_item_words``: a document shorter than a span is found as a whole if it has as many.
    """
    found = [_body_words(text) for _, text in books]
    grams = np.concatenate([ngrams(each.hashes, ngram) for each in found])
    counts = [max(0, len(each.hashes) - ngram + 1) for each in found]
    book = np.repeat(np.arange(len(books), dtype=np.int32), counts)
    word = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    quoted = np.zeros(len(grams), bool)
    if excluded is not None and len(excluded):
        quoted = np.concatenate([_quoted(each.hashes, ngram, excluded) for each in found])
    removed = np.bincount(book[quoted], minlength=len(books)).astype(np.int64)
    grams, book, word = grams[~quoted], book[~quoted], word[~quoted]

    order = np.argsort(grams, kind="stable")  # stable: postings stay in order of book and position
    grams, book, word = grams[order], book[order], word[order]
    new = _changes(grams)
    first, group = np.flatnonzero(new), np.cumsum(new) - 1
    shared = _shared(group, book, len(books))
    keep = _works_per_group(group, _works(shared, len(books))[book], len(first)) <= max_books_per_ngram
    chosen = keep[group] & (np.arange(len(grams)) - first[group] < MAX_POSTINGS)
    kept_grams = grams[first[keep]]

    table = np.zeros((int(len(kept_grams) / LOAD) + 16, 2), np.uint64)
    bitmap = np.zeros(_power_of_two(16 * len(kept_grams), 1 << 16) // 64, np.uint64)
    first_word = _offsets([len(each.hashes) for each in found])
    places = (first_word[book] + word)[chosen].astype(np.uint32)
    counts_kept = np.bincount(group[chosen], minlength=len(first))[keep]
    values, postings = _values(places, counts_kept)
    whole = _whole(book[chosen], word[chosen], ngram, np.diff(first_word), min_item_words)
    _insert(kept_grams, values, table, bitmap)
    index = Index(
        book_ids=[name for name, _ in books],
        ngram=ngram,
        text=np.frombuffer(b"".join(text for _, text in books), np.uint8),
        first_byte=_offsets([len(text) for _, text in books]),
        hashes=np.concatenate([each.hashes for each in found]).astype(np.uint32),
        starts=np.concatenate([each.starts for each in found]).astype(np.uint32),
        ends=np.concatenate([each.ends for each in found]).astype(np.uint32),
        first_word=first_word,
        table=table,
        postings=postings,
        bitmap=bitmap,
        excluded=removed,
        shared=sorted((pair for pair in shared if pair[2] >= SHARED_SHARE), key=lambda pair: (-pair[2], pair)),
        whole=whole,
        floor=int(whole.min()),
        min_item_words=min_item_words,
    )
    for array in index:
        if isinstance(array, np.ndarray):
            # As in Ray's object store: kernels are compiled per array type, and once must do for all processes.
            array.flags.writeable = False
    return index


def _whole(
    book: NDArray[np.int32], word: NDArray[np.int32], n: int, words: NDArray[np.int64], least: int
) -> NDArray[np.int64]:
    """See ``Index.whole``: how long a chain through the whole of a document is."""
    first, last = np.full(len(words), NEVER, np.int64), np.full(len(words), -1, np.int64)
    np.minimum.at(first, book, word)
    np.maximum.at(last, book, word)
    return np.where((last >= 0) & (words >= least), last + n - first, NEVER)


@njit(cache=True, nogil=True)
def shortest(least: int) -> int:
    """Words of the shortest chain that may grow into a span of ``least`` words. With half of them one more is found of
    20 passages of 60 words with a tenth of the letters misread, but manuals are scanned a tenth slower."""
    return 2 * least // 3


def hidden(index: Index, min_span_words: int) -> dict[int, str]:
    """Evaluation documents that no scan can find, whatever the training text holds -> why."""
    found = {}
    for book, whole in enumerate(index.whole.tolist()):
        count = index.words_in(book)
        if whole < NEVER and (count < min_span_words or whole >= shortest(min_span_words)):
            continue
        if count < min(min_span_words, max(index.ngram, index.min_item_words)):
            found[book] = f"{count} word{'s' if count > 1 else ''}, too few" if count else "no words"
        else:
            found[book] = "nothing but text of other evaluation documents or of the exclusion lists"
    return found


def _body_words(text: bytes) -> Words:
    start, end = body(text)
    found = words(text[start:end])
    return Words(found.hashes, found.starts + start, found.ends + start)


def _quoted(hashes: NDArray[np.uint64], n: int, excluded: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which n-grams consist of words that stand inside an excluded run of ``LIST_NGRAM`` words, shape as ``ngrams``."""
    runs = ngrams(hashes, LIST_NGRAM)
    listed = excluded[np.minimum(np.searchsorted(excluded, runs), len(excluded) - 1)] == runs
    inside = np.zeros(len(hashes), np.int64)
    for k in range(LIST_NGRAM):
        inside[k : k + len(listed)] |= listed
    free = np.concatenate([np.zeros(1, np.int64), np.cumsum(1 - inside)])
    size = max(0, len(hashes) - n + 1)
    quoted: NDArray[np.bool_] = free[n : n + size] == free[:size]
    return quoted


def ngrams(hashes: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Hash of every run of ``n`` words, shape [max(0, words - n + 1)]."""
    out = np.empty(max(0, len(hashes) - n + 1), np.uint64)
    _ngrams(hashes, n, out)
    return out


@njit(cache=True, nogil=True)
def _ngrams(hashes: Any, n: int, out: Any) -> None:
    """A polynomial of the word hashes, rolled along: h[0] m^(n-1) + ... + h[n-1] modulo 2^64."""
    m = np.uint64(MULTIPLIER)
    last = leaving(n)
    h = np.uint64(0)
    for i in range(len(hashes)):
        h = h * m + hashes[i]
        if i >= n:
            h -= hashes[i - n] * last
        if i >= n - 1:
            out[i - n + 1] = max(h, np.uint64(1))  # 0 marks an empty slot


@njit(cache=True, nogil=True)
def leaving(n: int) -> Any:
    """m^n modulo 2^64: the weight with which a word leaves the rolling hash."""
    power = np.uint64(1)
    for _ in range(n):
        power *= np.uint64(MULTIPLIER)
    return power


def _values(places: NDArray[np.uint32], counts: NDArray[Any]) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """(second numbers of the slots, postings) of n-grams that stand in ``counts`` places each."""
    first = np.cumsum(counts) - counts
    several = counts > 1
    values = places[first].astype(np.uint64)
    of_several = np.repeat(several, counts)
    begin = np.cumsum(np.where(several, counts, 0)) - np.where(several, counts, 0)
    packed = np.uint64(SEVERAL) | (counts.astype(np.uint64) << np.uint64(40)) | begin.astype(np.uint64)
    return np.where(several, packed, values), places[of_several]


@njit(cache=True, nogil=True)
def slot_of(gram: Any, slots: int) -> Any:
    """Where the search for an n-gram begins: its upper half, scaled, so that any number of slots will do."""
    return np.int64(((gram >> np.uint64(32)) * np.uint64(slots)) >> np.uint64(32))


@njit(cache=True, nogil=True, inline="always")
def bits_of(gram: Any, bitmap: Any) -> Any:
    """(number, bits) of the word of the bitmap that an n-gram has its two bits in: one access to memory, and of the
    n-grams that are not in the index a hundredth pass, where one bit lets through a twentieth."""
    one = np.uint64(1)
    return (
        (gram >> np.uint64(26)) & np.uint64(len(bitmap) - 1),
        one << ((gram >> np.uint64(20)) & np.uint64(63)) | one << (gram & np.uint64(63)),
    )


@njit(cache=True, nogil=True)
def _insert(grams: Any, values: Any, table: Any, bitmap: Any) -> None:
    for g in range(len(grams)):
        word, bits = bits_of(grams[g], bitmap)
        bitmap[word] |= bits
        slot = slot_of(grams[g], len(table))
        while table[slot, 0] != 0:
            slot = slot + 1 if slot + 1 < len(table) else 0
        table[slot, 0], table[slot, 1] = grams[g], values[g]


def _shared(group: NDArray[Any], book: NDArray[np.int32], books: int) -> list[tuple[int, int, float]]:
    """(book a, book b, shared distinct n-grams over those of the one that has fewer), from n-grams in ≤ 9 books."""
    owned = group.astype(np.int64) * books + book  # sorted: the sort by n-gram was stable
    owned = owned[_changes(owned)]
    gram, owner = owned // books, owned % books
    own = np.bincount(owner, minlength=books)
    keys = [np.empty(0, np.int64)]
    for lag in range(1, min(9, len(gram))):
        same = gram[:-lag] == gram[lag:]
        keys.append(owner[:-lag][same] * books + owner[lag:][same])
    key, count = np.unique(np.sort(np.concatenate(keys)), return_counts=True)
    least = np.minimum(own[key // books], own[key % books])
    return [(int(k // books), int(k % books), float(c / m)) for k, c, m in zip(key, count, least, strict=True)]


def _works(shared: list[tuple[int, int, float]], books: int) -> NDArray[np.int64]:
    """Number of the work each evaluation document belongs to: documents that are copies of one another share one."""
    parent = list(range(books))

    def root(b: int) -> int:
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        return b

    for a, b, share in shared:
        if share >= SAME_WORK_SHARE:
            parent[max(root(a), root(b))] = min(root(a), root(b))
    return np.array([root(b) for b in range(books)], np.int64)


def _works_per_group(group: NDArray[Any], work: NDArray[Any], groups: int) -> NDArray[np.int64]:
    """Distinct works per n-gram."""
    width = int(work.max(initial=0)) + 1
    owned = np.sort(group.astype(np.int64) * width + work)
    count: NDArray[np.int64] = np.bincount(owned[_changes(owned)] // width, minlength=groups)
    return count


def _changes(ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a sorted array has a value for the first time. (np.unique hashes instead: 20 times slower here.)"""
    return np.r_[True, ordered[1:] != ordered[:-1]] if len(ordered) else np.empty(0, bool)


def _offsets(counts: list[int] | NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(counts, np.int64))])


def _power_of_two(least: int, floor: int) -> int:
    return max(floor, 1 << max(0, least - 1).bit_length())
