"""Reads the pinned sources and writes the documents table, shard by shard, with every problem named.

Files are read in groups, a task each, large ones in pieces; a task streams its documents into files of
``documents.PART_BYTES`` of text in the step's work folder, so memory is bounded by a shard and a crash costs the groups
in flight. Of the documents the driver maps id, split, hash and size: with them it finds ids that repeat anywhere in the
corpus. The order of the table is that of the sources in the study file, of the files' names, and of the documents in a
file.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.storage import join
from stages.data.corpus import groups as reading
from stages.data.corpus.config import SPLITS, CorpusSource, Hub, IngestConfig, JsonLines, Parquet, Pg19
from stages.data.corpus.documents import part_name, rows_at, write_documents, write_table
from stages.data.corpus.files import DigestCache, ExternalFile, default_cache, digests_of
from stages.data.corpus.groups import IDS, IDS_FILE, PROBLEMS, PROBLEMS_FILE, Group, Slice, problem_row
from stages.data.corpus.pin import list_files, listing_digest
from stages.data.corpus.readers import NO_FIELD, column_names
from stages.data.corpus.repeats import Repeats, find_repeats, is_in
from stages.data.parallel import spread
from stages.data.pinned import unchanged
from stages.data.saved import Saved, mapped, spill, spread_saved
from stages.stage import Context, StageError, Summary

GROUP_BYTES = 16 * 2**20  # of input for one task; a larger file is one task by itself, or several
WORTH_TASKS = 32 * 2**20  # below this many bytes of input, starting workers costs more than it saves


@dataclass(frozen=True)
class ReadGroup:
    """What was read of one group: the ``files`` of its documents in order (part of the work folder, name in there) and
    their ``ids`` (``IDS``)."""

    files: list[tuple[Saved, str]]
    ids: pa.Table


def ingest(config: IngestConfig, output: Path, context: Context) -> Summary:
    """Write ``documents/``, ``problems.parquet``, ``listing.json``.

    Raises StageError where an input differs from its pin, where no training or no evaluation document is left, where
    every evaluation document is also a training document, and for any bad document under ``on_bad_document: fail``.
    """
    with spill(context.work_url) as folder:
        return _ingest(config, output, context, folder)


def _ingest(config: IngestConfig, output: Path, context: Context, folder: Path) -> Summary:
    files = {source.name: _verified_files(source, index) for index, source in enumerate(config.sources)}
    size = sum(file.size for listed in files.values() for file in listed)
    groups = [group for source in config.sources for group in _groups(source, files[source.name])]
    seen: dict[str, set[str]] = {source.name: set() for source in config.sources}
    problems: list[pa.Table] = []
    read = list(_read(groups, size, seen, problems, context, folder))
    _check_columns(config, seen, problems, context)
    table = pa.concat_tables([IDS.empty_table(), *(part.ids for part in read)])
    repeats = find_repeats(table)
    kept = np.ones(len(table), bool)
    kept[repeats.lost] = False
    found = [*dict.fromkeys(row for problem in problems for row in _rows(problem)), *repeats.repeated]
    found = _report(found, config, context)
    split = table["split"].to_numpy()
    counts: Counter[str] = Counter({name: int((kept & (split == code)).sum()) for code, name in enumerate(SPLITS)})
    _check_both_sides(+counts, len(found), config)
    copies = _training_copies(table, kept, repeats, config, context)
    renamed = repeats.renamed
    if renamed:
        names_told = ", ".join(row[0] for row in renamed[:3])
        context.warn(
            f"{len(renamed)} document(s) had the id of another with another text and got one of their own: {names_told}"
            f"{', ...' if len(renamed) > 3 else ''} (see problems.parquet)"
        )

    _write_documents(read, repeats, output / "documents")
    fields = PROBLEMS.names
    listed_problems = [dict(zip(fields, row, strict=True)) for row in sorted([*found, *renamed, *copies])]
    write_table(pa.Table.from_pylist(listed_problems, schema=PROBLEMS), output / "problems.parquet")
    listing = {name: [file.entry() for file in listed] for name, listed in files.items()}
    (output / "listing.json").write_text(json.dumps(listing, indent=1, sort_keys=True) + "\n")
    sizes = table["bytes"].to_numpy()
    text_bytes = {name: int(sizes[kept & (split == code)].sum()) for code, name in enumerate(SPLITS)}
    metrics = {f"documents_{name}": float(counts[name]) for name in SPLITS}
    metrics |= {f"bytes_{name}": float(text_bytes[name]) for name in SPLITS}
    metrics |= {"problems": float(len(found)), "files": float(sum(map(len, files.values())))}
    metrics |= {f"problems_{kind}": float(n) for kind, n in sorted(Counter(row[2] for row in found).items())}
    metrics |= {"training_copies": float(len(copies)), "documents_renamed": float(len(renamed))}
    apart = f"; {len(renamed)} told apart from others of their id" if renamed else ""
    told = ", ".join(f"{counts[name]} {name} ({text_bytes[name] / 1e6:.1f} MB)" for name in SPLITS)
    skipped = f"; {len(found)} skipped" if found else ""
    headline = f"{int(kept.sum())} documents: {told}{skipped}{apart}"
    return Summary(headline, metrics, {"Problems": "problems.parquet"})


def _read(
    groups: Sequence[Group],
    size: int,
    seen: Mapping[str, set[str]],
    problems: list[pa.Table],
    context: Context,
    folder: Path,
) -> Iterator[ReadGroup]:
    """Every group, read; takes up columns and problems."""
    worth_it = size > WORTH_TASKS
    pieces = _in_pieces(groups, worth_it)
    work = [group for of_group in pieces for group in of_group]
    place = join(context.work_url, "shards")
    made = spread_saved(reading.read_group, work, place, identity=reading.identity, worth_it=worth_it)
    done = documents = resumed = 0
    for of_group in pieces:
        parts: list[Saved] = []
        for group, part in zip(of_group, made, strict=False):
            parts.append(part)
            done, resumed = done + group.size, resumed + part.resumed
            documents += part.value["documents"]
            context.progress(min(done, size) or len(parts), size or len(work), "bytes", documents=float(documents))
        if len(parts) > 1 and any(part.value["damaged"] for part in parts):  # what is left of it is said of the whole
            whole = [replace(of_group[0], piece=None)]
            parts = list(spread_saved(reading.read_group, whole, place, identity=reading.identity, worth_it=worth_it))
        for part in parts:
            seen[of_group[0].source.name].update(part.value["columns"])
            if part.value["problems"]:
                problems.append(_table(part, PROBLEMS_FILE))
        yield _put_together(parts, worth_it, context, folder)
    if resumed:
        context.log(f"{resumed} of {len(work)} groups of files were read by an earlier attempt")


def _in_pieces(groups: Sequence[Group], worth_it: bool) -> list[list[Group]]:
    large = [group for group in groups if reading.splittable(group)]
    cut = spread(reading.in_pieces, large, reading.SPLIT_BYTES, worth_it=worth_it)
    pieces = [next(cut) if reading.splittable(group) else [group] for group in groups]
    lined = [group for of_group in pieces if len(of_group) > 1 for group in of_group]
    begun = spread(reading.rows_of, lined, worth_it=worth_it)
    for of_group in pieces:
        if len(of_group) > 1 and reading.counted(of_group[0]):
            first = 0
            for at, group in enumerate(of_group):
                assert group.piece is not None
                of_group[at] = replace(group, piece=replace(group.piece, first=first))
                first += next(begun)
        elif len(of_group) > 1:
            for _ in of_group:
                next(begun)
    return pieces


def _put_together(parts: list[Saved], worth_it: bool, context: Context, folder: Path) -> ReadGroup:
    """The files of a group; those of one read in pieces are laid out as if it had been read in one."""
    tables = [mapped(join(part.url, IDS_FILE), folder) for part in parts]
    if len(parts) == 1:
        (part,) = parts
        return ReadGroup([(part, part_name(number)) for number in range(part.value["parts"])], tables[0])
    table = pa.concat_tables(tables)
    piece = np.repeat(np.arange(len(tables)), [len(some) for some in tables])
    part_of, row = table["part"].to_numpy(), table["row"].to_numpy()
    places = reading.layout(table["bytes"].to_numpy())
    jobs = []
    for start, end in places:
        new = np.flatnonzero((np.diff(piece[start:end]) != 0) | (np.diff(part_of[start:end]) != 0)) + start + 1
        edges = [start, *new.tolist(), end]
        jobs.append(
            tuple(
                Slice(join(parts[piece[a]].url, part_name(int(part_of[a]))), int(row[a]), int(row[b - 1]) + 1)
                for a, b in itertools.pairwise(edges)
            )
        )
    place = join(context.work_url, "assembled")
    made = spread_saved(reading.assemble, jobs, place, identity=reading.slices_identity, worth_it=worth_it)
    number = np.repeat(np.arange(len(places), dtype=np.int32), [end - start for start, end in places])
    inside = np.concatenate([np.empty(0, np.int32), *(np.arange(end - a, dtype=np.int32) for a, end in places)])
    table = table.set_column(4, IDS.field("part"), pa.array(number)).set_column(5, IDS.field("row"), pa.array(inside))
    return ReadGroup([(part, reading.PART) for part in made], table)


def _check_columns(
    config: IngestConfig, seen: Mapping[str, set[str]], problems: Sequence[pa.Table], context: Context
) -> None:
    """Raises StageError where documents of a source could be read and none has the column of its text; a column of
    something else that no file has is an error in Parquet, whose files say what they have, and is told of JSON Lines.
    """
    rows = pa.concat_tables([PROBLEMS.empty_table(), *problems])
    without_text = set(rows.filter(pc.match_substring(rows["detail"], NO_FIELD))["source"].to_pylist())
    for index, source in enumerate(config.sources):
        if not isinstance(source, Parquet | JsonLines):
            continue
        for name in column_names(source.columns):
            if name in seen[source.name] or not (seen[source.name] or source.name in without_text):
                continue
            if isinstance(source, Parquet) or name == source.columns.text:
                raise StageError(
                    f"no file of source {source.name!r} has such a column",
                    field=f"corpus.sources.{index}.columns",
                    value=name,
                    fix="name the column that holds it; a nested one with dots: content.text",
                )
            context.warn(f"source {source.name}: no document has the column {name!r}")


def _verified_files(source: CorpusSource, index: int) -> list[ExternalFile]:
    """The source's files, compared with the pin: the plan may be older than the files. Those that changed since their
    digest was last taken on this machine are read again, in parallel."""
    files = list_files(source, DigestCache(default_cache(), _digests), f"corpus.sources.{index}")
    field, what = f"corpus.sources.{index}.pin", f"the input of source {source.name!r}"
    unchanged(listing_digest(files), source.pin, field=field, what=what)
    return files


def _digests(paths: Sequence[str], size: int) -> list[str]:
    """Of files together of ``size`` bytes, by a task for some of them each."""
    lots = [paths[at : at + 16] for at in range(0, len(paths), 16)]
    return [digest for lot in spread(digests_of, lots, worth_it=size > WORTH_TASKS) for digest in lot]


def _groups(source: CorpusSource, files: list[ExternalFile]) -> list[Group]:
    if isinstance(source, Hub):
        local = tuple(files) if any(file.size for file in files) else ()
        return [Group(source, local, split) for split in SPLITS if split in source.splits]
    groups: list[Group] = []
    current: list[ExternalFile] = []
    size = 0
    for file, may_end in zip(files, reading.whole_folders(source, files), strict=True):
        current.append(file)
        size += file.size
        if size >= GROUP_BYTES and may_end:
            groups.append(Group(source, tuple(current)))
            current, size = [], 0
    if current:
        groups.append(Group(source, tuple(current)))
    if isinstance(source, Pg19) and (metadata := [file for file in files if file.name == "metadata.csv"]):
        # Every group needs the table; reading it again in each task is cheaper than shipping it.
        groups = [replace(group, files=(*(f for f in group.files if f not in metadata), *metadata)) for group in groups]
    return groups


def _table(part: Saved, name: str) -> pa.Table:
    with part.on_disk(name) as path:
        return pq.read_table(path, memory_map=False)


def _rows(table: pa.Table) -> Iterator[tuple[str, ...]]:
    return zip(*(table[name].to_pylist() for name in PROBLEMS.names), strict=True)


def _report(problems: list[tuple[str, ...]], config: IngestConfig, context: Context) -> list[tuple[str, ...]]:
    """The problems in the order of their names, told to the user. Raises StageError under ``on_bad_document: fail``."""
    name, _, problem, _, detail = range(5)
    problems = sorted(problems, key=lambda row: (row[name], row[problem], row[detail]))
    if problems and config.on_bad_document == "fail":
        first = problems[0]
        raise StageError(
            f"{first[name]}: {first[problem]} ({first[detail]}); {len(problems)} bad document(s) in all",
            field="corpus.on_bad_document",
            value="fail",
            allowed="skip, fail",
            fix="mend the documents, or skip and report them with on_bad_document: skip",
        )
    for kind, count in sorted(Counter(row[problem] for row in problems).items()):
        names = [row[name] for row in problems if row[problem] == kind]
        more = ", ..." if count > 3 else ""
        context.warn(f"{count} document(s) skipped, {kind}: {', '.join(names[:3])}{more} (see problems.parquet)")
    return problems


def _check_both_sides(counts: Counter[str], problems: int, config: IngestConfig) -> None:
    if not counts["train"] or not counts["validation"] + counts["test"]:
        lacking = "training" if not counts["train"] else "evaluation (validation or test)"
        raise StageError(
            f"no {lacking} document is left: {dict(counts) or 'nothing was read'}, {problems} skipped",
            field="corpus.sources",
            value=[source.name for source in config.sources],
            fix="add documents to that split or change the split's shares",
        )


def _training_copies(
    table: pa.Table, kept: NDArray[np.bool_], repeats: Repeats, config: IngestConfig, context: Context
) -> list[tuple[str, ...]]:
    """A row for every training document with the very text of an evaluation document. They stay: what becomes of them
    is for ``decontaminate`` to decide. Raises StageError where no evaluation document is without such a copy."""
    train = table["split"].to_numpy() == SPLITS.index("train")
    held_out = np.flatnonzero(kept & ~train)
    digests = rows_at(table["sha256"], held_out)
    copies = np.flatnonzero(kept & train & is_in(table["sha256"], pc.unique(digests)))
    if not len(copies):
        return []
    taken = pc.unique(rows_at(table["sha256"], copies))
    if pc.all(pc.is_in(digests, taken)).as_py():
        raise StageError(
            f"every evaluation document ({len(held_out)}) is also a training document: the evaluation set is part "
            f"of the training set ({repeats.name(table, int(copies[0]))}, ...)",
            field="corpus.sources",
            value=[source.name for source in config.sources],
            fix="give evaluation documents of their own, or take them out of the training split",
        )
    names = [repeats.name(table, at) for at in held_out.tolist()]
    originals = dict(zip(digests.to_pylist(), names, strict=True))
    rows = []
    for at in copies.tolist():
        name = repeats.name(table, at)
        detail = f"its text is that of the evaluation document {originals[table['sha256'][at].as_py()]}"
        rows.append(tuple(problem_row(name, name.split("/")[0], "evaluation_text", detail, "kept").values()))
    context.warn(
        f"{len(rows)} training document(s) are copies of evaluation documents: {rows[0][0]}"
        f"{', ...' if len(rows) > 1 else ''} (kept for the contamination audit to remove; see problems.parquet)"
    )
    return rows


def _write_documents(read: list[ReadGroup], repeats: Repeats, folder: Path) -> None:
    """Put the groups' files one after the other, without the rows that are lost and under the ids they got."""
    folder.mkdir(parents=True, exist_ok=True)
    touched = sorted({*repeats.lost, *repeats.names})
    number = start = at = 0
    for group in read:
        end = start + len(group.ids)
        gone: dict[int, set[int]] = {}
        new: dict[int, dict[int, str]] = {}
        while at < len(touched) and touched[at] < end:
            part, row = (group.ids[name][touched[at] - start].as_py() for name in ("part", "row"))
            if touched[at] in repeats.lost:
                gone.setdefault(part, set()).add(row)
            else:
                new.setdefault(part, {})[row] = repeats.names[touched[at]]
            at += 1
        for index, (saved, name) in enumerate(group.files):
            target = folder / part_name(number)
            if index not in gone and index not in new:
                saved.place(name, target)
                number += 1
            elif _rewritten(_table(saved, name), target, gone.get(index, set()), new.get(index, {})):
                number += 1
        start = end


def _rewritten(rows: pa.Table, target: Path, gone: set[int], new: dict[int, str]) -> bool:
    """Write a file without some rows and with other ids for some; False where nothing is left of it."""
    ids = [new.get(i, name) for i, name in enumerate(rows["doc_id"].to_pylist())]
    rows = rows.set_column(0, rows.schema.field("doc_id"), pa.array(ids, pa.string()))
    rows = rows.filter(pa.array([i not in gone for i in range(rows.num_rows)]))
    if rows.num_rows:
        write_documents(rows, target)
    return bool(rows.num_rows)
