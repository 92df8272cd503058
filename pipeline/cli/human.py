"""``human``: blind pairs of summaries for people, and what they said."""

from __future__ import annotations

import json as jsonlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import Json, Root, Set, StudyName, look
from pipeline.cli.places import check_file, check_folder, place
from pipeline.cli.render import line, note, print_json, table
from pipeline.engine.escape import escaped
from pipeline.errors import StudyError

if TYPE_CHECKING:
    from pipeline.cli.options import Looked
    from stages.statistics.intervals import Estimate

app = typer.Typer(
    name="human",
    no_args_is_help=True,
    help="People as judges of summaries: export blind pairs, import what was chosen.",
)


@app.command("export")
def export_(
    study: StudyName,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", parser=place("DIR"), help="New or empty folder to write.")
    ],
    items: Annotated[int, typer.Option("--items", min=1, help="Pairs to rate, over all pairs of systems.")] = 60,
    arm: Annotated[list[str] | None, typer.Option("--arm", help="Only these arms; repeatable.")] = None,
    against: Annotated[list[str] | None, typer.Option("--against", help="Arms the others are paired with.")] = None,
    baseline: Annotated[
        list[str] | None, typer.Option("--baseline", help="Summaries no model wrote: lead, central, shuffled.")
    ] = None,
    task: Annotated[str, typer.Option("--task", help="condense or continue.")] = "condense",
    decoding: Annotated[str, typer.Option("--decoding", help="sample or greedy.")] = "sample",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of what is drawn and of the order.")] = 0,
    set_: Set = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Blind, balanced, randomised pairs: one offline page, and the same for Label Studio.

    Give raters rate.html (or the Label Studio files). Keep key.json: it says which summary is whose.
    """
    check_folder("DIR", directory, empty=True)
    looked = look(study, set_, root)
    inputs = summaries_of(looked)

    from stages.evidence.human.export import FILES, choose, write
    from stages.evidence.summarize.written import everything
    from stages.stage import StageError

    found = everything(inputs)
    try:
        chosen = choose(
            found,
            items=items,
            against=against or [a for a in found.arms if a == "local"] or found.arms[:1],
            baselines=baseline if baseline is not None else ["lead"],
            arms=arm or (),
            task=task,
            decoding=decoding,
            seed=seed,
        )
    except StageError as error:
        raise StudyError(str(error)) from error
    export = write(chosen, looked.study.study, directory, _ratings(looked, decoding))
    books = len({c.example.book for c in chosen})
    if json:
        body = {"export": export, "items": len(chosen), "books": books, "directory": str(directory)}
        print_json("human export", {**body, "files": [str(directory / name) for name in FILES]})
        return
    line(f"{len(chosen)} pairs on {books} books -> {directory} (export {export})")
    line("to raters: rate.html, or label-studio.json with label-studio.xml; keep key.json")
    line(f"then: infini-study human import {directory / 'key.json'} RATINGS.json... --out results.json")


@app.command("import")
def import_(
    key: Annotated[Path, typer.Argument(metavar="KEY", help="key.json of the export.")],
    ratings: Annotated[list[Path], typer.Argument(metavar="RATINGS...", help="Files of the page or of Label Studio.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FILE",
            parser=place("--out"),
            help="File to write; human: {results: ...} in a study names it.",
        ),
    ],
    json: Json = False,
) -> None:
    """Check and merge raters' files; say who won, how far raters agree, and which metrics agree with them."""
    from stages.evidence.human.merge import merged
    from stages.evidence.human.results import rows_of, said
    from stages.stage import StageError

    check_file("--out", out)
    if os.path.realpath(out) in [os.path.realpath(file) for file in (key, *ratings)]:
        raise StudyError(f"--out = {str(out)!r}: is a file that is read here. Fix: name another")
    try:
        results = merged(key, ratings)
    except StageError as error:
        raise StudyError(str(error)) from error
    found = said(*rows_of(results))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(jsonlib.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise StudyError(f"--out = {str(out)!r}: {error.strerror}. Fix: name a file that can be written") from error
    total = len(results["items"])
    if json:
        wins = [{"a": a, "b": b, **_plain(value)} for (a, b), value in found.wins.items()]
        body: dict[str, Any] = {"raters": found.raters, "items": total, "alpha": found.alpha, "wins": wins}
        body["strengths"] = {name: _plain(value) for name, value in found.strengths.items()}
        body["metrics"] = {name: _plain(value) for name, value in found.metrics.items()}
        body["repeated"] = results.get("repeated", {})
        print_json("human import", {**body, "results": str(out)})
        return
    raters = ", ".join(f"{name} {n} of {total}" for name, n in found.raters.items())
    line(escaped(f"{len(found.raters)} raters: {raters}"))
    alpha = "no two rated the same pair, or all chose the same" if found.alpha is None else f"{found.alpha:.3f}"
    line(f"Krippendorff's alpha (nominal): {alpha}")
    line()
    rows = [[a, b, _share(value), str(value.n)] for (a, b), value in found.wins.items()]
    table(["", "against", "wins (ties half)", "books"], rows)
    line()
    table(["", "Bradley-Terry log strength"], [[name, _number(value)] for name, value in found.strengths.items()])
    if found.metrics:
        line()
        table(
            ["metric", "prefers what people prefer"], [[name, _share(value)] for name, value in found.metrics.items()]
        )
    line(f"results: {out}")
    for name, count in results.get("repeated", {}).items():
        note(
            escaped(f"{name}: {count} answers stand there more than once, and count once; one person under this name?")
        )
    if short := [name for name, n in found.raters.items() if n < total]:
        note(escaped(f"not finished: {', '.join(short)}"))


def summaries_of(looked: Looked) -> dict[str, Any]:
    """The artifacts ``references`` and ``summarize/ARM/SEED`` of a study. Raises StudyError where one is not made."""
    steps = [step for step in looked.study.steps if step == "references" or step.startswith("summarize/")]
    if not steps:
        raise StudyError(f"{looked.study.study!r} writes no summaries. Fix: give it a section summarize, and run it")
    return {step: looked.store.artifact(looked.study.commit(looked.store, step)) for step in steps}


def _ratings(looked: Looked, decoding: str) -> dict[tuple[str, int, tuple[str, str, str]], dict[str, float | None]]:
    """What local models say of the summaries, where they were asked."""
    commit = looked.study.commits(looked.store).get("rate")
    if commit is None:
        return {}
    import pyarrow.parquet as pq

    rows = pq.read_table(looked.store.artifact(commit).path("ratings.parquet")).to_pylist()
    names = ("embedding", "bertscore", "nli")
    return {
        (row["system"], row["seed"], (row["task"], row["level"], row["doc_id"])): {name: row[name] for name in names}
        for row in rows
        if row["decoding"] in ("", decoding)
    }


def _plain(value: Estimate) -> dict[str, float | int | None]:
    finite = abs(value.low) != float("inf")
    return {
        "estimate": value.estimate,
        "low": value.low if finite else None,
        "high": value.high if finite else None,
        "books": value.n,
    }


def _share(value: Estimate) -> str:
    if abs(value.low) == float("inf"):
        return f"{value.estimate:.0%} (one book: no interval)"
    return f"{value.estimate:.0%} [{max(0, value.low):.0%}, {min(1, value.high):.0%}]"


def _number(value: Estimate) -> str:
    if abs(value.low) == float("inf"):
        return f"{value.estimate:+.2f}"
    return f"{value.estimate:+.2f} [{value.low:+.2f}, {value.high:+.2f}]"
