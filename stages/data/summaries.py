"""Texts with reference summaries, as BookSum and others lay them out: JSON Lines, Parquet, or a folder of such files,
on this machine or a data set of the Hub (``hubfiles``).

A row is one reference of one text. What it is called differs, so each field is looked for under several names:

==========  ==========================================================================================
text        ``text``, ``chapter`` (BookSum's Parquet; text, or a list of paragraphs), else the file that
            ``book_file``, ``book_path`` or ``chapter_path`` names, relative to the root of the texts
summary     ``summary_text``, ``summary`` (text, a list of paragraphs, or BookSum's JSON with a ``summary``
            in it), else the file of ``summary_path``
book        ``bid``, ``book_id``, ``id``
section     ``section``, ``chapter_path``, ``summary_id``
level       ``level``; else ``book`` where the text is a file of a whole book, ``chapter`` otherwise
split       ``split``; else, of a folder, what the names of the file or of its folders say, as data sets of
            the Hub have it (``data/train-00000-of-00002.parquet``, ``test/0000.parquet``)
==========  ==========================================================================================

Rows of one book with the same text are several references of one item.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stages.data.hubfiles import fetched, on_hub
from stages.data.jsonlines import objects
from stages.data.pinned import digest_of
from stages.stage import StageError

Level = Literal["book", "chapter"]
LEVELS: tuple[Level, ...] = ("book", "chapter")
_SUFFIXES = (".jsonl", ".json", ".parquet", ".pq")
_TEXTS = (".txt",)
_NO_PAIRS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # of data sets, of the Hub's
_SPLIT_IN = re.compile(
    r"(?<![a-z0-9])(?:(?P<train>train|training)|(?P<validation>validation|valid|val|dev)|"
    r"(?P<test>test|testing|eval|evaluation))(?![a-z])"
)
_WHOLE = ("book_file", "book_path")
_FILES = (*_WHOLE, "chapter_path")
_LAYOUT = "text (or chapter, or a file in book_file or chapter_path) and summary (or summary_text) in every row"


@dataclass(frozen=True)
class SummaryPair:
    """One reference of one text. ``row``: its place in the files, from 1. ``book``, ``section``, ``title``, ``source``
    (whose summary it is), ``split``: "" where the files do not say."""

    row: int
    book: str
    section: str
    title: str
    level: Level
    text: str
    summary: str
    source: str
    split: str


@dataclass(frozen=True)
class SummaryItem:
    """One text with all its references. ``rows``: of the pairs it is made of. ``name``: unique among the items."""

    name: str
    book: str
    title: str
    level: Level
    text: str
    references: tuple[str, ...]
    rows: tuple[int, ...]


def placed(said: str, folder: Path) -> str:
    """How a pinned config names what a study file in ``folder`` calls ``said``."""
    return said if on_hub(said) else str((folder / said).absolute())


def located(path: str, field: str) -> Path:
    """Where pairs, or their texts, of this placed name lie on this machine, whether they are there or not. Raises
    StageError for a data set of the Hub that cannot be had."""
    return fetched(path, (*_SUFFIXES, *_TEXTS), field) if on_hub(path) else Path(path)


def root_of(path: str, texts: str | None) -> Path:
    """Folder that names of texts start from: ``texts``, else that of the pairs. Raises StageError as ``located``."""
    if texts is not None:
        return located(texts, "texts")
    found = located(path, "path")
    return found if found.is_dir() else found.parent


def files_of(path: Path) -> list[Path]:
    """The file itself, or those of a folder that can be read, by name."""
    if path.is_dir():
        found = (file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.name not in _NO_PAIRS)
        return sorted(file for file in found if file.is_file())
    return [path]


def digest(path: Path, root: Path, field: str) -> str:
    """sha256 of what would be read: of the file, or, where rows lead to further files or there are several, over the
    names and digests of all. Raises StageError as ``read`` does."""
    files, texts = files_of(path), _texts_of(path, root, field)
    if not path.is_dir() and not texts:
        return digest_of(path.read_bytes())
    listed = [(file.relative_to(path if path.is_dir() else path.parent).as_posix(), file) for file in files]
    listed += [(f"texts/{name}", file) for name, file in sorted(texts.items())]
    lines = "".join(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for name, file in listed)
    return digest_of(lines.encode())


def read(path: Path, root: Path, field: str, splits: Sequence[str] | None = None) -> list[SummaryPair]:
    """All pairs, in the order of the files' names and of their rows; of ``splits`` alone where some are named.

    Raises StageError for a file that cannot be read, a row without text or summary, or when nothing is left.
    """
    pairs = []
    for number, place, row in rows(path, field):
        if splits is not None and split_of(row) not in splits:
            continue
        pair = pair_of(number, row, root, field)
        if not pair.text.strip() or not pair.summary.strip():
            raise StageError(f"{place} lacks text or summary", field=f"{field}.path", value=str(path), allowed=_LAYOUT)
        pairs.append(pair)
    if not pairs:
        said = "has no pair" + ("" if splits is None else f" of the splits {list(splits)}")
        raise StageError(said, field=f"{field}.path", value=str(path), allowed=_LAYOUT)
    return pairs


def split_of(row: Mapping[str, Any]) -> str:
    """ "" where a row names none."""
    return _first(row, "split")


def pair_of(number: int, row: Mapping[str, Any], root: Path, field: str) -> SummaryPair:
    """The pair of a row, perhaps without text or summary. Raises StageError for a text that is not there."""
    return SummaryPair(
        number,
        _first(row, "bid", "book_id", "id"),
        _first(row, "section", "chapter_path", "summary_id"),
        _first(row, "title"),
        _level(row),
        _text(row, root, field),
        _summary(row, root, field),
        _first(row, "source", "summary_source"),
        _first(row, "split"),
    )


def items(pairs: Sequence[SummaryPair]) -> list[SummaryItem]:
    """Pairs of one book and text as one item, books in turn (the first text of each, then the second of each, ...), so
    that any beginning of the list holds as many books as it can."""
    groups: dict[tuple[str, str], list[SummaryPair]] = {}
    for pair in pairs:
        groups.setdefault((pair.book, digest_of(pair.text.encode())), []).append(pair)
    by_book: dict[str, list[list[SummaryPair]]] = {}
    for group in groups.values():
        by_book.setdefault(group[0].book or f"line-{group[0].row}", []).append(group)
    made: list[SummaryItem] = []
    used: set[str] = set()
    for turn in range(max(map(len, by_book.values()), default=0)):
        for book, texts in by_book.items():
            if turn < len(texts):
                first = texts[turn][0]
                name = book if len(texts) == 1 else f"{book}/{first.section or first.row}"
                name = name if name not in used else f"{name}#{first.row}"
                used.add(name)
                summaries = tuple(dict.fromkeys(pair.summary for pair in texts[turn]))
                rows = tuple(pair.row for pair in texts[turn])
                made.append(SummaryItem(name, book, first.title, first.level, first.text, summaries, rows))
    return made


def rows(path: Path, field: str) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """(number over all files, of a single one its line; where it stands; the row) in the order of the files' names.
    Raises StageError for a file that cannot be read and a folder without any."""
    number = 0
    if not (found := files_of(path)):
        raise StageError(
            "the folder holds no file of pairs", field=f"{field}.path", value=str(path), allowed=", ".join(_SUFFIXES)
        )
    for file in found:
        split = _split_by_name(file.relative_to(path)) if path.is_dir() else ""
        for line, row in _file_rows(file, field):
            number += 1
            named = f"{file.name}, " if path.is_dir() else ""
            said = row if not split or _first(row, "split") else {**row, "split": split}
            yield (number if path.is_dir() else line), f"{named}line {line}", said


def _split_by_name(file: Path) -> str:
    """The split that the file's name says, or else the innermost folder's that says one; "" for none."""
    for name in (file.stem, *reversed(file.parts[:-1])):
        if found := _SPLIT_IN.search(name.lower()):
            return str(found.lastgroup)
    return ""


def _file_rows(file: Path, field: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        if file.suffix in (".parquet", ".pq"):
            import pyarrow.parquet as pq

            yield from enumerate(pq.read_table(file).to_pylist(), 1)
            return
        with file.open(encoding="utf-8-sig") as stream:
            yield from objects(stream)
    except (OSError, ValueError) as error:  # not UTF-8, no JSON, no object, no Parquet
        raise StageError(
            f"{file.name} cannot be read: {error}",
            field=f"{field}.path",
            value=str(file),
            allowed="JSON Lines or Parquet",
            fix="mend the file",
        ) from error


def _text(row: Mapping[str, Any], root: Path, field: str) -> str:
    said = next((row[name] for name in ("text", "chapter") if row.get(name) not in (None, "", [])), "")
    said = "\n".join(map(str, said)) if isinstance(said, list) else str(said)
    return said or next((_read(root, row[name], field) for name in _FILES if row.get(name)), "")


def _summary(row: Mapping[str, Any], root: Path, field: str) -> str:
    for name in ("summary_text", "summary"):
        if said := _flat(row.get(name)):
            return said
    return _flat(_read(root, row["summary_path"], field)) if row.get("summary_path") else ""


def _flat(value: Any) -> str:
    """The text of a summary: as it is, paragraphs joined, or what BookSum's JSON holds."""
    if isinstance(value, str) and re.match(r"\s*\{", value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return str(value)
    if isinstance(value, dict):
        value = value.get("summary")
    if isinstance(value, list):
        return "\n".join(str(part) for part in value)
    return "" if value is None else str(value)


def _read(root: Path, name: Any, field: str) -> str:
    try:
        return (root / str(name)).read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise StageError(
            f"no such text ({getattr(error, 'strerror', None) or error})",
            field=f"{field}.texts",
            value=str(root / str(name)),
            fix=f"name the folder that {name} lies in",
        ) from error


def _texts_of(path: Path, root: Path, field: str) -> dict[str, Path]:
    """Name -> file of every text that rows lead to."""
    found: dict[str, Path] = {}
    for _, _, row in rows(path, field):
        names = () if _first(row, "text", "chapter") else tuple(str(row[n]) for n in _FILES if row.get(n))[:1]
        if row.get("summary_path") and not (row.get("summary_text") or row.get("summary")):
            names = (*names, str(row["summary_path"]))
        for name in names:
            _read(root, name, field)
            found[name] = root / name
    return found


def _first(row: Mapping[str, Any], *names: str) -> str:
    return next((str(row[name]) for name in names if row.get(name) not in (None, "")), "")


def _level(row: Mapping[str, Any]) -> Level:
    said = _first(row, "level")
    if said in LEVELS:
        return "book" if said == "book" else "chapter"
    whole = not _first(row, "text", "chapter") and any(row.get(name) for name in _WHOLE)
    return "book" if whole else "chapter"
