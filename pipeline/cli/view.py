"""Commands that show results: audit, report, ui."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import Json, Root, Set, StudyFile, Tracking, open_store, open_study, tracking_uri
from pipeline.cli.render import VERDICT_STYLE, line, print_json, table
from pipeline.errors import StudyError, UnknownName

if TYPE_CHECKING:
    from pipeline.plan import Plan
    from pipeline.store import Commit, Store


def audit(
    study: StudyFile,
    book: Annotated[
        str | None, typer.Option("--book", metavar="ID", help="One evaluation document, with its spans.")
    ] = None,
    document: Annotated[
        str | None, typer.Option("--document", metavar="ID", help="One training document, with its spans.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many rows.")] = 30,
    set_: Set = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """The contamination audit: what of the evaluation documents was found in training, and what was done about it."""
    import pyarrow.parquet as pq

    opened = open_study(study, set_, root)
    commit = _committed(opened.plan, opened.store, "decontaminate")
    artifact = opened.store.artifact(commit)
    books = pq.read_table(artifact.path("books.parquet")).to_pylist()
    pairs = pq.read_table(artifact.path("pairs.parquet")).to_pylist()
    decisions = {row["doc_id"]: row for row in pq.read_table(artifact.path("decisions.parquet")).to_pylist()}
    spans: list[dict[str, object]] = []
    if book is not None or document is not None:
        known = {row["book_id"] for row in books} if book is not None else set(decisions)
        wanted = str(book if book is not None else document)
        if wanted not in known:
            raise UnknownName("evaluation document" if book is not None else "training document", wanted, sorted(known))
        column = "book_id" if book is not None else "doc_id"
        pairs = [row for row in pairs if row[column] == wanted]
        spans = [row for row in pq.read_table(artifact.path("spans.parquet")).to_pylist() if row[column] == wanted]
    pairs.sort(key=lambda row: -row["matched_words"])
    if json:
        body = {"key": commit.key, "headline": commit.headline, "metrics": dict(commit.metrics), "books": books}
        print_json("audit", {**body, "pairs": pairs, "spans": spans})
        return
    line(commit.headline)
    line(f"evidence with both texts side by side: {artifact.path('audit.html')}")
    line()
    table(
        ["training document", "evaluation document", "words", "longest", "of document", "of book", "document is"],
        [
            [
                row["doc_id"], row["book_id"], str(row["matched_words"]), str(row["longest_words"]),
                f"{row['document_share']:.1%}", f"{row['book_share']:.1%}", decisions[row["doc_id"]]["action"],
            ]
            for row in pairs[:limit]
        ],
    )  # fmt: skip
    for span in spans[:limit]:
        line()
        for side, name in (("doc", span["doc_id"]), ("book", span["book_id"])):
            text = " ".join(str(span[f"{side}_text"]).split())[:400]
            line(f"{name} bytes {span[f'{side}_start']}-{span[f'{side}_end']}: {text}")
    if len(pairs) > limit:
        line(f"{limit} of {len(pairs)} pairs; --limit shows more")


def report(
    study: StudyFile,
    out: Annotated[Path | None, typer.Option("--out", help="Also copy the report into this folder.")] = None,
    set_: Set = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """The verdict table and where the report lies."""
    opened = open_study(study, set_, root)
    commit = _committed(opened.plan, opened.store, "report")
    folder = opened.store.artifact(commit).path()
    if out is not None:
        try:
            shutil.copytree(folder, out, dirs_exist_ok=True)
        except OSError as error:
            reason = error.strerror or "not everything could be written"
            raise StudyError(
                f"--out = {str(out)!r}: {reason} (allowed: a folder this user may write to). Fix: choose another"
            ) from error
        folder = out
    if json:
        print_json("report", {"key": commit.key, "path": str(folder / "report.html"), "report": _report_json(folder)})
        return
    print_verdicts(folder)
    line(f"report: {folder / 'report.html'}")


def _committed(plan: Plan, store: Store, step_id: str) -> Commit:
    step = plan[step_id]
    commit = store.lookup_many([(step.stage.name, step.key)]).get(step.key)
    if commit is None:
        raise StudyError(f"step {step_id!r} of {plan.study!r} is not made yet. Fix: infini-study run it first")
    return commit


def _report_json(folder: Path) -> dict[str, object]:
    import json

    value: dict[str, object] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return value


def print_verdicts(folder: Path) -> None:
    """The verdict table of a report folder, and under it the positive control."""
    from stages.report.terminal import control_rows, verdict_rows

    content = _report_json(folder)
    rows = [[row.claim, row.name, row.decision, row.estimate, row.n, row.why] for row in verdict_rows(content)]
    table(["claim", "", "verdict", "estimate", "n", "why"], rows, VERDICT_STYLE, last_below=True)
    control = control_rows(content)
    if control:
        line()
        table(control[0], control[1:])


def ui(
    root: Root = None,
    tracking: Tracking = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port on this machine; 0 takes a free one.")
    ] = 5000,
) -> None:
    """MLflow in the browser, on this machine only: runs, lineage, the contamination audit, the verdicts."""
    from pipeline.cli.serve import serve

    uri = tracking_uri(tracking, open_store(root))
    if uri.startswith(("http://", "https://")):
        line(uri)
        return
    raise typer.Exit(serve(uri, port, line))
