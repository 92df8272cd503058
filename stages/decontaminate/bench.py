"""MB of text per second of one core: ``python -m stages.decontaminate.bench``.

The text is the standard library's manuals, on every machine with Python. Clean text is scanned against half of it; the
contaminated corpus holds a tenth of evaluation passages. The rows to compare with are the slow reference of the
normaliser, and the usual rule written plainly in Python: flag a document that shares any 13-gram of words.
"""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from stages.corpus.manuals import manual_pages
from stages.decontaminate.chain import scan
from stages.decontaminate.index import build
from stages.decontaminate.normalize import words, words_reference

GAP, DRIFT, SPAN = 25, 25, 30


def main() -> None:
    """Print one table; every row is the best of three rounds after a warm-up."""
    pages = _manuals()
    evaluation, training = pages[::2], pages[1::2]
    index = build([(str(n), page.encode()) for n, page in enumerate(evaluation)], 5, 2)
    clean = "\n".join(training).encode()
    passages = "\n".join(page[: len(page) // 5] for page in evaluation).encode()
    dirty = b"".join(clean[i : i + 90_000] + passages[i // 9 : i // 9 + 10_000] for i in range(0, len(clean), 90_000))
    plain = {gram for page in evaluation for gram in _plain_grams(page)}
    sample = clean[:400_000].decode(errors="ignore")
    rows = [
        ("normalise and hash", len(clean), lambda: words(clean)),
        ("whole chain, clean text", len(clean), lambda: scan(clean, index, GAP, DRIFT, SPAN)),
        ("whole chain, a tenth contaminated", len(dirty), lambda: scan(dirty, index, GAP, DRIFT, SPAN)),
        ("normaliser's slow reference", len(sample), lambda: words_reference(sample)),
        ("plain Python, any shared 13-gram", len(sample), lambda: any(g in plain for g in _plain_grams(sample))),
    ]
    print(f"index of {len(evaluation)} documents, {sum(map(len, evaluation)) / 1e6:.1f} MB of text")
    speeds = [(name, size / 1e6 / _best(work)) for name, size, work in rows]
    slowest = speeds[-1][1]
    print(f"{'':36} {'MB/s':>8} {'ratio':>8}")
    for name, speed in speeds:
        print(f"{name:36} {speed:8.2f} {speed / slowest:8.1f}")


def _manuals() -> list[str]:
    pages = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        pages += [text for _, text in manual_pages(path.name, path.read_text(encoding="utf-8", errors="ignore"))]
    topics = Path(sysconfig.get_paths()["stdlib"], "pydoc_data", "topics.py")
    pages += [text for _, text in manual_pages("stdlib/pydoc_data/topics.py", topics.read_text(encoding="utf-8"))]
    return [page for page in pages if len(page) > 1000]


def _plain_grams(text: str) -> list[tuple[str, ...]]:
    parts = text.lower().split()
    return list(zip(*(parts[i:] for i in range(13)), strict=False))


def _best(work: Callable[[], object], rounds: int = 3) -> float:
    work()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    main()
