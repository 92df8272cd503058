"""``audit scan``: the contamination audit of any files, without a study."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from pipeline.cli.audit import print_books, print_pairs, print_totals
from pipeline.cli.options import MOST_JOBS, Json, at_most
from pipeline.cli.places import check_folder, place
from pipeline.cli.render import line, note, print_json
from pipeline.engine.escape import escaped
from pipeline.errors import StudyError
from stages.data.audit.wording import REPORTED, verdict
from stages.display.numbers import size

if TYPE_CHECKING:
    from stages.data.audit.standalone import ScanReport
    from stages.data.decontaminate.files import FileKind

CONTAMINATED = 1  # exit code of a scan that found something to act on
INCOMPLETE = 4  # of one that found nothing in what it could read, which was not all
SHOWN_PROBLEMS = 10


def scan(
    corpus: Annotated[
        list[str],
        typer.Argument(metavar="CORPUS...", help="Training text: files, folders, globs or URLs."),
    ],
    against: Annotated[
        list[str], typer.Option("--against", metavar="EVALS", help="Evaluation documents, the same forms; repeatable.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            parser=place("--out"),
            help="Write the tables and pages with the evidence here.",
        ),
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
        int,
        typer.Option(
            "--canaries",
            min=0,
            callback=at_most(10_000, "--canaries"),
            help="Planted passages per kind, to measure what is found.",
        ),
    ] = 20,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            callback=at_most(MOST_JOBS, "--jobs"),
            help="Threads (default: the cores of this machine).",
        ),
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
    if exclude and not all(place.strip() for place in exclude):
        raise StudyError("--exclude = '': no name (allowed: a path, a glob or a URL of files). Fix: give one")
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
    if out is not None:
        check_folder("--out", out)
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
            if not fault["loc"]:  # of several fields: as options
                message = re.sub(r"\b([a-z]\w*)(?= = )", lambda found: "--" + found[1].replace("_", "-"), message)
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
        f"{metrics['documents_cut']:,.0f} to cut, {metrics['documents_drop']:,.0f} to drop"
    )
    print_totals(report.totals)
    sources: dict[str, int] = {}
    rows = []
    for pair in sorted(report.pairs, key=lambda pair: (pair["book_id"], -pair["book_share"], pair["doc_id"])):
        sources[pair["book_id"]] = rank = sources.get(pair["book_id"], 0) + 1
        rows.append({**pair, "rank": rank, "share": pair["book_covered"]})
    print_books({"books": report.books, "sources": rows}, limit)
    print_pairs(report.pairs, limit)
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
