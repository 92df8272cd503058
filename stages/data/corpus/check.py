"""What the pinned files say of themselves before any is read as text: half a shard, one file on both sides.

Runs in every plan, so it looks at names, digests and the last bytes of local files only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from stages.data.corpus.config import CorpusSource, IngestConfig, JsonLines, Parquet
from stages.data.corpus.files import ExternalFile, glob_of, is_remote, local_glob, split_of_file
from stages.data.corpus.frames import SPLIT_BYTES, alone
from stages.data.corpus.opened import packed
from stages.stage import StageError

Listed = Sequence[tuple[CorpusSource, Sequence[ExternalFile]]]

MAGIC = b"PAR1"  # at both ends of a Parquet file


def check_files(listed: Listed) -> None:
    """``listed``: every source with its files. Raises StageError for a Parquet file that is not whole, and where all of
    a source's evaluation files are training files too."""
    for index, (source, files) in enumerate(listed):
        if isinstance(source, Parquet):
            for file in files:
                _whole_parquet(file, f"corpus.sources.{index}.url")
    _both_sides(listed)


def in_one_task(config: IngestConfig) -> list[tuple[str, int, str]]:
    """(file, bytes, why) of large local files of JSON Lines that one task reads from beginning to end. Looks at the
    first bytes of packed ones."""
    found = []
    for source in config.sources:
        if not isinstance(source, JsonLines) or is_remote(source.url):
            continue
        for file in local_glob(glob_of(source.url, os.path.lexists)):
            size = os.path.getsize(file)
            if size > SPLIT_BYTES and tuple(source.encoding) != ("utf-8",):
                found.append((file, size, "it may be in another encoding than UTF-8"))
            elif size > SPLIT_BYTES and packed(file) and alone(file):
                found.append(
                    (file, size, "it is packed in one; bgzip, or zstd in several frames, can be read in pieces")
                )
    return found


def _whole_parquet(file: ExternalFile, field: str) -> None:
    if is_remote(file.location):
        return
    with open(file.location, "rb") as stream:
        start = stream.read(4)
        stream.seek(max(0, file.size - 8))
        end = stream.read()
    if start == MAGIC and end[-4:] == MAGIC and 12 + int.from_bytes(end[:4], "little") <= file.size:
        return
    raise StageError(
        f"{file.name} ({file.size:,} bytes) is {'a Parquet file cut short' if start == MAGIC else 'no Parquet file'}",
        field=field,
        value=file.location,
        fix="fetch or write the file again, or take it out of the source",
    )


def _both_sides(listed: Listed) -> None:
    """Files are compared by their digests; those whose split is only known from their rows are left to ingest."""
    train: dict[str, str] = {}
    held_out: list[tuple[str, dict[str, str]]] = []
    for source, files in listed:
        evaluation: dict[str, str] = {}
        for file in files:
            split = split_of_file(source, file.name)
            if file.size and split == "train":
                train[file.digest] = file.name
            elif file.size and split:
                evaluation[file.digest] = file.name
        held_out.append((source.name, evaluation))
    for index, (name, evaluation) in enumerate(held_out):
        if evaluation and all(digest in train for digest in evaluation):
            digest, held = next(iter(evaluation.items()))
            raise StageError(
                f"the evaluation set of source {name!r} is also training text: {held} is the training file "
                f"{train[digest]}" + (f", and so for all {len(evaluation)}" if len(evaluation) > 1 else ""),
                field=f"corpus.sources.{index}",
                value=name,
                fix="give the evaluation splits files of their own, or take them out of the training split",
            )
