"""``infini-study init``: a study file to start from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Json
from pipeline.cli.places import check_file, place
from pipeline.cli.render import line, print_json, table
from pipeline.errors import StudyError, UnknownName


def init(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Which one: see --list.")] = "quickstart",
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", metavar="PATH", parser=place("--to"), help="File or folder to write (default: ./NAME.yaml)."
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Only say which there are, and what each is for.")] = False,
    json: Json = False,
) -> None:
    """Write a study file to start from; a file that is there is never overwritten."""
    from pipeline.study.shipped import study_files

    files = study_files()
    if list_:
        _print_list(files, json)
        return
    if name not in files:
        raise UnknownName("study file", name, files)
    path = Path(f"{name}.yaml") if to is None else to / f"{name}.yaml" if os.path.isdir(to) else to
    if not os.path.lexists(path):
        check_file("the working directory" if to is None else "--to", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(files[name].read_text(encoding="utf-8"))
    except FileExistsError:
        option = "the working directory" if to is None else f"--to = {str(to)!r}"
        raise StudyError(f"{option}: {path} is there already. Fix: name another file with --to") from None
    if json:
        print_json("init", {"study": name, "path": str(path)})
    else:
        line(f"{path} written; next: infini-study plan {path}")


def _print_list(files: dict[str, Path], json: bool) -> None:
    from pipeline.study.yamlfile import parse

    found = {name: parse(path.read_text(encoding="utf-8"), path.name)["description"] for name, path in files.items()}
    if json:
        print_json("init", {"studies": found})
    else:
        table(["name", "what it is"], list(found.items()))
