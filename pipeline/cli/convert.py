"""``infini-study import``: a checkpoint of another format as a folder that a study starts from."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Json
from pipeline.cli.places import check_folder, place
from pipeline.cli.render import line, print_json
from pipeline.errors import StudyError


def import_(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A .gguf file, or a folder (GGUF, .bin, safetensors).")
    ],
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", parser=place("DIR"), help="New or empty folder to write.")
    ],
    json: Json = False,
) -> None:
    """A checkpoint as config.json, safetensors and tokenizer, through transformers, and the study's sections for it."""
    check_folder("DIR", directory, empty=True)
    from stages.stage import StageError
    from stages.training.pretrain.convert import convert, study_sections

    try:
        converted = convert(source, directory)
    except StageError as error:
        raise StudyError(str(error)) from error
    sections = study_sections(converted, directory)
    if json:
        print_json("import", {"directory": str(directory), "stop_tokens": list(converted.stops), "study": sections})
        return
    stops = f", stops at {', '.join(converted.stops)}" if converted.stops else ""
    line(f"{source} -> {directory}: {converted.vocab_size:,} tokens{stops}; in the study file:")
    for name, fields in sections.items():
        line(f"{name}: {jsonlib.dumps(fields)}")
