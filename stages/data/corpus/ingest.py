"""Reads the pinned sources and writes the documents table, shard by shard, with every problem named.

Files are read in groups, a task each; a task streams its documents into files of ``documents.PART_BYTES`` of text in
the step's work folder, so memory is bounded by a shard and a crash costs the groups in flight. The driver holds of the
documents only id, split and hash: with them it finds ids that repeat anywhere in the corpus. The order of the table is
that of the sources in the study file, of the files' names, and of the documents in a file.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.storage import join
from stages.data.corpus.config import SPLITS, Hub, IngestConfig, JsonLines, Parquet, Pg19, Source, SplitName
from stages.data.corpus.documents import DocumentsWriter, part_name, write_documents, write_table
from stages.data.corpus.files import DigestCache, ExternalFile
from stages.data.corpus.pin import list_files, listing_digest
from stages.data.corpus.readers import NO_FIELD, Raw, column_names, pg19_metadata, printable, read, read_hub, year_of
from stages.data.pinned import unchanged
from stages.data.saved import Saved, spread_saved
from stages.stage import Context, StageError, Summary

GROUP_BYTES = 16 * 2**20  # of input for one task; a larger file is one task by itself
WORTH_TASKS = 32 * 2**20  # below this many bytes of input, starting workers costs more than it saves

PROBLEMS = pa.schema([(name, pa.string()) for name in ("name", "source", "problem", "action", "detail")])
IDS = pa.schema(
    [
        ("doc_id", pa.large_string()),
        ("split", pa.string()),
        ("sha256", pa.binary(32)),
        ("bytes", pa.int64()),
        ("part", pa.int32()),
        ("row", pa.int32()),
    ]
)
"""What the driver holds of each document. part: the file of its group, row: the row in there."""

FORMAT = 2  # of what a task leaves

Group = tuple[Source, list[ExternalFile], SplitName | None]
"""One task's share: a source and some of its files, or one split of a hub source."""


def ingest(config: IngestConfig, output: Path, context: Context) -> Summary:
    """Write ``documents/``, ``problems.parquet``, ``listing.json``.

    Raises StageError where an input differs from its pin, where no training or no evaluation document is left, where
    every evaluation document is also a training document, and for any bad document under ``on_bad_document: fail``.
    """
    files = {source.name: _verified_files(source, index) for index, source in enumerate(config.sources)}
    groups = [group for source in config.sources for group in _groups(source, files[source.name])]
    size = sum(file.size for listed in files.values() for file in listed)
    parts: list[Saved] = []
    seen: dict[str, set[str]] = {source.name: set() for source in config.sources}
    ids: list[pa.Table] = []
    problems: list[pa.Table] = []
    done = documents = 0
    made = spread_saved(
        _read_group, groups, join(context.work_url, "shards"), identity=_identity, worth_it=size > WORTH_TASKS
    )
    for (source, members, _), part in zip(groups, made, strict=True):
        parts.append(part)
        seen[source.name].update(part.value["columns"])
        ids.append(_table(part, "ids.parquet"))
        problems.append(_table(part, "problems.parquet"))
        documents += ids[-1].num_rows
        done += sum(file.size for file in members)
        context.progress(min(done, size) or len(parts), size or len(groups), "bytes", documents=float(documents))
    if resumed := sum(part.resumed for part in parts):
        context.log(f"{resumed} of {len(parts)} groups of files were read by an earlier attempt")
    _check_columns(config, seen, problems, context)
    groups_of = pa.array([i for i, table in enumerate(ids) for _ in range(table.num_rows)], pa.int32())
    table = pa.concat_tables([IDS.empty_table(), *ids]).append_column("group", groups_of)
    lost, names, repeated, renamed = _repeats(table)
    table = table.set_column(0, "doc_id", names)
    kept = table.filter(pa.array([not gone for gone in lost], pa.bool_())) if any(lost) else table
    found = [*dict.fromkeys(row for problem in problems for row in _rows(problem)), *repeated]
    found = _report(found, config, context)
    counts = Counter(kept["split"].to_pylist())
    _check_both_sides(counts, len(found), config)
    copies = _training_copies(kept, config, context)
    if renamed:
        names_told = ", ".join(row[0] for row in renamed[:3])
        context.warn(
            f"{len(renamed)} document(s) had the id of another with another text and got one of their own: {names_told}"
            f"{', ...' if len(renamed) > 3 else ''} (see problems.parquet)"
        )

    changed = {row[0] for row in renamed}
    _write_documents(parts, table, lost, changed, output / "documents")
    fields = PROBLEMS.names
    listed_problems = [dict(zip(fields, row, strict=True)) for row in sorted([*found, *renamed, *copies])]
    write_table(pa.Table.from_pylist(listed_problems, schema=PROBLEMS), output / "problems.parquet")
    listing = {name: [file.entry() for file in listed] for name, listed in files.items()}
    (output / "listing.json").write_text(json.dumps(listing, indent=1, sort_keys=True) + "\n")
    text_bytes = {s: pc.sum(kept.filter(pc.equal(kept["split"], s))["bytes"]).as_py() or 0 for s in SPLITS}
    metrics = {f"documents_{split}": float(counts[split]) for split in SPLITS}
    metrics |= {f"bytes_{split}": float(text_bytes[split]) for split in SPLITS}
    metrics |= {"problems": float(len(found)), "files": float(sum(map(len, files.values())))}
    metrics |= {f"problems_{kind}": float(n) for kind, n in sorted(Counter(row[2] for row in found).items())}
    metrics |= {"training_copies": float(len(copies)), "documents_renamed": float(len(renamed))}
    apart = f"; {len(renamed)} told apart from others of their id" if renamed else ""
    told = ", ".join(f"{counts[split]} {split} ({text_bytes[split] / 1e6:.1f} MB)" for split in SPLITS)
    skipped = f"; {len(found)} skipped" if found else ""
    headline = f"{kept.num_rows} documents: {told}{skipped}{apart}"
    return Summary(headline, metrics, {"Problems": "problems.parquet"})


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


def _verified_files(source: Source, index: int) -> list[ExternalFile]:
    """The source's files, re-read and compared with the pin: the plan may be older than the files."""
    files = list_files(source, DigestCache(None), f"corpus.sources.{index}")
    field, what = f"corpus.sources.{index}.pin", f"the input of source {source.name!r}"
    unchanged(listing_digest(files), source.pin, field=field, what=what)
    return files


def _groups(source: Source, files: list[ExternalFile]) -> list[Group]:
    if isinstance(source, Hub):
        return [(source, [], split) for split in SPLITS if split in source.splits]
    groups: list[Group] = []
    current: list[ExternalFile] = []
    size = 0
    for file in files:
        current.append(file)
        size += file.size
        if size >= GROUP_BYTES:
            groups.append((source, current, None))
            current, size = [], 0
    if current:
        groups.append((source, current, None))
    if isinstance(source, Pg19) and (metadata := [file for file in files if file.name == "metadata.csv"]):
        # Every group needs the table; reading it again in each task is cheaper than shipping it.
        groups = [(source, [*(f for f in members if f not in metadata), *metadata], None) for _, members, _ in groups]
    return groups


def _identity(group: Group) -> str:
    source, files, split = group
    listed = [(printable(file.name), file.size, file.digest) for file in files]
    said = [FORMAT, source.key_fields(), listed, split]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _read_group(group: Group, folder: Path) -> dict[str, Any]:
    """One task: the group's documents (repeats included) as ``part-*.parquet``, their ``ids.parquet`` and its
    ``problems.parquet``. Returns the number of parts, and which of the source's columns the files have."""
    source, files, _ = group
    ids: list[dict[str, Any]] = []
    problems: list[dict[str, str]] = []
    metadata: dict[str, dict[str, str]] = {}
    if isinstance(source, Pg19):
        try:
            metadata = next((pg19_metadata(file) for file in files if file.name == "metadata.csv"), {})
        except ValueError as error:
            detail = f"titles and years are left out: {error}"
            problems.append(_problem(f"{source.name}/metadata.csv", source.name, "undecodable", detail))
    writer = DocumentsWriter(folder)
    seen: set[str] = set()
    for raw in _raws(group, seen):
        if raw.problem:
            problems.append(_problem(f"{source.name}/{raw.id}", source.name, raw.problem, raw.detail))
            continue
        row = _row(source, _described(raw, metadata.get(raw.id)))
        part, place = writer.write(row)
        digest = bytes.fromhex(row["sha256"])
        ids.append({"doc_id": row["doc_id"], "split": raw.split, "sha256": digest, "bytes": len(raw.text)})
        ids[-1] |= {"part": part, "row": place}
    if ids:
        writer.close()
    write_table(pa.Table.from_pylist(ids, schema=IDS), folder / "ids.parquet")
    write_table(pa.Table.from_pylist(problems, schema=PROBLEMS), folder / "problems.parquet")
    return {"parts": writer.parts, "columns": sorted(seen)}


def _raws(group: Group, seen: set[str]) -> Iterator[Raw]:
    source, files, split = group
    if isinstance(source, Hub) and split is not None:
        yield from read_hub(source, split)
    for file in files:
        yield from read(source, file, seen)


def _described(raw: Raw, about: dict[str, str] | None) -> Raw:
    if about is None:
        return raw
    year = year_of(about.get("year"))
    return replace(raw, title=about.get("title") or None, author=about.get("author") or None, year=year)


def _row(source: Source, raw: Raw) -> dict[str, Any]:
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


def _problem(name: str, source: str, problem: str, detail: str, action: str = "skipped") -> dict[str, str]:
    return {"name": name, "source": source, "problem": problem, "action": action, "detail": detail}


def _table(part: Saved, name: str) -> pa.Table:
    with part.on_disk(name) as path:
        return pq.read_table(path, memory_map=False)


def _rows(table: pa.Table) -> Iterator[tuple[str, ...]]:
    return zip(*(table[name].to_pylist() for name in PROBLEMS.names), strict=True)


def _repeats(
    table: pa.Table,
) -> tuple[list[bool], pa.ChunkedArray, list[tuple[str, ...]], list[tuple[str, ...]]]:
    """(is row i left out because another has its id and text, the ids told apart, a problem for each row left out, one
    for each that got another id).

    Of several with one id and text an evaluation document is kept before a training one: so the copy that goes is the
    one that would leak. In the same order those of one id and different texts are named ``id``, ``id#2``, ``id#3``.
    """
    order = pc.sort_indices(table["doc_id"])
    names = table["doc_id"].take(order).combine_chunks()
    same = pc.equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False) if len(names) > 1 else []
    lost = [False] * table.num_rows
    repeated: list[tuple[str, ...]] = []
    renamed: list[tuple[str, ...]] = []
    if not any(same):
        return lost, table["doc_id"], repeated, renamed
    ids = table["doc_id"].to_pylist()
    taken = {name for name in ids if "#" in name}  # what a new name could run into
    held_out_first = {"test": 0, "validation": 1, "train": 2}
    places = order.to_pylist()
    start = 0
    while start < len(places):
        end = start + 1
        while end < len(places) and same[end - 1]:
            end += 1
        if end - start > 1:
            splits = {i: table["split"][i].as_py() for i in places[start:end]}
            name = ids[places[start]]
            source = name.split("/")[0]
            first: dict[bytes, int] = {}
            number = 1
            for i in sorted(splits, key=lambda i: (held_out_first[splits[i]], i)):
                digest = table["sha256"][i].as_py()
                if (kept := first.setdefault(digest, i)) != i:
                    lost[i] = True
                    detail = f"the same id and text: the copy in {splits[kept]} was kept, this one ({splits[i]}) not"
                    repeated.append(tuple(_problem(name, source, "duplicate_id", detail).values()))
                elif len(first) > 1:
                    number += 1
                    while f"{name}#{number}" in taken:
                        number += 1
                    ids[i] = f"{name}#{number}"
                    detail = f"another document has the id {name} and another text"
                    renamed.append(tuple(_problem(ids[i], source, "same_id", detail, "renamed").values()))
        start = end
    return lost, pa.chunked_array([pa.array(ids, pa.large_string())]), repeated, renamed


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


def _training_copies(kept: pa.Table, config: IngestConfig, context: Context) -> list[tuple[str, ...]]:
    """A row for every training document with the very text of an evaluation document. They stay: what becomes of them
    is for ``decontaminate`` to decide. Raises StageError where no evaluation document is without such a copy."""
    train = kept.filter(pc.equal(kept["split"], "train"))
    held_out = kept.filter(pc.not_equal(kept["split"], "train"))
    copies = train.filter(pc.is_in(train["sha256"], pc.unique(held_out["sha256"])))
    if not copies.num_rows:
        return []
    fresh = pc.sum(pc.invert(pc.is_in(held_out["sha256"], pc.unique(copies["sha256"])))).as_py()
    if not fresh:
        raise StageError(
            f"every evaluation document ({held_out.num_rows}) is also a training document: the evaluation set is part "
            f"of the training set ({copies['doc_id'][0].as_py()}, ...)",
            field="corpus.sources",
            value=[source.name for source in config.sources],
            fix="give evaluation documents of their own, or take them out of the training split",
        )
    originals = dict(zip(held_out["sha256"].to_pylist(), held_out["doc_id"].to_pylist(), strict=True))
    rows = []
    for name, digest in zip(copies["doc_id"].to_pylist(), copies["sha256"].to_pylist(), strict=True):
        detail = f"its text is that of the evaluation document {originals[digest]}"
        rows.append(tuple(_problem(name, name.split("/")[0], "evaluation_text", detail, "kept").values()))
    context.warn(
        f"{len(rows)} training document(s) are copies of evaluation documents: {rows[0][0]}"
        f"{', ...' if len(rows) > 1 else ''} (kept for the contamination audit to remove; see problems.parquet)"
    )
    return rows


def _write_documents(parts: list[Saved], table: pa.Table, lost: list[bool], renamed: set[str], folder: Path) -> None:
    """Put the groups' files one after the other, without the rows that are ``lost`` and under their ids in ``table``
    where these are ``renamed``."""
    folder.mkdir(parents=True, exist_ok=True)
    without: dict[tuple[int, int], set[int]] = {}
    called: dict[tuple[int, int], dict[int, str]] = {}
    if renamed or any(lost):
        places = zip(*(table[name].to_pylist() for name in ("group", "part", "row", "doc_id")), strict=True)
        for (group, part, row, name), left_out in zip(places, lost, strict=True):
            if left_out:
                without.setdefault((group, part), set()).add(row)
            elif name in renamed:
                called.setdefault((group, part), {})[row] = name
    number = 0
    for group, part in enumerate(parts):
        for index in range(part.value["parts"]):
            target = folder / part_name(number)
            part.take(part_name(index), target)
            gone, new = without.get((group, index), set()), called.get((group, index), {})
            if gone or new:
                rows = pq.read_table(target)
                target.unlink()  # the group's own file stays as it is: target may be a link to it
                ids = [new.get(i, name) for i, name in enumerate(rows["doc_id"].to_pylist())]
                rows = rows.set_column(0, rows.schema.field("doc_id"), pa.array(ids, pa.string()))
                rows = rows.filter(pa.array([i not in gone for i in range(rows.num_rows)]))
                if not rows.num_rows:
                    continue
                write_documents(rows, target)
            number += 1
