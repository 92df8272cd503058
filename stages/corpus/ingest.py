"""Reads the pinned sources and writes the documents table, sorted by id, with every problem named."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from stages.corpus.config import SPLITS, Hub, IngestConfig, Pg19, Source, SplitName
from stages.corpus.documents import SCHEMA, DocumentsWriter, write_table
from stages.corpus.parallel import spread
from stages.corpus.pin import DigestCache, ExternalFile, list_files, listing_digest
from stages.corpus.readers import Raw, pg19_metadata, read, read_hub, year_of
from stages.stage import Context, StageError, Summary

GROUP_BYTES = 4 * 2**20  # of input for one task
WORTH_TASKS = 32 * 2**20  # below this many bytes of input, starting workers costs more than it saves

PROBLEMS = pa.schema([(name, pa.string()) for name in ("name", "source", "problem", "action", "detail")])

Group = tuple[Source, list[ExternalFile], SplitName | None]
"""One task's share: a source and some of its files, or one split of a hub source."""


def ingest(config: IngestConfig, output: Path, context: Context) -> Summary:
    """Write ``documents/``, ``problems.parquet``, ``listing.json``.

    Raises StageError where an input differs from its pin, where no training or no evaluation document is left, and for
    any bad document under ``on_bad_document: fail``.
    """
    files = {source.name: _verified_files(source, index) for index, source in enumerate(config.sources)}
    groups = [group for source in config.sources for group in _groups(source, files[source.name])]
    tables: list[pa.Table] = []
    problems: list[dict[str, str]] = []
    rows: list[tuple[str, str, int, int]] = []  # doc_id, split, table, row
    size = sum(file.size for listed in files.values() for file in listed)
    for index, (table, found) in enumerate(spread(_read_group, groups, worth_it=size > WORTH_TASKS)):
        tables.append(table)
        problems += found
        names, splits = table["doc_id"].to_pylist(), table["split"].to_pylist()
        rows += [(name, split, index, row) for row, (name, split) in enumerate(zip(names, splits, strict=True))]
        context.progress(index + 1, len(groups), "groups of files", documents=float(len(rows)))
    problems = [
        dict(items) for items in dict.fromkeys(tuple(problem.items()) for problem in problems)
    ]  # of every group
    rows, repeated = _without_repeats(rows, tables)
    problems += repeated
    _report(problems, config, context)

    counts = Counter(split for _, split, _, _ in rows)
    if not counts["train"] or not counts["validation"] + counts["test"]:
        lacking = "training" if not counts["train"] else "evaluation (validation or test)"
        raise StageError(
            f"no {lacking} document is left: {dict(counts) or 'nothing was read'}, {len(problems)} skipped",
            field="corpus.sources",
            value=[source.name for source in config.sources],
            fix="add documents to that split or change the split's shares",
        )
    text_bytes = _write_documents(rows, tables, output / "documents")
    write_table(pa.Table.from_pylist(problems, schema=PROBLEMS), output / "problems.parquet")
    listing = {name: [file.entry() for file in listed] for name, listed in files.items()}
    (output / "listing.json").write_text(json.dumps(listing, indent=1, sort_keys=True) + "\n")
    metrics = {f"documents_{split}": float(counts[split]) for split in SPLITS}
    metrics |= {f"bytes_{split}": float(text_bytes[split]) for split in SPLITS}
    metrics |= {"problems": float(len(problems)), "files": float(sum(map(len, files.values())))}
    parts = ", ".join(f"{counts[split]} {split} ({text_bytes[split] / 1e6:.1f} MB)" for split in SPLITS)
    skipped = f"; {len(problems)} skipped" if problems else ""
    return Summary(f"{len(rows)} documents: {parts}{skipped}", metrics, {"Problems": "problems.parquet"})


def _verified_files(source: Source, index: int) -> list[ExternalFile]:
    """The source's files, re-read and compared with the pin: the plan may be older than the files."""
    files = list_files(source, DigestCache(None), f"corpus.sources.{index}")
    found = listing_digest(files)
    if source.pin is not None and source.pin != found:
        raise StageError(
            f"the input of source {source.name!r} changed after the plan was made; it now has the digest {found}",
            field=f"corpus.sources.{index}.pin",
            value=source.pin,
            fix="run again, so that the plan sees the change",
        )
    return files


def _groups(source: Source, files: list[ExternalFile]) -> list[Group]:
    if isinstance(source, Hub):
        return [(source, [], split) for split in SPLITS if split in source.splits]
    groups: list[Group] = []
    current: list[ExternalFile] = []
    for file in files:
        current.append(file)
        if sum(member.size for member in current) >= GROUP_BYTES:
            groups.append((source, current, None))
            current = []
    if current:
        groups.append((source, current, None))
    if isinstance(source, Pg19) and (metadata := [file for file in files if file.name == "metadata.csv"]):
        # Every group needs the table; reading it again in each task is cheaper than shipping it.
        groups = [(source, [*(f for f in members if f not in metadata), *metadata], None) for _, members, _ in groups]
    return groups


def _read_group(group: Group) -> tuple[pa.Table, list[dict[str, str]]]:
    """One task: the group's documents as a table (unsorted, repeats included) and its problems."""
    source, files, split = group
    rows, problems = [], []
    metadata: dict[str, dict[str, str]] = {}
    if isinstance(source, Pg19):
        try:
            metadata = next((pg19_metadata(file) for file in files if file.name == "metadata.csv"), {})
        except ValueError as error:
            detail = f"titles and years are left out: {error}"
            problems.append(_problem(f"{source.name}/metadata.csv", source.name, "undecodable", detail))
    if isinstance(source, Hub) and split is not None:
        raws = list(read_hub(source, split))
    else:
        raws = [raw for file in files for raw in read(source, file)]
    for raw in raws:
        if raw.problem:
            problems.append(_problem(f"{source.name}/{raw.id}", source.name, raw.problem, raw.detail))
        else:
            rows.append(_row(source, _described(raw, metadata.get(raw.id))))
    return pa.Table.from_pylist(rows, schema=SCHEMA), problems


def _described(raw: Raw, about: dict[str, str] | None) -> Raw:
    if about is None:
        return raw
    year = year_of(about.get("year"))
    return replace(raw, title=about.get("title") or None, author=about.get("author") or None, year=year)


def _row(source: Source, raw: Raw) -> dict[str, object]:
    return {
        "doc_id": f"{source.name}/{raw.id}",
        "source": source.name,
        "title": raw.title,
        "author": raw.author,
        "year": raw.year,
        "split": raw.split,
        "text": raw.text,
        "sha256": hashlib.sha256(raw.text.encode()).hexdigest(),
    }


def _problem(name: str, source: str, problem: str, detail: str) -> dict[str, str]:
    return {"name": name, "source": source, "problem": problem, "action": "skipped", "detail": detail}


def _without_repeats(
    rows: list[tuple[str, str, int, int]], tables: list[pa.Table]
) -> tuple[list[tuple[str, str, int, int]], list[dict[str, str]]]:
    """Sorted by id, one row an id. Of several, an evaluation document is kept before a training one: so the copy
    that goes is the one that would leak."""
    held_out_first = {"test": 0, "validation": 1, "train": 2}
    kept: list[tuple[str, str, int, int]] = []
    problems = []
    for row in sorted(rows, key=lambda row: (row[0], held_out_first[row[1]], row[2], row[3])):
        if kept and kept[-1][0] == row[0]:
            source = tables[row[2]]["source"][row[3]].as_py()
            detail = f"the copy in {kept[-1][1]} was kept, this one ({row[1]}) not"
            problems.append(_problem(row[0], source, "duplicate_id", detail))
        else:
            kept.append(row)
    return kept, problems


def _report(problems: list[dict[str, str]], config: IngestConfig, context: Context) -> None:
    problems.sort(key=lambda problem: (problem["name"], problem["problem"], problem["detail"]))
    if problems and config.on_bad_document == "fail":
        first = problems[0]
        raise StageError(
            f"{first['name']}: {first['problem']} ({first['detail']}); {len(problems)} bad document(s) in all",
            field="corpus.on_bad_document",
            value="fail",
            allowed="skip, fail",
            fix="mend the documents, or skip and report them with on_bad_document: skip",
        )
    for kind, count in sorted(Counter(problem["problem"] for problem in problems).items()):
        names = [problem["name"] for problem in problems if problem["problem"] == kind]
        more = ", ..." if count > 3 else ""
        context.warn(f"{count} document(s) skipped, {kind}: {', '.join(names[:3])}{more} (see problems.parquet)")


def _write_documents(rows: list[tuple[str, str, int, int]], tables: list[pa.Table], folder: Path) -> Counter[str]:
    writer = DocumentsWriter(folder)
    text_bytes: Counter[str] = Counter()
    for _, split, table, row in rows:
        document = tables[table].slice(row, 1).to_pylist()[0]
        text_bytes[split] += len(document["text"].encode())
        writer.write(document)
    writer.close()
    return text_bytes
