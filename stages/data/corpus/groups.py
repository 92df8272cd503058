"""What one task of ingest reads: some files of a source, or a piece of one large file, and what it leaves.

A piece is some row groups of a Parquet file, a range of bytes or packed frames of JSON Lines, or some shards of a Hub
data set; a file in pieces gives the very table that it gives in one (``assemble``).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.data.corpus import documents, frames, hub
from stages.data.corpus.config import CorpusSource, Hub, JsonLines, Parquet, Pg19, SplitName, TextFiles
from stages.data.corpus.documents import DocumentsWriter, part_name, write_documents, write_table
from stages.data.corpus.files import ExternalFile
from stages.data.corpus.latex import paper_folders
from stages.data.corpus.opened import opened, packed
from stages.data.corpus.readers import Piece, Raw, pg19_metadata, printable, read, read_folder, year_of
from stages.data.saved import on_disk

SPLIT_BYTES = frames.SPLIT_BYTES
_BLOCK = 2**22
FORMAT = 3  # of what a task leaves
IDS_FILE, PROBLEMS_FILE, PART = "ids.arrow", "problems.parquet", part_name(0)
PROBLEMS = pa.schema([(name, pa.string()) for name in ("name", "source", "problem", "action", "detail")])
IDS = pa.schema(
    [
        ("doc_id", pa.large_string()),
        ("split", pa.int8()),
        ("sha256", pa.binary(32)),
        ("bytes", pa.int64()),
        ("part", pa.int32()),
        ("row", pa.int32()),
    ]
)
"""What the driver reads of each document. split: its place in ``SPLITS``; part: the file of its group, row: the row in
there."""


@dataclass(frozen=True)
class Group:
    """One task's share: a source and some of its files, or one split of a Hub source; of these a piece."""

    source: CorpusSource
    files: tuple[ExternalFile, ...]
    split: SplitName | None = None
    piece: Piece | None = None

    @property
    def size(self) -> int:
        """Bytes to read, about."""
        whole = sum(file.size for file in self.files)
        if self.piece is None or isinstance(self.source, Parquet | Hub):
            return whole if self.piece is None else whole // self.piece.of
        return self.piece.end - self.piece.start


def splittable(group: Group) -> bool:
    """May the group be worth reading in pieces? Known without opening its files."""
    source, files = group.source, group.files
    if isinstance(source, Hub):
        return not files or sum(file.size for file in files) > SPLIT_BYTES
    if len(files) != 1 or files[0].size <= SPLIT_BYTES:
        return False
    if isinstance(source, JsonLines):
        place = files[0].location
        return tuple(source.encoding) == ("utf-8",) and (frames.may_have_frames(place) or not packed(place))
    return isinstance(source, Parquet)


def in_pieces(group: Group, most: int) -> list[Group]:
    """One task: the group, or the pieces of about ``most`` bytes that it is read in. What cannot be opened is left to
    those who read it."""
    source = group.source
    if isinstance(source, Parquet):
        found = _row_groups(group.files[0], most)
    elif isinstance(source, JsonLines):
        size, place = group.files[0].size, group.files[0].location
        begins = frames.cuts(place, most) if packed(place) else [(at, 0) for at in range(0, size, most)]
        ends = [*(at for at, _ in begins[1:]), size]
        found = [Piece(at, end, 0, before=before) for (at, before), end in zip(begins, ends, strict=True)]
    else:
        assert isinstance(source, Hub) and group.split is not None
        found = hub.pieces(source, group.split, most)
    if len(found) < 2:
        return [group]
    return [replace(group, piece=replace(piece, of=len(found))) for piece in found]


def _row_groups(file: ExternalFile, most: int) -> list[Piece]:
    with opened(file.location) as stream:
        try:
            meta = pq.read_metadata(stream)
        except (OSError, ValueError):
            return []
    found: list[Piece] = []
    start = size = rows = 0
    first = 0
    for at in range(meta.num_row_groups):
        group = meta.row_group(at)
        size, rows = size + group.total_byte_size, rows + group.num_rows
        if size >= most or at == meta.num_row_groups - 1:
            found.append(Piece(start, at + 1, first))
            start, size, first = at + 1, 0, rows
    return found


def counted(group: Group) -> bool:
    """Are the rows of its pieces numbered by counting first? Else the pieces know the number of their first."""
    if isinstance(group.source, Hub) and group.split is not None:
        return hub.streamed(group.source, group.split)
    return isinstance(group.source, JsonLines)


def rows_of(group: Group) -> int:
    """One task: how many lines begin in a piece of JSON Lines, how many rows the shards of a Hub data set have."""
    piece = group.piece
    if piece is None or not counted(group):
        return 0
    if isinstance(group.source, Hub):
        assert group.split is not None
        return hub.count(group.source, group.split, piece)
    if packed(group.files[0].location):
        try:
            return sum(1 for _ in frames.lines_of(group.files[0].location, piece.start, piece.end, piece.before))
        except (EOFError, ValueError, zlib.error):  # said when the piece is read, of the whole file
            return 0
    count = 0 if piece.start else 1
    with opened(group.files[0].location) as stream:
        at = max(0, piece.start - 1)
        stream.seek(at)
        while at < piece.end - 1:
            block = stream.read(min(_BLOCK, piece.end - 1 - at))
            if not block:
                break
            count, at = count + block.count(b"\n"), at + len(block)
    return count


def identity(group: Group) -> str:
    """Digest of what a task's result follows from."""
    listed = [(printable(file.name), file.size, file.digest) for file in group.files]
    piece: tuple[int, ...] | None = None
    if group.piece is not None:
        piece = (group.piece.start, group.piece.end, group.piece.first)
        if isinstance(group.source, Hub):  # how many shards there are is for the library to say
            piece = (*piece, group.piece.of, group.piece.file)
    said = [FORMAT, group.source.key_fields(), listed, group.split, piece]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_group(group: Group, folder: Path) -> dict[str, Any]:
    """One task: the group's documents (repeats included) as ``part-*.parquet``, ``IDS_FILE`` and ``PROBLEMS_FILE``.
    Returns the numbers of parts and documents, which of the source's columns the files have, and whether a file's
    reading ended at damage."""
    source = group.source
    ids: dict[str, list[Any]] = {name: [] for name in IDS.names}
    problems: list[dict[str, str]] = []
    metadata: dict[str, dict[str, str]] = {}
    if isinstance(source, Pg19):
        try:
            metadata = next((pg19_metadata(file) for file in group.files if file.name == "metadata.csv"), {})
        except ValueError as error:
            detail = f"titles and years are left out: {error}"
            problems.append(problem_row(f"{source.name}/metadata.csv", source.name, "undecodable", detail))
    writer = DocumentsWriter(folder)
    seen: set[str] = set()
    damaged = False
    for raw in _raws(group, seen):
        if raw.problem:
            damaged = damaged or raw.damaged
            problems.append(problem_row(f"{source.name}/{raw.id}", source.name, raw.problem, raw.detail))
            continue
        row = _row(source, _described(raw, metadata.get(raw.id)))
        digest = bytes.fromhex(row["sha256"])
        values = (row["doc_id"], _SPLITS[raw.split], digest, len(raw.text), *writer.write(row))
        for column, value in zip(ids.values(), values, strict=True):
            column.append(value)
    if ids["doc_id"]:
        writer.close()
    table = pa.table(ids, schema=IDS)
    with pa.OSFile(str(folder / IDS_FILE), "wb") as out, pa.ipc.new_file(out, IDS) as ipc:
        ipc.write_table(table)
    write_table(pa.Table.from_pylist(problems, schema=PROBLEMS), folder / PROBLEMS_FILE)
    return {
        "parts": writer.parts,
        "documents": len(table),
        "problems": len(problems),
        "columns": sorted(seen),
        "damaged": damaged,
    }


_SPLITS = {"train": 0, "validation": 1, "test": 2}


def problem_row(name: str, source: str, problem: str, detail: str, action: str = "skipped") -> dict[str, str]:
    """A row of ``PROBLEMS``."""
    return {"name": name, "source": source, "problem": problem, "action": action, "detail": detail}


def _raws(group: Group, seen: set[str]) -> Iterator[Raw]:
    if isinstance(group.source, Hub) and group.split is not None:
        yield from hub.read_hub(group.source, group.split, group.piece)
        return
    if isinstance(group.source, TextFiles) and group.source.papers:
        yield from _papers(group.source, group.files, seen)
        return
    for file in group.files:
        if group.piece is None:
            yield from read(group.source, file, seen)
        else:
            yield from read(group.source, file, seen, group.piece)


def _papers(source: TextFiles, files: Sequence[ExternalFile], seen: set[str]) -> Iterator[Raw]:
    """``files``: of folders as a whole (see ``whole_folders``), in order."""
    folders = paper_folders(file.name for file in files)
    for folder, some in itertools.groupby(files, key=lambda file: folders[file.name]):
        if folder:
            yield from read_folder(source, folder, list(some))
            continue
        for file in some:
            yield from read(source, file, seen)


def whole_folders(source: CorpusSource, files: Sequence[ExternalFile]) -> list[bool]:
    """May a group of files end behind each of ``files``? Not within a folder that is one paper."""
    if not (isinstance(source, TextFiles) and source.papers):
        return [True] * len(files)
    folders = paper_folders(file.name for file in files)
    following = [folders[file.name] for file in files[1:]] + [""]
    return [not (folder := folders[file.name]) or folder != after for file, after in zip(files, following, strict=True)]


def _described(raw: Raw, about: dict[str, str] | None) -> Raw:
    if about is None:
        return raw
    year = year_of(about.get("year"))
    return replace(raw, title=about.get("title") or None, author=about.get("author") or None, year=year)


def _row(source: CorpusSource, raw: Raw) -> dict[str, Any]:
    return {
        "doc_id": f"{source.name}/{raw.id}",
        "source": source.name,
        "title": raw.title,
        "author": raw.author,
        "year": raw.year,
        "split": raw.split,
        "text": raw.text,
        "sha256": hashlib.sha256(raw.text).hexdigest(),
    }


def layout(sizes: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Which documents of so many bytes ``DocumentsWriter`` puts into one file: (first, end) of each."""
    most = documents.PART_BYTES
    ends = np.cumsum(sizes)
    found = []
    start = 0
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        end = min(len(sizes), int(np.searchsorted(ends, before + most)) + 1)
        if end - 1 > start and sizes[end - 1] >= most:
            end -= 1  # a very long text is on its own
        found.append((start, end))
        start = end
    return found


@dataclass(frozen=True)
class Slice:
    """Rows ``start`` to ``end`` of the documents file at ``url``."""

    url: str
    start: int
    end: int


def slices_identity(slices: Sequence[Slice]) -> str:
    """Digest of what ``assemble`` makes of them."""
    said = ["/".join(part.url.rsplit("/", 2)[1:]) + f" {part.start} {part.end}" for part in slices]
    return hashlib.sha256(json.dumps([FORMAT, said]).encode()).hexdigest()


def assemble(slices: Sequence[Slice], folder: Path) -> None:
    """One task: one file of the documents table from what pieces of a file gave."""
    tables = []
    for part in slices:
        with on_disk(part.url) as path:
            tables.append(pq.read_table(path, memory_map=False).slice(part.start, part.end - part.start))
    write_documents(pa.concat_tables(tables).combine_chunks(), folder / PART)
