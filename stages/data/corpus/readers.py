"""From one external file to raw documents: (id, text, title, author, year, split) or a problem, nothing decided yet.

Text is UTF-8 bytes, checked; a byte-order mark is dropped and CRLF becomes LF, everything else stays as it is. Files
are read as streams: what is held at a time is one document (a plain text file is one; of a table some rows).
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from stages.data.corpus import frames, latex
from stages.data.corpus.config import (
    SPLITS,
    Columns,
    CorpusSource,
    Hub,
    JsonLines,
    Parquet,
    Pg19,
    PythonDocs,
    SplitName,
    SplitShares,
    TextFiles,
)
from stages.data.corpus.files import ExternalFile, book_id, split_of, without_suffix
from stages.data.corpus.manuals import manual_pages
from stages.data.corpus.opened import lines, lines_of, opened, packed, utf8, why_not
from stages.stage import StageError

MAX_TEXT_BYTES = 2**31 - 2**20
"""Longest text of a document: Parquet counts the bytes of a page, and so of a value, in 31 bits."""
ROWS_BYTES = 16 * 2**20  # of a Parquet file's rows decoded at a time, about
NO_FIELD = "has no field"
MAX_DEPTH = 400
"""Brackets inside brackets in a line of JSON: what Python's parser can do depends on who calls it."""
_CHECKED_AT_ONCE = 2**24
_BRACKETS = re.compile(rb'[\[{\]}]|"(?:[^"\\]++|\\.)*+"?')  # nothing is tried twice: texts are long, and cut short


@dataclass(frozen=True)
class Raw:
    """One document as read: ``text`` is checked UTF-8. ``problem`` names what is wrong with it (then ``text`` is
    empty), ``detail`` where."""

    id: str
    text: bytes = b""
    split: str = ""
    title: str | None = None
    author: str | None = None
    year: int | None = None
    problem: str = ""
    detail: str = ""
    damaged: bool = False
    """The rest of the file cannot be read."""


@dataclass(frozen=True)
class Piece:
    """A part of a large file: row groups, bytes or rows ``start`` to ``end``; ``first``: number of its first row or
    line in the file; ``of``: how many pieces the file has; ``before``: where the frame before it begins (packed);
    ``file``: of a Hub data set, of which a piece is some shards of one file."""

    start: int
    end: int
    first: int
    of: int = 1
    before: int = 0
    file: int = 0


def read(
    source: CorpusSource, file: ExternalFile, seen: set[str] | None = None, piece: Piece | None = None
) -> Iterator[Raw]:
    """The documents in one of the source's files, in file order; a damaged file gives those before the damage and one
    problem. Raises StageError for a missing column of text or split, or where the system does not let the file be read.

    ``seen`` takes up which of the source's columns the file has. ``piece``: of Parquet (row groups) and JSON Lines in
    UTF-8 (bytes, or frames of a packed file; the lines that begin in there).
    """
    seen = set() if seen is None else seen
    if (name := printable(file.name)) != file.name:
        yield Raw(name, problem="undecodable", detail="the file's name is not UTF-8")
        return
    count = 0
    try:
        for count, raw in enumerate(_documents(source, file, seen, piece), 1):  # noqa: B007 (said below)
            yield raw
    except (OSError, EOFError, ValueError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise StageError(
                f"{file.location} cannot be read: {error.strerror}",
                field=f"source {source.name!r}",
                value=file.name,
                fix="check its permissions and the storage, then run again",
            ) from error
        detail = f"damaged after {count} document(s): {type(error).__name__}: {error}"
        yield Raw(file.name, problem="undecodable", detail=detail, damaged=True)


def printable(name: str) -> str:
    """A name with what is not UTF-8 in it spelled out."""
    return name.encode("utf-8", "backslashreplace").decode()


def _documents(source: CorpusSource, file: ExternalFile, seen: set[str], piece: Piece | None) -> Iterator[Raw]:
    if isinstance(source, PythonDocs):
        yield from _python_docs(source, file)
    elif isinstance(source, Pg19):
        if file.name != "metadata.csv":
            yield _text_file(file, book_id(file.name), file.name.split("/")[0], source.encoding)
    elif isinstance(source, TextFiles):
        where = split_of(without_suffix(file.name), source.split)
        yield from papers_in(source, _text_file(file, file.name, where, source.encoding))
    elif isinstance(source, Parquet):
        yield from _parquet(source, file, seen, piece)
    elif isinstance(source, JsonLines):
        yield from _json_lines(source, file, seen, piece)


def papers_in(source: TextFiles | Parquet | JsonLines | Hub, raw: Raw) -> Iterator[Raw]:
    """The document, or with ``papers`` the papers that its text is; each is on the side of its own id."""
    parts = latex.cut(raw.text) if source.papers and not raw.problem else [raw.text]
    if len(parts) == 1:
        yield raw
        return
    shares = getattr(source, "split", None)
    for number, text in enumerate(parts):
        name = latex.numbered(raw.id, number)
        where = split_of(name, shares) if number and isinstance(shares, SplitShares) else raw.split
        yield checked(replace(raw, id=name, text=text, split=where))


def read_folder(source: TextFiles, folder: str, files: Sequence[ExternalFile]) -> Iterator[Raw]:
    """The papers that the files of one folder are; a file that cannot be read, or is in no paper, is a problem."""
    texts: dict[str, bytes] = {}
    for file in files:
        for raw in read(source.model_copy(update={"papers": False}), file):
            if raw.problem and raw.problem != "empty":
                yield raw
            elif not raw.problem:
                texts[file.name] = raw.text
    found = latex.together(folder, texts)
    for name, text in found.texts.items():
        yield checked(Raw(name, text, latex.split_of_paper(name, folder, source.split)))
    for name in found.unused:
        yield Raw(name, problem="unused", detail=f"no paper of the folder {folder} takes this file in")


def pg19_metadata(file: ExternalFile) -> dict[str, dict[str, str]]:
    """Book id -> title, author, year. With a header row, or PG-19's own four columns (id, title, year, url) without.

    Raises ValueError for a file that is not UTF-8 or no CSV.
    """
    try:
        rows = list(csv.reader(io.StringIO(_content(file).decode("utf-8-sig"))))
    except csv.Error as error:
        raise ValueError(f"not CSV: {error}") from error
    if not rows:
        return {}
    header = ["id", "title", "year", "url"]
    if "id" in [cell.strip().lower() for cell in rows[0]]:
        header, rows = [cell.strip().lower() for cell in rows[0]], rows[1:]
    return {cells["id"].strip(): cells for row in rows if (cells := dict(zip(header, row, strict=False))).get("id")}


def year_of(value: object) -> int | None:
    """The year in a table cell (``1865``, ``"1865"``, ``"1865-11-01"``), None where there is none."""
    match = re.match(r"\s*(-?\d{1,4})(?!\d)", str(value)) if value is not None else None
    return int(match.group(1)) if match else None


def _content(file: ExternalFile) -> bytes:
    with opened(file.location) as stream:
        return bytes(stream.read())


def _text_file(file: ExternalFile, name: str, split: str, encodings: Sequence[str]) -> Raw:
    """A file that is one document."""
    if file.size > MAX_TEXT_BYTES:  # packed or not: nothing of it is read
        return _too_long(Raw(name))
    with opened(file.location) as stream:
        content = stream.read(MAX_TEXT_BYTES + 4)  # one more than is allowed, with a byte-order mark
    found = checked(Raw(name, utf8(content, encodings), split))
    if found.problem == "undecodable":
        return replace(found, detail=f"{found.detail}; {why_not(content[:4], encodings)}")
    return found


def _too_long(raw: Raw) -> Raw:
    return Raw(raw.id, problem="too_long", detail=f"more than {MAX_TEXT_BYTES:,} bytes of text cannot be stored")


def checked(raw: Raw) -> Raw:
    """The document with its text normalised (byte-order mark, CRLF), or in its place the problem of its text."""
    text = raw.text.removeprefix(codecs.BOM_UTF8)
    if b"\r\n" in text:
        text = text.replace(b"\r\n", b"\n")
    if len(text) > MAX_TEXT_BYTES:
        return _too_long(raw)
    if (at := _not_utf8(text)) is not None:
        return Raw(raw.id, problem="undecodable", detail=f"byte {at} is not UTF-8: {text[at]:#04x}")
    if (at := text.find(b"\0")) >= 0:
        return Raw(raw.id, problem="nul_byte", detail=f"NUL at byte {at}: a binary file?")
    # only a text whose beginning is blank can be blank as a whole
    if not text[:4096].decode(errors="ignore").strip() and not text.decode().strip():
        return Raw(raw.id, problem="empty", detail="no text but white space")
    return raw if text is raw.text else replace(raw, text=text)


def _not_utf8(text: bytes) -> int | None:
    """The place of the first byte that is not UTF-8, None where all is. Nothing is decoded as a whole: of a long text
    that would take several times its size."""
    import pyarrow as pa

    offsets = pa.array([0, len(text)], pa.int64()).buffers()[1]
    try:
        pa.LargeStringArray.from_buffers(1, offsets, pa.py_buffer(text)).validate(full=True)
        return None
    except pa.ArrowInvalid:
        start = 0
        while True:
            piece = text[start : start + _CHECKED_AT_ONCE]
            try:
                start += codecs.utf_8_decode(piece, "strict", start + len(piece) >= len(text))[1]
            except UnicodeDecodeError as error:
                return start + error.start


def _python_docs(source: PythonDocs, file: ExternalFile) -> Iterator[Raw]:
    try:
        pages = list(manual_pages(file.name, _content(file).decode("utf-8-sig")))
    except (SyntaxError, UnicodeDecodeError) as error:
        yield Raw(file.name, problem="undecodable", detail=f"not Python source: {error}")
        return
    for name, page in pages:
        text = page.encode(errors="surrogatepass")
        if len(text) >= source.min_bytes:
            yield checked(Raw(name, text, split_of(name, source.split), title=name.removeprefix("stdlib.")))


def _parquet(source: Parquet, file: ExternalFile, seen: set[str], piece: Piece | None) -> Iterator[Raw]:
    import pyarrow.parquet as pq

    with opened(file.location) as stream:
        try:
            # what is packed has no places to go to
            table = pq.ParquetFile(io.BytesIO(stream.read()) if packed(file.location) else stream)
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            yield Raw(file.name, problem="undecodable", detail=f"not a Parquet file: {error}")
            return
        there = list(_fields(table.schema_arrow))
        wanted = check_columns(source.columns, there, f"source {source.name!r}: {file.name}")
        seen.update(wanted)
        bytes_of = sum(table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups))
        rows = max(1, min(256, ROWS_BYTES * table.metadata.num_rows // max(1, bytes_of)))
        index = piece.first if piece is not None else 0
        groups = list(range(table.num_row_groups) if piece is None else range(piece.start, piece.end))
        for batch in table.iter_batches(rows, row_groups=groups, columns=wanted):
            columns = {name: _as_bytes(_column(batch, name)) for name in wanted}
            for place in range(batch.num_rows):
                row = {name: column[place].as_py() for name, column in columns.items()}
                yield from papers_in(source, table_row(row, source.columns, f"{file.name}:{index:07d}", source.split))
                index += 1


def _column(batch: Any, name: str) -> Any:
    import pyarrow.compute as pc

    if name in batch.schema.names:
        return batch[name]
    first = next(top for top in batch.schema.names if name.startswith(f"{top}."))
    return pc.struct_field(batch[first], name.removeprefix(f"{first}.").split("."))


def _as_bytes(column: Any) -> Any:
    """A text that is not UTF-8 is that document's problem, not the file's."""
    import pyarrow as pa

    if pa.types.is_large_string(column.type):
        return column.cast(pa.large_binary())
    return column.cast(pa.binary()) if pa.types.is_string(column.type) else column


def _fields(schema: Any) -> Iterator[str]:
    """Names of the columns, those inside structs with dots."""
    import pyarrow as pa

    def below(prefix: str, fields: Any) -> Iterator[str]:
        for field in fields:
            yield prefix + field.name
            if pa.types.is_struct(field.type):
                yield from below(f"{prefix}{field.name}.", field.type)

    yield from below("", schema)


def _json_lines(source: JsonLines, file: ExternalFile, seen: set[str], piece: Piece | None) -> Iterator[Raw]:
    wanted = set(column_names(source.columns))
    with opened(file.location) as stream:
        if piece is None:
            found = lines(stream, source.encoding)
        elif packed(file.location):
            found = frames.lines_of(file.location, piece.start, piece.end, piece.before)
        else:
            found = lines_of(stream, piece.start, piece.end)
        for index, line in enumerate(found, piece.first if piece is not None else 0):
            if not line.strip():
                continue
            name = f"{file.name}:{index:07d}"
            if _deep(line):
                detail = f"line {index + 1} has more than {MAX_DEPTH} brackets inside one another"
                yield Raw(name, problem="undecodable", detail=detail)
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
                yield Raw(name, problem="undecodable", detail=f"line {index + 1} is not JSON: {error}")
                continue
            if not isinstance(row, dict):
                detail = f"line {index + 1} is JSON, but no object: JSON Lines has one a line"
                yield Raw(name, problem="undecodable", detail=detail)
                continue
            if not _has(row, source.columns.text):
                fields = f" (but {', '.join(sorted(row)[:10])})" if row else ""
                detail = f"line {index + 1} {NO_FIELD} {source.columns.text!r}{fields}"
                yield Raw(name, problem="undecodable", detail=detail)
                continue
            seen.update(column for column in wanted - seen if _has(row, column))
            yield from papers_in(source, table_row(row, source.columns, name, source.split))


def _deep(line: bytes) -> bool:
    if line.count(b"[") + line.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for found in _BRACKETS.finditer(line):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(found.group(), 0)
        if depth > MAX_DEPTH:
            return True
    return False


def column_names(columns: Columns) -> list[str]:
    """All columns that are named, those without which nothing can be read first."""
    every = (columns.text, columns.split, columns.id, columns.title, columns.author, columns.year)
    return [name for name in every if name is not None]


def check_columns(columns: Columns, present: Sequence[str], where: str, every: bool = False) -> list[str]:
    """The named columns that are there. Raises StageError where there is none of text or split, or of ``every`` one."""
    needed = column_names(columns) if every else [name for name in (columns.text, columns.split) if name is not None]
    for name in needed:
        if name not in present:
            raise _no_column("no such column", name, present, where)
    for name in column_names(columns):
        if list(present).count(name) > 1:
            raise _no_column("several columns have this name", name, present, where)
    return sorted({name for name in column_names(columns) if name in present})


def _no_column(what: str, name: str, present: Iterable[str], where: str) -> StageError:
    return StageError(
        what,
        field=f"{where}: columns",
        value=name,
        allowed=", ".join(sorted(present)),
        fix="name the column that holds it",
    )


def _has(row: dict[str, Any], name: str) -> bool:
    if name in row:
        return True
    first, dot, rest = name.partition(".")
    inside = row.get(first)
    return bool(dot) and isinstance(inside, dict) and _has(inside, rest)


def _get(row: dict[str, Any], name: str) -> Any:
    """The cell of a column, which may be nested (``content.text``); None where there is none."""
    if name in row:
        return row[name]
    first, dot, rest = name.partition(".")
    inside = row.get(first)
    return _get(inside, rest) if dot and isinstance(inside, dict) else None


def table_row(row: dict[str, Any], columns: Columns, default_id: str, split: SplitName | SplitShares | None) -> Raw:
    """One table row as a document. ``default_id`` is its name where no id column is given or its cell is empty."""
    cell = partial(_cell, row)
    name = cell(columns.id) or default_id
    if columns.id_pattern is not None and (match := re.search(columns.id_pattern, name)) and match.group(1):
        name = match.group(1)
    text = _get(row, columns.text)
    if not isinstance(text, str | bytes):
        problem = "empty" if text is None else "undecodable"
        return Raw(name, problem=problem, detail=f"{columns.text} holds {type(text).__name__}, not text")
    where = cell(columns.split) if columns.split else split_of(name, split)
    if where not in SPLITS:
        return Raw(name, problem="unknown_split", detail=f"{columns.split} = {where!r}: not train, validation or test")
    # a lone surrogate of a JSON string becomes bytes that are not UTF-8, and so that document's problem
    content = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    title, author = cell(columns.title), cell(columns.author)
    return checked(Raw(name, content, where, title, author, year_of(cell(columns.year))))


def _cell(row: dict[str, Any], name: str | None) -> str | None:
    value = _get(row, name) if name is not None else None
    if value is None or value in ("", b""):
        return None
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else printable(str(value))
