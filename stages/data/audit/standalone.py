"""The audit of any corpus against any evaluation documents: no study, no store, nothing changed.

The same index, scan, rule, tables and pages as in a study. Files are scanned by threads (the kernels release the GIL
and share one index); with an output folder an interrupted scan goes on with the files that are not done.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages.data.audit.audit import observe, publish, totals_of
from stages.data.audit.findings import Audit
from stages.data.corpus.config import Columns
from stages.data.corpus.opened import PACKED
from stages.data.decontaminate.canary import HOST_BYTES, plant
from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.exclude import excluded_hashes
from stages.data.decontaminate.files import FileKind, FileShard, FoundFile, Reading, Stopped, find, otherwise_packed
from stages.data.matching.index import Index, build
from stages.data.matching.shards import ShardScan, basis_of, scan_shard, warm_up
from stages.stage import StageError

HOSTS = 64  # clean documents that canaries are planted in
WORK = ".work"  # below the output folder, gone at the end


@dataclass(frozen=True)
class Options:
    """What to scan. ``corpus``, ``against``: files, folders, globs, URLs. ``out`` None: nothing is kept."""

    corpus: tuple[str, ...]
    against: tuple[str, ...]
    rule: DecontaminateConfig
    out: Path | None = None
    text_column: str = "text"
    id_column: str | None = None
    encoding: tuple[str, ...] = ("utf-8",)
    format: FileKind | None = None
    jobs: int = 1


@dataclass
class ScanReport:
    """What a scan found: the totals of audit.json, rows of its tables, what could not be read."""

    totals: dict[str, Any]
    books: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    spans: list[dict[str, Any]]
    problems: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def unread(self) -> list[dict[str, str]]:
        """The problems but those of documents that have no text."""
        return [problem for problem in self.problems if problem["problem"] != "empty"]

    @property
    def contaminated(self) -> bool:
        """Whether the rule would cut or drop any document."""
        metrics = self.totals["metrics"]
        return bool(metrics["documents_cut"] + metrics["documents_drop"])


ScanProgress = Callable[[str, int, int, int, int], None]
"""What is done now, files done and in all, documents and bytes of text so far."""


def scan_corpus(options: Options, progress: ScanProgress = lambda *_: None) -> ScanReport:
    """Scan, and write tables, audit.json and pages to ``options.out``.

    Raises StageError where there is nothing to read on either side, or a column is missing.
    """
    if options.out is not None:
        _check_out(options.out)
    _excluded(options.rule)  # a fault there is told before any work
    evaluation, ignored_there = find(options.against, options.format, "--against")
    corpus, ignored_here = find(options.corpus, options.format, "CORPUS")
    ignored = [*ignored_here, *ignored_there]
    _check_columns(options, [*evaluation, *corpus])
    notes = _notes(corpus, evaluation, ignored)
    with _folder(options.out) as out:
        work = out / WORK
        index, books, problems, columns = _index(evaluation, options, work / "evaluation", progress)
        audit, shards = _scanned(corpus, index, books, options, work, progress)
        problems += [problem for shard in shards for problem in shard.problems()]
        problems += [_packed_problem(name) for name in ignored if otherwise_packed(name)]
        if not audit.counts()["documents_in"]:
            for shard, error in shards[0].reading.faults:
                raise _named(error, shard, "CORPUS") from error
            raise _unreadable("CORPUS", options.corpus, problems)
        _check_id_column(options, columns.union(*(shard.columns() for shard in shards)))
        audit.recalls, audit.quotations = plant(_hosts(shards, audit), index, options.rule)
        _write_totals(audit, problems, corpus, evaluation, out / "audit.json")
        publish(audit, out)
        report = _report(out, problems, notes)
        shutil.rmtree(work)
    return report


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="infini-study-audit-") as folder:
        yield Path(folder)


def _check_out(out: Path) -> None:
    """Before any work: a folder this scan may write to, and nothing in it but an earlier scan."""
    wrong = None
    if out.exists() and not out.is_dir():
        wrong = "it is a file"
    elif out.is_dir() and any(out.iterdir()) and not (out / "audit.json").exists() and not (out / WORK).exists():
        wrong = "the folder holds other files"
    elif not os.access(next(p for p in (out, *out.absolute().parents) if p.exists()), os.W_OK):
        wrong = "no permission to write there"
    if wrong is not None:
        raise StageError(
            wrong,
            field="--out",
            value=str(out),
            allowed="a new or empty folder, or that of an earlier scan",
            fix="choose another",
        )


def _notes(corpus: Sequence[FoundFile], evaluation: Sequence[FoundFile], ignored: Sequence[str]) -> list[str]:
    both = sorted({file.location for file in corpus} & {file.location for file in evaluation})
    notes = []
    if both:
        more = f" and {len(both) - 3} more" if len(both) > 3 else ""
        names = ", ".join(both[:3])
        notes.append(f"{len(both)} file(s) stand on both sides and will be found in themselves: {names}{more}")
    hidden = [name for name in ignored if os.path.basename(name).startswith(".")]
    links = [name for name in ignored if name not in hidden and os.path.isdir(name)]
    others = [name for name in ignored if name not in hidden and name not in links]
    for left, what in (
        (others, "file(s) of other kinds"),
        (links, "link(s) to folders around the one that is read"),
        (hidden, "hidden file(s) and folder(s)"),
    ):
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            notes.append(f"{len(left)} {what} were left out: {', '.join(left[:3])}{more}")
    return notes


def _packed_problem(location: str) -> dict[str, str]:
    detail = f"packed in a way that is not read; unpack it, or pack its files as {', '.join(PACKED)}"
    return {"file": location, "name": location, "problem": "unreadable", "detail": detail}


def _index(
    files: Sequence[FoundFile], options: Options, work: Path, progress: ScanProgress
) -> tuple[Index, list[dict[str, Any]], list[dict[str, str]], set[str]]:
    reading = Reading(Columns(text=options.text_column, id=options.id_column), options.encoding)
    columns: set[str] = set()
    texts: list[tuple[str, bytes]] = []
    books: list[dict[str, Any]] = []
    problems: list[dict[str, str]] = []
    for number, file in enumerate(files):
        shard = FileShard(number, file, len(files) == 1, reading, work)
        for raw in _raws(shard, "--against", columns):
            if raw.problem:
                problems.append({"file": file.name, "name": raw.id, "problem": raw.problem, "detail": raw.detail})
                continue
            texts.append((raw.id, raw.text))
            books.append({"doc_id": raw.id, "title": raw.title, "split": None})
        progress("reading evaluation documents", number + 1, len(files), len(texts), sum(len(t) for _, t in texts))
    if not texts:
        raise _unreadable("--against", options.against, problems)
    rule = options.rule
    index = build(texts, rule.ngram, rule.max_books_per_ngram, _excluded(rule), rule.item_words)
    return index, books, problems, columns


def _check_columns(options: Options, files: Sequence[FoundFile]) -> None:
    """Before any work: text has no columns to name."""
    text = Options.text_column
    given = {
        "--text-column": options.text_column if options.text_column != text else None,
        "--id-column": options.id_column,
    }
    for option, value in given.items():
        if value is not None and all(file.kind == "text" for file in files):
            raise StageError("has no effect on files of text", field=option, value=value, fix="leave it out")


def _check_id_column(options: Options, columns: set[str]) -> None:
    if options.id_column is not None and options.id_column not in columns:
        raise StageError(
            "no file has such a column",
            field="--id-column",
            value=options.id_column,
            fix="name the column that holds it",
        )


def _excluded(rule: DecontaminateConfig) -> Any:
    try:
        return excluded_hashes(rule)
    except StageError as error:
        raise StageError(
            error.message, field="--exclude", value=error.value, allowed=error.allowed, fix=error.fix
        ) from error


def _raws(shard: FileShard, option: str, columns: set[str]) -> Iterator[Any]:
    try:
        yield from shard.raws(columns)
    except StageError as error:
        raise _named(error, shard, option) from error


def _named(error: StageError, shard: FileShard, option: str) -> StageError:
    """A fault of a source of a study said in the words of this command."""
    column = error.field.endswith("columns")
    return StageError(
        f"{shard.file.location}: {error.message}",
        field=("--text-column" if error.value == shard.reading.columns.text else "--id-column") if column else option,
        value=error.value,
        allowed=error.allowed,
        fix="name the column that holds it" if column else error.fix,
    )


def _unreadable(option: str, places: Sequence[str], problems: Sequence[dict[str, str]]) -> StageError:
    first = f", the first: {problems[0]['name']}: {problems[0]['detail']}" if problems else ""
    return StageError(
        f"no document could be read ({len(problems)} skipped{first})",
        field=option,
        value=" ".join(places),
        fix="check the files, --format and --text-column",
    )


def _scanned(
    files: Sequence[FoundFile],
    index: Index,
    books: list[dict[str, Any]],
    options: Options,
    work: Path,
    progress: ScanProgress,
) -> tuple[Audit, list[FileShard]]:
    """The findings. The same at any number of threads."""
    done = {"files": 0, "documents": 0, "bytes": 0}

    def tell() -> None:
        progress("scanning", done["files"], len(files), done["documents"], done["bytes"])

    def heard(documents: int, size: int) -> None:  # from several threads: a lost update would cost only a wrong display
        done["documents"] += documents
        done["bytes"] += size
        tell()

    reading = Reading(Columns(text=options.text_column, id=options.id_column), options.encoding, heard)
    shards = [FileShard(n, file, len(files) == 1, reading, work / "problems") for n, file in enumerate(files)]
    warm_up(index, options.rule)
    basis = basis_of(index, options.rule)

    def one(shard: FileShard) -> ShardScan:
        return scan_shard(shard, index, options.rule, str(work.absolute()), basis)

    scans: list[ShardScan] = []
    pool = ThreadPoolExecutor(max(1, min(options.jobs, len(shards))), thread_name_prefix="scan")
    try:
        for scan in pool.map(one, shards):
            scans.append(scan)
            done["files"] += 1
            tell()
    except Stopped:  # only after the interrupt that set the flag
        raise KeyboardInterrupt from None
    finally:
        reading.stop.set()  # without effect where all is done
        pool.shutdown(wait=True, cancel_futures=True)
    return observe(index, books, options.rule, scans), shards


def _hosts(shards: Sequence[FileShard], audit: Audit) -> list[bytes]:
    """The beginning of the first clean documents of files from all over the corpus."""
    hosts = []
    step = max(1, len(shards) // HOSTS)
    each = max(1, HOSTS // len(shards))
    for shard, state in list(zip(shards, audit.shards, strict=True))[::step][:HOSTS]:
        found = {document.row for document in state.found}
        free = [row for row in range(min(state.scan.documents_in, 8 * each)) if row not in found][:each]
        if not free:
            continue
        rows = (raw for raw in shard.raws() if not raw.problem)
        for row, raw in enumerate(rows):
            if row in free:
                hosts.append(raw.text[: 50 * HOST_BYTES].decode(errors="ignore").encode())
            if row >= free[-1]:
                break
    return hosts


def _write_totals(
    audit: Audit,
    problems: Sequence[dict[str, str]],
    corpus: Sequence[FoundFile],
    evaluation: Sequence[FoundFile],
    path: Path,
) -> None:
    more = {"problems": float(len(problems)), "files": float(len(corpus)), "files_against": float(len(evaluation))}
    totals = totals_of(audit, more) | {"digests": {"corpus": _digest(audit)}, "problems": list(problems)}
    path.write_text(json.dumps(totals, indent=1, sort_keys=True) + "\n")


def _digest(audit: Audit) -> str:
    """sha256 over id and sha256 of every document, in the order of files and rows."""
    digest = hashlib.sha256()
    for state in audit.shards:
        table = state.scan.table()
        for name, text in zip(table["doc_id"].to_pylist(), table["sha256"].to_pylist(), strict=True):
            digest.update(f"{name}\t{text}\n".encode())
    return digest.hexdigest()


def _report(out: Path, problems: list[dict[str, str]], notes: list[str]) -> ScanReport:
    rows = {name: pq.read_table(out / f"{name}.parquet").to_pylist() for name in ("books", "pairs")}
    spans = pq.ParquetFile(out / "spans.parquet")
    first = next(spans.iter_batches(1000), None)
    totals = json.loads((out / "audit.json").read_text())
    return ScanReport(totals, rows["books"], rows["pairs"], first.to_pylist() if first else [], problems, notes)
