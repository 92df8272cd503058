"""MB of text per second of one core, from bytes to MinHash bands: ``python -m bench.dedup [FOLDER]``.

The text is that of ``FOLDER/**/*.txt``, or the manuals that come with Python. All rows do the same, 100 permutations
over the 5-grams of words of every document; ``datasketch`` and ``rensa`` take part where they can be imported:

    pip install --no-deps --target /tmp/bench datasketch==2.0.0 rensa==0.5.0
    PYTHONPATH=/tmp/bench python -m bench.dedup
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.dedup_accuracy import texts_at_hand
from stages.data.dedup.shingles import bands, minhash, permutations, shingle
from stages.data.matching.normalize import words
from tests.stages.words_reference import words_reference

N, PERMUTATIONS, ROWS = 5, 100, 5
OURS_BYTES, THEIRS_BYTES = 20_000_000, 1_000_000  # the slow ones see less text: all rates are per byte


def main(arguments: list[str]) -> None:
    """Print one table; every row is the best of five rounds (three for the others) in CPU time, after a warm-up."""
    texts = []
    for text in texts_at_hand(arguments[0] if arguments else None):
        texts.append(text.encode())
        if sum(map(len, texts)) >= OURS_BYTES:
            break
    few = _first(texts, THEIRS_BYTES)
    strings = [text.decode(errors="ignore") for text in few]
    by = permutations(PERMUTATIONS)
    sets = [shingle(text, N).grams for text in texts]
    size, small = sum(map(len, texts)), sum(map(len, few))
    rows: list[tuple[str, int, Callable[[], object], int]] = [
        ("normalised words alone", size, lambda: [words(text) for text in texts], 5),
        ("sets of 5-grams", size, lambda: [shingle(text, N) for text in texts], 5),
        ("MinHash of those sets alone", size, lambda: [bands(minhash(grams, by), ROWS) for grams in sets], 5),
        ("bytes to MinHash bands", size, lambda: [bands(minhash(shingle(t, N).grams, by), ROWS) for t in texts], 5),
        ("the same in plain Python and numpy", small, lambda: [_plain(text) for text in strings], 3),
    ]
    if importlib.util.find_spec("rensa"):
        rows.append(("rensa, R-MinHash", small, lambda: [_rensa(text) for text in strings], 3))
    if importlib.util.find_spec("datasketch"):
        rows.append(("datasketch, MinHash", small, lambda: [_datasketch(text) for text in strings], 3))
    print(f"{len(texts)} documents, {size / 1e6:.1f} MB ({small / 1e6:.1f} MB for all but the first four rows)")
    speeds = [(name, n / 1e6 / _best(work, rounds)) for name, n, work, rounds in rows]
    ours = speeds[3][1]
    print(f"{'':36} {'MB/s':>8} {'ours is':>10}")
    for k, (name, speed) in enumerate(speeds):
        print(f"{name:36} {speed:8.2f} " + (f"{ours / speed:9.1f}x" if k > 3 else ""))
    for name in ("rensa", "datasketch"):
        if not importlib.util.find_spec(name):
            print(f"{name}: not installed (see python -m pydoc bench.dedup)")


def _first(texts: list[bytes], size: int) -> list[bytes]:
    few: list[bytes] = []
    for text in texts:
        few.append(text[: size - sum(map(len, few))])
        if sum(map(len, few)) >= size:
            break
    return few


def _grams(text: str) -> set[str]:
    """As their users write it: lower case, split at blanks."""
    parts = text.lower().split()
    return {" ".join(parts[i : i + N]) for i in range(len(parts) - N + 1)}


def _plain(text: str) -> np.ndarray[Any, Any]:
    """Our own normalisation by its slow reference, 64-bit hashes, and one numpy pass per permutation."""
    parts = [word for word, *_ in words_reference(text)]
    grams = {" ".join(parts[i : i + N]) for i in range(len(parts) - N + 1)}
    hashed = [int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=4).digest(), "little") for gram in grams]
    values, by = np.array(hashed, np.uint32), permutations(PERMUTATIONS)
    return np.array([(values * factor + offset).min() for factor, offset in zip(*by, strict=True)] if hashed else [])


def _rensa(text: str) -> Any:
    import rensa

    found = rensa.RMinHash(num_perm=PERMUTATIONS, seed=1)
    found.update(list(_grams(text)))
    return found.digest()


def _datasketch(text: str) -> Any:
    import datasketch

    found = datasketch.MinHash(num_perm=PERMUTATIONS, seed=1)
    found.update_batch([gram.encode() for gram in _grams(text)])
    return found.digest()


def _best(work: Callable[[], object], rounds: int) -> float:
    work()
    times = []
    for _ in range(rounds):
        started = time.thread_time()
        work()
        times.append(time.thread_time() - started)
    return min(times)


if __name__ == "__main__":
    main(sys.argv[1:])
