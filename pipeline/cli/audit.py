"""``audit``: the contamination audit of a study, and the same audit of any files, without a study."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperGroup

from pipeline.cli.options import Json, Root, Set, StudyName, look
from pipeline.cli.render import line, note, print_json, table
from pipeline.engine.escape import escaped
from pipeline.errors import StudyError, UnknownName
from stages.data.audit.wording import REPORTED, verdict
from stages.display.numbers import share, size

if TYPE_CHECKING:
    from pipeline.cli.options import Looked
    from stages.data.audit.standalone import ScanReport
    from stages.data.decontaminate.files import FileKind

CONTAMINATED = 1  # exit code of a scan that found something to act on
INCOMPLETE = 4  # of one that found nothing in what it could read, which was not all
SHOWN_PROBLEMS = 10
SHOWN = 400  # characters of each side of a span on the terminal


class StudyFirst(TyperGroup):
    """``audit STUDY ...`` is short for ``audit study STUDY ...``: whatever is no command of the group is a study."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["study", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="audit",
    cls=StudyFirst,
    no_args_is_help=True,
    subcommand_metavar="STUDY [OPTIONS] | scan CORPUS... --against EVALS [OPTIONS]",
    help="The contamination audit: what of the evaluation documents stands in the training text, with its evidence.\n\n"
    "`audit STUDY` shows the audit of a study that was run; `audit scan CORPUS --against EVALS` audits any files.",
)


@app.command()
def study(
    study: StudyName,
    book: Annotated[
        str | None, typer.Option("--book", metavar="ID", help="One evaluation document, with its spans.")
    ] = None,
    document: Annotated[
        str | None, typer.Option("--document", metavar="ID", help="One training document, with its spans.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many rows of each table.")] = 30,
    set_: Set = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """The audit of a study: what was found, what was done about it, and why (also: audit STUDY)."""
    looked = look(study, set_, root)
    commit = looked.study.commit(looked.store, "decontaminate")
    folder = looked.store.artifact(commit).path()
    found = _tables(folder)
    spans = _chosen(found, folder, book, document)
    tasks = _tasks(looked) if book is None and document is None else None
    if json:
        keys = ("books", "pairs", "sources", "uncovered", "canaries", "decisions")
        body = {"key": commit.key, "headline": commit.headline, "metrics": dict(commit.metrics)}
        body |= {"path": str(folder / "audit.html"), "totals": found["totals"]}
        body |= {name: found[name] for name in keys if name != "decisions" or document is not None}
        body |= {} if tasks is None else {"tasks": {"headline": tasks.headline, "items": tasks.rows}}
        print_json("audit", {**body, "spans": spans})
        return
    line(commit.headline)
    line(f"evidence with both texts side by side: {folder / 'audit.html'}")
    _print_totals(found["totals"])
    if document is not None:
        _print_decision(found["decisions"][0])
    _print_books(found, limit)
    _print_pairs(found["pairs"], limit)
    if book is not None:
        _print_uncovered(found["uncovered"], limit)
    _print_spans(spans, limit)
    if tasks is not None:
        _print_tasks(tasks, limit)


def _tables(folder: Path) -> dict[str, Any]:
    import json

    import pyarrow.parquet as pq

    names = ("books", "pairs", "sources", "uncovered", "canaries")
    found = {name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in names}
    return {**found, "totals": json.loads((folder / "audit.json").read_text(encoding="utf-8"))}


def _chosen(found: dict[str, Any], folder: Path, book: str | None, document: str | None) -> list[dict[str, Any]]:
    """Keep the rows of one evaluation or training document, or of their pair; returns the spans of what is chosen."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if book is None and document is None:
        return []
    condition = None
    for column, wanted in (("book_id", book), ("doc_id", document)):
        if wanted is None:
            continue
        if column == "book_id":
            known = [row["book_id"] for row in found["books"]]
        else:
            known = pq.read_table(folder / "decisions.parquet", columns=["doc_id"])["doc_id"].to_pylist()
        if wanted not in known:
            raise UnknownName("evaluation document" if column == "book_id" else "training document", wanted, known)
        for name in ("books", "pairs", "sources", "uncovered"):
            rows = found[name]
            found[name] = [row for row in rows if column not in row or row[column] == wanted]
        this = pc.field(column) == wanted
        condition = this if condition is None else condition & this
    if document is not None:
        decisions = pq.read_table(folder / "decisions.parquet", filters=pc.field("doc_id") == document)
        found["decisions"] = decisions.to_pylist()
        held = {row["book_id"] for row in found["pairs"]}
        found["books"] = [row for row in found["books"] if row["book_id"] in held]
        found["uncovered"] = [] if book is None else found["uncovered"]
    spans: list[dict[str, Any]] = pq.read_table(folder / "spans.parquet", filters=condition).to_pylist()
    return sorted(spans, key=lambda row: (row["doc_id"], row["book_id"], row["doc_start"]))


@dataclass(frozen=True)
class _Tasks:
    """The audit of the evaluation tasks' sources and references."""

    headline: str
    rows: list[dict[str, Any]]


def _tasks(looked: Looked) -> _Tasks | None:
    """None where the study has no such tasks, or the step is not made yet."""
    import pyarrow.parquet as pq

    commit = looked.study.commits(looked.store).get("taskaudit")
    if commit is None:
        return None
    path = looked.store.artifact(commit).path("tasks.parquet")
    return _Tasks(commit.headline, pq.read_table(path).to_pylist())


def _print_tasks(tasks: _Tasks, limit: int) -> None:
    found = [row for row in tasks.rows if row["found"] != "no"]
    line()
    line(f"tasks: {tasks.headline}")
    if found:
        table(
            ["task", "item", "id", "found by", "text in", "", "summary in", "", "title"],
            [
                [
                    row["task"],
                    str(row["item"]),
                    row["id"] or "",
                    row["found"],
                    row["text_document"] or "",
                    "" if row["text_coverage"] is None else share(row["text_coverage"]),
                    row["summary_document"] or "",
                    "" if row["summary_coverage"] is None else share(row["summary_coverage"]),
                    row["title"] or "",
                ]
                for row in found[:limit]
            ],
            last_below=True,
        )
        _left(len(found), limit, "items")


def _print_totals(totals: dict[str, Any]) -> None:
    if balance := totals.get("balance"):
        parts = [f"{balance[k]['documents']} {k} ({balance[k]['bytes']:,} B)" for k in ("in", "kept", "cut", "dropped")]
        line(f"documents: {parts[0]} = {' + '.join(parts[1:])}; out {balance['out']['bytes']:,} B: they balance")
    if rescan := totals.get("rescan"):
        line(
            f"second scan of the output: {rescan['documents']} documents, {rescan['documents_to_act_on']} to act on, "
            f"coverage at most {share(rescan['coverage_max'])}"
        )
    canaries = totals["canaries"]
    if canaries["recall"] is not None:
        line(
            f"canaries: {canaries['acted']} of {canaries['planted']} acted on "
            f"({share(canaries['recall'])}, 95% interval {share(canaries['low'])} to {share(canaries['high'])})"
        )


def _print_decision(row: dict[str, Any]) -> None:
    line()
    line(f"{escaped(row['doc_id'])}: {row['action']}, {row['bytes_in']:,} bytes in, {row['bytes_out']:,} out")
    line(f"  {escaped(row['reason'] or 'nothing found in it')}")


def _print_books(found: dict[str, Any], limit: int) -> None:
    books = [row for row in found["books"] if row["coverage"] > 0]
    if not books:
        return
    most: dict[str, list[str]] = {}
    for row in found["sources"]:
        if row["rank"] <= 2:
            most.setdefault(row["book_id"], []).append(f"{row['doc_id']} {share(row['share'])}")
    line()
    table(
        ["evaluation document", "words", "covered", "after", "not found", "in", "most in"],
        [
            [
                row["book_id"],
                f"{row['words']:,}",
                share(row["coverage"]),
                "" if row["coverage_after"] is None else share(row["coverage_after"]),
                f"{row['uncovered_words']:,}",
                str(row["documents"]),
                ", ".join(most.get(row["book_id"], [])),
            ]
            for row in books[:limit]
        ],
        last_below=True,
    )
    _left(len(books), limit, "evaluation documents")


def _print_pairs(pairs: Sequence[dict[str, Any]], limit: int) -> None:
    if not pairs:
        return
    line()
    table(
        ["document", "evaluation document", "class", "done", "words", "longest", "of document", "of book", "why"],
        [
            [
                row["doc_id"],
                row["book_id"],
                row["class"],
                row["action"],
                f"{row['matched_words']:,}",
                f"{row['longest_words']:,}",
                share(row["document_share"]),
                share(row["book_share"]),
                row["reason"] + (f" (near miss: {row['near_miss']})" if row["near_miss"] else ""),
            ]
            for row in pairs[:limit]
        ],
        last_below=True,
    )
    _left(len(pairs), limit, "pairs")


def _print_uncovered(rows: Sequence[dict[str, Any]], limit: int) -> None:
    for row in rows[:limit]:
        line()
        where = f"{escaped(row['book_id'])} bytes {row['book_start']}-{row['book_end']}"
        line(f"{where}, {row['words']:,} words found nowhere:")
        line(f"  {_one_line(row['text'])}")
    _left(len(rows), limit, "uncovered stretches")


def _print_spans(spans: Sequence[dict[str, Any]], limit: int) -> None:
    for span in spans[:limit]:
        line()
        line(f"{span['words']:,} agreeing words, {share(span['identity'])} of the longer side")
        for side, name in (("doc", span["doc_id"]), ("book", span["book_id"])):
            where = f"{escaped(name)} bytes {span[f'{side}_start']}-{span[f'{side}_end']}"
            line(f"  {where}: {_one_line(span[f'{side}_text'])}")
    _left(len(spans), limit, "spans")


def _one_line(text: str) -> str:
    text = escaped(" ".join(text.split()))
    return text if len(text) <= SHOWN else text[:SHOWN] + " …"


def _left(count: int, limit: int, what: str) -> None:
    if count > limit:
        line(f"{limit} of {count} {what}; --limit shows more")


@app.command()
def scan(
    corpus: Annotated[
        list[str],
        typer.Argument(metavar="CORPUS...", help="Training text: files, folders, globs or URLs."),
    ],
    against: Annotated[
        list[str], typer.Option("--against", metavar="EVALS", help="Evaluation documents, the same forms; repeatable.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write the tables and pages with the evidence here.")
    ] = None,
    text_column: Annotated[str, typer.Option("--text-column", help="Column or field with the text.")] = "text",
    id_column: Annotated[
        str | None, typer.Option("--id-column", help="Column or field with the id (default: file and row).")
    ] = None,
    encoding: Annotated[
        list[str] | None,
        typer.Option("--encoding", help="Of the text, the first that fits; repeatable (utf-8).", metavar="NAME"),
    ] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="parquet, jsonl or text, whatever the suffixes say.")
    ] = None,
    ngram: Annotated[int | None, typer.Option("--ngram", help="Words of one seed (5).")] = None,
    max_gap: Annotated[int | None, typer.Option("--max-gap", help="Words between two seeds, at most (25).")] = None,
    max_drift: Annotated[
        int | None, typer.Option("--max-drift", help="Words inserted or lost between seeds, at most (25).")
    ] = None,
    min_span_words: Annotated[
        int | None, typer.Option("--min-span-words", help="Agreeing words from which a span counts (30).")
    ] = None,
    min_item_words: Annotated[
        int | None, typer.Option("--min-item-words", help="Shorter evaluation documents cannot be found (8).")
    ] = None,
    copy_share: Annotated[
        float | None, typer.Option("--copy-share", help="Of a span's words that agree, or nearly, in a copy (0.85).")
    ] = None,
    act_words: Annotated[
        int | None, typer.Option("--act-words", help="Words of the longest span to act on (50).")
    ] = None,
    drop_words: Annotated[
        int | None, typer.Option("--drop-words", help="Words in a dense stretch to drop from (500).")
    ] = None,
    drop_document_share: Annotated[
        float | None, typer.Option("--drop-document-share", help="Share of the document from which to drop (0.2).")
    ] = None,
    drop_book_share: Annotated[
        float | None, typer.Option("--drop-book-share", help="Share of an evaluation document to drop from (0.05).")
    ] = None,
    coverage_limit: Annotated[
        float | None, typer.Option("--coverage-limit", help="Of an evaluation document, by short spans (0.01).")
    ] = None,
    max_books_per_ngram: Annotated[
        int | None, typer.Option("--max-books-per-ngram", help="N-grams in more of them are no evidence (2).")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="TEXTS", help="Quoted everywhere, no evidence: text or Parquet; repeatable."),
    ] = None,
    boilerplate: Annotated[
        str | None, typer.Option("--boilerplate", help="Built-in list of licence wording, or none.")
    ] = None,
    canaries: Annotated[
        int, typer.Option("--canaries", min=0, help="Planted passages per kind, to measure what is found.")
    ] = 20,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Threads (default: the cores of this machine).")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many rows of each table.")] = 30,
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Exit with 0 also where something is found.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    json: Json = False,
) -> None:
    """Audit any files: no study file, nothing is changed.

    Exit codes: 0 nothing to act on, 1 at least one document holds evaluation text that would be cut or dropped,
    2 usage or nothing to read, 4 nothing found but part of the input could not be read, 130 interrupted (with --out the
    next call goes on from there).
    """
    given = {
        "ngram": ngram,
        "max_gap": max_gap,
        "max_drift": max_drift,
        "min_span_words": min_span_words,
        "min_item_words": min_item_words,
        "copy_share": copy_share,
        "act_words": act_words,
        "drop_words": drop_words,
        "drop_document_share": drop_document_share,
        "drop_book_share": drop_book_share,
        "coverage_limit": coverage_limit,
        "max_books_per_ngram": max_books_per_ngram,
        "boilerplate": boilerplate,
        "exclude": [os.path.abspath(place) if "://" not in place else place for place in exclude] if exclude else None,
    }
    rule = _rule({name: value for name, value in given.items() if value is not None}, canaries)
    if format_ not in (None, "parquet", "jsonl", "text"):
        raise StudyError(f"--format = {format_!r}: unknown (allowed: parquet, jsonl, text). Fix: choose one of them")
    from stages.data.audit.standalone import Options, scan_corpus
    from stages.stage import StageError

    kind = cast("FileKind | None", format_)
    cores = jobs or len(os.sched_getaffinity(0))
    encodings = _encodings(encoding)
    options = Options(tuple(corpus), tuple(against), rule, out, text_column, id_column, encodings, kind, cores)
    shown = _Shown(quiet)
    try:
        report = scan_corpus(options, shown)
    except StageError as error:
        shown.end()
        raise StudyError(str(error)) from error
    except KeyboardInterrupt:
        shown.end()
        note("interrupted" if out is None else "interrupted; the same command goes on from there")
        raise typer.Exit(130) from None
    shown.end()
    if report.problems:
        kinds = ", ".join(sorted({problem["problem"] for problem in report.problems}))
        note(f"warning: {len(report.problems)} document(s) could not be read and were left out ({kinds})")
        for problem in report.unread[:SHOWN_PROBLEMS]:
            note(escaped(f"  {problem['name']}: {problem['problem']}: {problem['detail']}"))
        _note_left(len(report.unread))
    for text in report.notes:
        note(escaped(f"warning: {text}"))
    if json:
        _print_scan_json(report, out)
    else:
        _print_scan(report, out, limit)
    if report.contaminated and not exit_zero:
        raise typer.Exit(CONTAMINATED)
    if report.unread:
        raise typer.Exit(INCOMPLETE)


def _encodings(given: list[str] | None) -> tuple[str, ...]:
    from stages.data.corpus.config import check_encodings

    try:
        return check_encodings(tuple(given or ("utf-8",)))
    except ValueError as error:
        raise StudyError(f"--{error}") from error


def _note_left(count: int) -> None:
    if count > SHOWN_PROBLEMS:
        note(f"  and {count - SHOWN_PROBLEMS} more; --json lists all")


def _rule(given: dict[str, Any], canaries: int) -> Any:
    from pydantic import ValidationError

    from stages.data.decontaminate.config import DecontaminateConfig

    try:
        return DecontaminateConfig(action="report_only", canaries={"count": canaries}, **given)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            name = "--" + "-".join(str(part) for part in fault["loc"]).replace("_", "-") + " = " if fault["loc"] else ""
            value = repr(fault["input"]) + ": " if fault["loc"] else ""
            message = fault["msg"].removeprefix("Value error, ")
            lines.append(f"{name}{value}{message}. Fix: see audit scan --help for the defaults")
        raise StudyError("\n".join(lines)) from error


class _Shown:
    """Progress on stderr: one line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._terminal = quiet, sys.stderr.isatty()
        self._started = time.monotonic()
        self._last = self._started
        self._open = False

    def __call__(self, what: str, files: int, of: int, documents: int, size_: int) -> None:
        now = time.monotonic()
        if self._quiet or now - self._last < (0.2 if self._terminal else 10.0):
            return
        self._last = now
        rate = size_ / 1e6 / max(1e-9, now - self._started)
        text = f"{what}: file {files} of {of}, {documents:,} documents, {size(size_)}, {rate:.0f} MB/s"
        sys.stderr.write(f"\r{text}\033[K" if self._terminal else f"{text}\n")
        sys.stderr.flush()
        self._open = self._terminal

    def end(self) -> None:
        """Leave the terminal's line as it was found."""
        if self._open:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
            self._open = False


def _print_scan(report: ScanReport, out: Path | None, limit: int) -> None:
    metrics = report.totals["metrics"]
    line(escaped(verdict(report.totals, report.books).replace(REPORTED, "")))
    line(
        f"{metrics['documents_in']:,.0f} documents ({metrics['bytes_in'] / 1e6:,.1f} MB) of {metrics['files']:,.0f} "
        f"file(s) scanned: {metrics['documents_keep']:,.0f} clean, {metrics['documents_note']:,.0f} noted, "
        f"{metrics['documents_excise']:,.0f} to cut, {metrics['documents_drop']:,.0f} to drop"
    )
    _print_totals(report.totals)
    sources: dict[str, int] = {}
    rows = []
    for pair in sorted(report.pairs, key=lambda pair: (pair["book_id"], -pair["book_share"], pair["doc_id"])):
        sources[pair["book_id"]] = rank = sources.get(pair["book_id"], 0) + 1
        rows.append({**pair, "rank": rank, "share": pair["book_covered"]})
    _print_books({"books": report.books, "sources": rows}, limit)
    _print_pairs(report.pairs, limit)
    if out is not None:
        line()
        line(f"evidence with both texts side by side: {out / 'audit.html'}")
    elif report.pairs:
        line()
        line("--out DIR writes the evidence: pages with both texts side by side, and tables")


def _print_scan_json(report: ScanReport, out: Path | None) -> None:
    body = {
        "complete": not report.unread,
        "contaminated": report.contaminated,
        "out": None if out is None else str(out),
        "totals": report.totals,
        "books": report.books,
        "pairs": report.pairs,
        "spans": report.spans,
        "problems": report.problems,
        "warnings": report.notes,
    }
    print_json("audit scan", body)
