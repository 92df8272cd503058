"""Commands that show results: report, ui."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Json, Root, Set, StudyName, Tracking, look, open_store, tracking_uri
from pipeline.cli.places import check_folder, place
from pipeline.cli.render import VERDICT_STYLE, line, print_json, table
from pipeline.errors import StudyError


def report(
    study: StudyName,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", parser=place("--out"), help="Also copy the report into this folder."),
    ] = None,
    set_: Set = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """The verdict table and where the report lies."""
    from pipeline.tracking.publish import publish
    from stages.verdict.report.stage import STAGE

    if out is not None:
        check_folder("--out", out)
    looked = look(study, set_, root)
    commit = looked.study.commit(looked.store, "report")
    folder = looked.store.artifact(commit).path()
    if out is not None:
        try:
            publish(looked.study, looked.store, STAGE, "report", out)
        except OSError as error:
            reason = error.strerror or "not everything could be written"
            raise StudyError(
                f"--out = {str(out)!r}: {reason} (allowed: a folder this user may write to). Fix: choose another"
            ) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # committed, so whole: of other code
            raise StudyError(
                f"report.json = {str(folder / 'report.json')!r}: made by code_version "
                f"{commit.meta.get('code_version')} of the report, which this one ({STAGE.code_version}) cannot write "
                "again. Fix: infini-study run the study, or read the report where it lies"
            ) from error
        folder = out
    if json:
        print_json("report", {"key": commit.key, "path": str(folder / "report.html"), "report": _report_json(folder)})
        return
    print_verdicts(folder)
    line(f"report: {folder / 'report.html'}")


def _report_json(folder: Path) -> dict[str, object]:
    import json

    value: dict[str, object] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return value


def print_verdicts(folder: Path) -> None:
    """The verdict table of a report folder, and under it the positive control."""
    from stages.verdict.report.terminal import control_rows, verdict_rows

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
    from cluster import storage
    from pipeline.cli.serve import serve

    uri = tracking_uri(tracking, open_store(root))
    if uri.startswith(("http://", "https://")):
        line(storage.redacted(uri))
        return
    serve(uri, port, line)
