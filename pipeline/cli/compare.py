"""``infini-study compare``: two studies, runs or evaluations on the items that both have."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import Json, Root, root_url
from pipeline.cli.places import check_folder, place
from pipeline.cli.render import line, note, print_json, table
from pipeline.errors import StudyError, UnknownName
from stages.display.numbers import percent, points

if TYPE_CHECKING:
    from pipeline.engine.control import Commit
    from pipeline.engine.store import Store
    from stages.verdict.standalone.compare import Comparison, Difference
    from stages.verdict.standalone.sides import Run, Side

FOLDER = Path("runs/comparisons")

_SIDE = "A folder of infini-study evaluate, a recorded study (NAME or NAME:ARM), a key or id of an evaluate step."


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=_SIDE)],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", parser=place("--out"), help=f"The page (default: {FOLDER}/A-B)."),
    ] = None,
    level: Annotated[float, typer.Option("--level", help="Confidence of the intervals.")] = 0.95,
    root: Root = None,
    json: Json = False,
) -> None:
    """A minus B, item by item: differences with intervals and paired tests, Benjamini and Hochberg over the grid.

    Items that one side lacks are counted and left out; where none is on both sides there is nothing to compare.
    """
    from stages.stage import StageError
    from stages.verdict.report.document import finite
    from stages.verdict.standalone.compare import compare as compared
    from stages.verdict.standalone.page import write_comparison

    if not 0 < level < 1:
        raise StudyError(f"--level = {level}: allowed are numbers between 0 and 1. Fix: such as 0.95")
    folder = out or FOLDER / re.sub(r"[^\w.-]+", "-", f"{Path(a).name}-{Path(b).name}")
    _check_out(folder)
    try:
        sides = _side(a, "A", root), _side(b, "B", root)
        found = compared(*sides, level=level)
        if _what(sides[0]) == _what(sides[1]):
            found.notes.append("A and B are one and the same: nothing can differ")
        page = write_comparison(found, folder)
    except StageError as error:
        raise StudyError(str(error)) from error
    if json:
        print_json("compare", {**finite(asdict(found)), "report": str(page)})
        return
    _print(found)
    line(f"report: {page}")


def _what(side: Side) -> set[str]:
    """The evaluations of a side, however they are named."""
    return {run.tables.key or str(run.tables.path().resolve()) for run in side.runs}


def _print(found: Comparison) -> None:
    head = ["arm", "task", "k", "length", "A", "B", "A - B", f"{found.level:.0%} interval", "n", "p", "BH"]
    if found.scores:
        table(head, [_row(one) for one in found.scores])
    if found.texts:
        table(
            ["arm", "text", "A", "B", "A - B", f"{found.level:.0%} interval", "n", "p", "BH"],
            [
                [
                    one.label,
                    one.unit,
                    f"{one.a:.4f}",
                    f"{one.b:.4f}",
                    f"{one.difference:+.4f}",
                    _interval(one, "{:+.4f}".format),
                    str(one.items * one.seeds),
                    f"{one.p:.2g}",
                    f"{one.q:.2g}",
                ]
                for one in found.texts
            ],
        )
    line(f"A: {found.a}; B: {found.b}; {found.unpaired} items without a partner are left out")
    for text in (*found.alone, *found.notes):
        note(text)


def _row(one: Difference) -> list[str]:
    return [
        one.label,
        one.task,
        str(one.k),
        f"{one.length:,}",
        percent(one.a),
        percent(one.b),
        points(one.difference),
        _interval(one, lambda bound: points(bound).removesuffix(" points")),
        str(one.items * one.seeds),
        f"{one.p:.2g}",
        f"{one.q:.2g}",
    ]


def _interval(one: Difference, shown: Callable[[float], str]) -> str:
    return f"[{shown(one.low)}, {shown(one.high)}]" if math.isfinite(one.low) else "none: one item"


def _check_out(folder: Path) -> None:
    """It can be written, and nothing but an earlier comparison may be in it."""
    check_folder("--out", folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "report.json").is_file():
        raise StudyError(f"--out = {str(folder)!r}: holds other files (allowed: a new or empty folder). Fix: another")
    if (folder / "evaluation.json").is_file():
        raise StudyError(f"--out = {str(folder)!r}: holds an evaluation. Fix: another")


def _side(said: str, field: str, root: str | None) -> Side:
    """What ``said`` names. Raises StudyError and UnknownName."""
    from stages.folder import FolderArtifact
    from stages.verdict.standalone.scores import read_facts
    from stages.verdict.standalone.sides import FILES, Run, Side

    if not said.strip():
        raise StudyError(f"{field} = {said!r}: no name. Fix: give {_SIDE[0].lower()}{_SIDE[1:]}")
    folder = Path(os.path.expanduser(said))
    if folder.is_dir():
        facts = read_facts(folder, field)
        prompts = {**facts["identity"], FILES: _pins(facts.get("questions", {}).get("files"))}
        return Side(said, (Run(facts["name"], 0, FolderArtifact(folder, key=""), prompts),))
    from pipeline.engine.recorded import recorded
    from pipeline.engine.store import Store

    store = Store(root_url(root))
    try:
        store.check_there()
    except StudyError as error:
        raise StudyError(f"{field} = {said!r}: no folder of this name; of the store: {error}") from error
    name, _, arm = said.partition(":")
    known = store.studies()
    if name in known:
        study = recorded(store, name)
        runs = tuple(_run(store, commit) for commit in study.commits(store).values() if _is_evaluation(commit))
        if not runs:
            raise StudyError(f"{field} = {said!r}: no evaluate step of the study is made. Fix: infini-study run it")
        side = Side(said, runs)
        if arm and arm not in side.arms:
            raise UnknownName("arm", arm, side.arms)
        return Side(said, tuple(run for run in runs if not arm or run.arm == arm))
    from pipeline.cli.inspect import find

    try:
        commit = find(store, said)
    except UnknownName as error:
        raise StudyError(
            f"{field} = {said!r}: no folder, no recorded study ({', '.join(known) or 'there are none'}), and no "
            f"artifact of {store.root}. Fix: correct it, or give --root"
        ) from error
    if not _is_evaluation(commit):
        raise StudyError(
            f"{field} = {said!r}: {commit.step} is no evaluation. Fix: name an evaluate step, or infini-study evaluate "
            "the model first"
        )
    return Side(said, (_run(store, commit),))


def _is_evaluation(commit: Commit) -> bool:
    return commit.stage == "evaluate" and bool(commit.meta.get("arm"))


def _pins(files: Any) -> dict[str, str]:
    """Task -> digest, of the files that prompts stand in."""
    return {name: str(file.get("pin")) for name, file in (files or {}).items()}


def _run(store: Store, commit: Commit) -> Run:
    from stages.verdict.standalone.sides import FILES, Run

    config: dict[str, Any] = commit.meta.get("config", {})
    inputs: dict[str, str] = commit.meta.get("inputs", {})
    prompts = {"seed": config.get("seed"), "format": config.get("retrieval", {}).get("format")}
    prompts = {name: value for name, value in prompts.items() if value is not None}
    if "tokenizer" in inputs and "tokens" in inputs:
        prompts |= {"tokenizer": inputs["tokenizer"], "haystack": inputs["tokens"]}
    prompts[FILES] = _pins(config.get("retrieval", {}).get("files"))
    seed = commit.meta.get("seed")
    return Run(str(commit.meta["arm"]), 0 if seed is None else int(seed), store.artifact(commit), prompts)
