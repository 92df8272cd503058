"""Data sets of the Hugging Face Hub, or local folders of their layout, read through ``datasets``.

A split is streamed in shards: a file each, of Parquet a row group each. A task reads some shards of one file, nothing
but what it needs is fetched and nothing is converted. A slice of a split (``train[:100]``), and what was
cached for work without a network, is loaded as a whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from stages.data.corpus.config import Hub, SplitName
from stages.data.corpus.readers import Piece, Raw, check_columns, papers_in, table_row
from stages.stage import StageError

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
MOST_PIECES = 1024  # of a split: row groups may be small, and each piece asks the Hub for the list of files


def streamed(source: Hub, split: SplitName) -> bool:
    """Can shards of the split be read by themselves? Not of a slice, nor of what only the library's cache has."""
    offline = any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE)
    here = os.path.isabs(source.path)
    return re.fullmatch(r"[\w.-]+", source.splits[split]) is not None and (here or not offline)


def rows_of(source: Hub, split: SplitName, **options: Any) -> Any:
    """The split as ``datasets`` gives it. Raises StageError where it cannot be had."""
    import datasets

    wanted = source.splits[split]
    try:
        return datasets.load_dataset(
            source.path,
            source.config,
            revision=source.revision,
            split=wanted,
            streaming=streamed(source, split),
            **options,
        )
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise StageError(
            f"the data set cannot be loaded: {_reason(error)}",
            field=f"source {source.name!r}: splits.{split}",
            value=wanted,
            fix="check path, revision, config and the names of its splits, and the network",
        ) from error


def pieces(source: Hub, split: SplitName, most: int) -> list[Piece]:
    """What the split can be read in: some shards of one file each, or some rows of about ``most`` bytes of a slice."""
    rows = rows_of(source, split)
    if not streamed(source, split):
        each = max(1, len(rows) * most // max(1, rows.data.nbytes))
        return [Piece(at, min(len(rows), at + each), at) for at in range(0, len(rows), each)]
    shards = [rows.shard(rows.num_shards, file).reshard().num_shards for file in range(rows.num_shards)]
    each = -(-sum(shards) // MOST_PIECES)
    return [
        Piece(at, min(count, at + each), 0, file=file)
        for file, count in enumerate(shards)
        for at in range(0, count, each)
    ]


def read_hub(source: Hub, split: SplitName, piece: Piece | None = None) -> Iterator[Raw]:
    """The documents of a split, or of a piece of it. Raises StageError as ``rows_of``, and for a missing column."""
    rows = rows_of(source, split)
    # Of what is streamed they may not be known before it is read.
    features: dict[str, Any] = rows.features or next(iter(rows), {})
    nested = [path for name, feature in features.items() for path in (name, *_below(name, feature))]
    check_columns(source.columns, nested, f"source {source.name!r}", every=True)
    index = piece.first if piece is not None else 0
    for part in _parts(rows, source, split, piece):
        for row in part:
            yield from papers_in(source, table_row(row, source.columns, f"{split}:{index:07d}", split))
            index += 1


def count(source: Hub, split: SplitName, piece: Piece) -> int:
    """How many rows a streamed piece has: of Parquet by one column, else all of it is read."""
    rows = rows_of(source, split)
    if (column := _shortest(rows, source)) is not None:
        rows = rows_of(source, split, columns=[column])
    parts = _parts(rows, source, split, piece)
    return sum(table.num_rows for part in parts for table in part.with_format("arrow").iter(4096))


def _shortest(rows: Any, source: Hub) -> str | None:
    """A column of a Parquet data set beside the text, a number where there is one."""
    import datasets
    from datasets.packaged_modules.parquet.parquet import Parquet

    text = source.columns.text.split(".")[0]
    others = {name: feature for name, feature in (rows.features or {}).items() if name != text}
    builder = datasets.load_dataset_builder(source.path, source.config, revision=source.revision)
    if not others or not isinstance(builder, Parquet):
        return None
    return str(min(others, key=lambda name: ("int" not in str(getattr(others[name], "dtype", "")), name)))


def _parts(rows: Any, source: Hub, split: SplitName, piece: Piece | None) -> Iterator[Any]:
    if piece is None:
        yield rows
    elif streamed(source, split):
        file = rows.shard(rows.num_shards, piece.file).reshard()
        yield from (file.shard(file.num_shards, at) for at in range(piece.start, piece.end))
    else:
        yield rows.select(range(piece.start, piece.end))


def _below(name: str, feature: Any) -> Iterator[str]:
    if isinstance(feature, dict):
        for key, inner in feature.items():
            yield f"{name}.{key}"
            yield from _below(f"{name}.{key}", inner)


def _reason(error: BaseException) -> str:
    """The innermost cause in one line: ``datasets`` wraps what happened."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
