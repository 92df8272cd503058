"""``audit``: the contamination audit of a study; ``scan`` is beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.cli.options import Json, Root, Set, StudyName, look
from pipeline.cli.render import line, print_json, table
from pipeline.engine.escape import escaped
from pipeline.errors import UnknownName
from stages.display.numbers import share

if TYPE_CHECKING:
    from pipeline.cli.options import Looked

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
    tuned_on = _tuned_on(looked) if book is None and document is None else []
    if json:
        keys = ("books", "pairs", "sources", "uncovered", "canaries", "decisions")
        body = {"key": commit.key, "headline": commit.headline, "metrics": dict(commit.metrics)}
        body |= {"path": str(folder / "audit.html"), "totals": found["totals"]}
        body |= {name: found[name] for name in keys if name != "decisions" or document is not None}
        body |= {} if tasks is None else {"tasks": {"headline": tasks.headline, "items": tasks.rows}}
        body |= {} if not tuned_on else {"tuning": {one.step: asdict(one) for one in tuned_on}}
        print_json("audit", {**body, "spans": spans})
        return
    line(commit.headline)
    line(f"evidence with both texts side by side: {folder / 'audit.html'}")
    print_totals(found["totals"])
    if document is not None:
        _print_decision(found["decisions"][0])
    print_books(found, limit)
    print_pairs(found["pairs"], limit)
    if book is not None:
        _print_uncovered(found["uncovered"], limit)
    _print_spans(spans, limit)
    if tasks is not None:
        _print_tasks(tasks, limit)
    for of_file in tuned_on:
        line()
        line(f"{of_file.step}: {of_file.headline}")
        line(f"evidence: {of_file.path}")


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


@dataclass(frozen=True)
class _TunedOn:
    """The audit of one file of rows that models are tuned on."""

    step: str
    key: str
    headline: str
    path: str
    metrics: dict[str, float]


def _tuned_on(looked: Looked) -> list[_TunedOn]:
    """Those that are made."""
    made = looked.study.commits(looked.store)
    found = []
    for step, commit in sorted(made.items()):
        if step.startswith("tuningaudit/"):
            page = str(looked.store.artifact(commit).path("audit.html"))
            found.append(_TunedOn(step, commit.key, commit.headline, page, dict(commit.metrics)))
    return found


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


def print_totals(totals: dict[str, Any]) -> None:
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


def print_books(found: dict[str, Any], limit: int) -> None:
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


def print_pairs(pairs: Sequence[dict[str, Any]], limit: int) -> None:
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
