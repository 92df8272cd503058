"""``infini-study export``: a trained model as a folder that transformers opens, with its tokenizer."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.inspect import KeyArgument, find
from pipeline.cli.options import Json, OfStudy, Root, open_store
from pipeline.cli.places import check_folder, place
from pipeline.cli.render import line, print_json
from pipeline.errors import StudyError
from stages.display.numbers import size

_DTYPES = ("float32", "bfloat16", "float16")


def export(
    key: KeyArgument,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", parser=place("DIR"), help="New or empty folder to write.")
    ],
    dtype: Annotated[
        str | None, typer.Option("--dtype", help=f"Round the weights to {', '.join(_DTYPES)} (default: as trained).")
    ] = None,
    study: OfStudy = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """A model for transformers: weights, tokenizer, and the code of the arm if it is not plain full attention."""
    if dtype is not None and dtype not in _DTYPES:
        raise StudyError(f"--dtype = {dtype!r}: allowed are {', '.join(_DTYPES)}")
    check_folder("DIR", directory, empty=True)
    store = open_store(root)
    commit = find(store, key, study)
    artifact = store.artifact(commit)
    if "model/config.json" not in artifact.manifest:
        raise StudyError(f"KEY = {key!r}: {commit.step} holds no model (allowed: steps of base and pretrain)")
    made = {c.key: c for c in store.commits()}
    tokenizer = made.get(commit.meta.get("inputs", {}).get("tokenizer", ""))
    if tokenizer is None:
        raise StudyError(f"KEY = {key!r}: the tokenizer of {commit.step} is no longer in the store")
    tokens = store.artifact(tokenizer)

    import torch

    from model.checkpoint import load
    from model.export import export as write
    from model.llama import family_of

    meta = jsonlib.loads(tokens.path("meta.json").read_text())
    marks = {name: meta[f"{name}_id"] for name in ("bos", "eos", "pad") if meta.get(f"{name}_id") is not None}
    decoder = load(artifact.path("model"))
    write(
        decoder,
        directory,
        like=artifact.path("model"),
        dtype=None if dtype is None else getattr(torch, dtype),
        tokenizer=tokens.path("tokenizer.json"),
        special_tokens=marks,
    )
    files = {path.name: path.stat().st_size for path in sorted(directory.iterdir())}
    code = family_of(decoder.config) is None
    if json:
        print_json("export", {"step": commit.step, "key": commit.key, "directory": str(directory), "files": files})
        return
    line(f"{commit.step} -> {directory}: {len(files)} files, {size(sum(files.values()))}")
    trust = ", trust_remote_code=True" if code else ""
    line(f"AutoModelForCausalLM.from_pretrained({str(directory)!r}{trust})")
