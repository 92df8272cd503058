"""Exclusion lists: text that stands in evaluation documents and says nothing about contamination.

Hashes of ``LIST_NGRAM`` words each, subtracted from the index. The user's own lists are texts (``exclude:`` in the
study file: sources that everybody quotes, such as a bible or a collection of proverbs); one list is built in, the
wording of Project Gutenberg's headers and licences. It holds hashes, no text, and was made by

    python -m stages.data.decontaminate.exclude FILE... > stages/data/decontaminate/lists/project-gutenberg-1.csv

from files with such a header or licence; a changed list gets a new number, for it changes what is found.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.data.decontaminate.config import DecontaminateConfig, Excluded
from stages.data.matching.boilerplate import LIST_NGRAM, body
from stages.data.matching.index import ngrams
from stages.data.matching.normalize import words
from stages.data.pinned import unchanged
from stages.stage import StageError

LISTS = Path(__file__).with_name("lists")


def excluded_hashes(config: DecontaminateConfig) -> NDArray[np.uint64]:
    """Sorted hashes of the built-in list and of the texts of ``exclude``.

    Raises StageError where a text changed after the plan was made or cannot be read.
    """
    parts = [np.empty(0, np.uint64)]
    if config.boilerplate != "none":
        with (LISTS / f"{config.boilerplate}.csv").open(newline="") as file:
            rows = csv.reader(file)
            next(rows)
            parts.append(np.array([int(row[0], 16) for row in rows], np.uint64))
    for number, source in enumerate(config.exclude):
        parts += [hashes_of(text) for text in _texts(source, f"decontaminate.exclude.{number}")]
    return np.unique(np.concatenate(parts))


def hashes_of(text: bytes) -> NDArray[np.uint64]:
    """Every run of ``LIST_NGRAM`` words of ``text``, in order."""
    return ngrams(words(text).hashes, LIST_NGRAM)


def _texts(excluded: Excluded, field: str) -> Iterable[bytes]:
    from stages.data.corpus.files import DigestCache
    from stages.data.corpus.pin import list_files, listing_digest
    from stages.data.corpus.readers import read

    source = excluded.source()
    files = list_files(source, DigestCache(None), field)
    unchanged(listing_digest(files), excluded.pin, field=f"{field}.pin", what="the text to exclude")
    for file in files:
        for raw in read(source, file):
            if raw.problem:
                raise StageError(
                    f"{raw.id} cannot be read: {raw.problem} ({raw.detail})",
                    field=f"{field}.url",
                    value=excluded.url,
                    allowed="UTF-8 text files, or Parquet files with a column text",
                    fix="mend the file or leave it out",
                )
            yield raw.text


def main(files: Sequence[str]) -> None:
    """Print the list of the headers and licences of ``files``; of a file without a body between marks, all of it."""
    found: Counter[int] = Counter()
    for name in files:
        text = Path(name).read_bytes()
        start, end = body(text)
        outside = [text] if (start, end) == (0, len(text)) else [text[:start], text[end:]]
        found.update({int(h) for part in outside for h in hashes_of(part)})
    print(f"hash of {LIST_NGRAM} words")
    for h in sorted(found):
        print(f"{h:016x}")


if __name__ == "__main__":
    main(sys.argv[1:])
