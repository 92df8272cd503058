"""``infini-study evaluate``: one checkpoint of any origin on the tasks and on text, without a study."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import Json, OfStudy, Root, root_url
from pipeline.cli.places import check_folder, place
from pipeline.cli.render import line, note, print_json, table
from pipeline.errors import StudyError, UnknownName
from stages.display.numbers import percent

if TYPE_CHECKING:
    from pipeline.engine.control import Commit
    from pipeline.engine.store import Store
    from stages.evidence.standalone.config import CheckpointSource, Questions

FOLDER = Path("runs/evaluations")
"""Where evaluations go that are not told where, below the working directory."""

_MODEL = "model/config.json"


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A checkpoint's folder, a Hub id, or a trained model's key or step id in the store."
        ),
    ],
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", metavar="A,B", help="Tasks by name; ruler: its thirteen, all, none. Repeatable."),
    ] = None,
    lengths: Annotated[
        list[str] | None, typer.Option("--lengths", metavar="N,M", help="Prompt lengths in tokens (default: 1024).")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Prompts per task, length and k (default: 50).")
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", help="Text files whose perplexity is scored and that needles lie in; repeatable."),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            metavar="[NAME=]FILE",
            help="Prompts of a file in RULER's form (input, outputs, answer_prefix), asked as they stand; repeatable.",
        ),
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option("--answer-tokens", min=1, help="Of an answer to a prompt of --prompts (default: 128).")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=2, help="Of each text (default: all, or the model's context).")
    ] = None,
    arm: Annotated[
        str | None,
        typer.Option(
            "--arm", metavar="KIND,OPTION=VALUE", help="Read it under this arm: local,segment_length=2048 and the like."
        ),
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="Wording: published (that of the papers), compact, or terse.")
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Each prompt as a user's message, by the tokenizer's template.")
    ] = False,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="A tokenizer.json, where the model's folder has none.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws the prompts.")] = 0,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Score that counts towards the effective length (default: 0.9).")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16, float16 (default: float32 on a CPU).")
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Commit or branch of a Hub id.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", parser=place("--out"), help=f"Tables and page (default: {FOLDER}/NAME)."),
    ] = None,
    study: OfStudy = None,
    root: Root = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    json: Json = False,
) -> None:
    """Accuracy per task and length with intervals, effective lengths, perplexity by position: a table and a page.

    Run again it goes on where it stopped; with more samples, lengths or tasks it asks only what is new.
    """
    from pipeline.plugins import load_plugins
    from stages.evidence.standalone.config import ANSWER_TOKENS, parse_arm, prompt_files
    from stages.stage import StageError

    load_plugins()
    if answer_tokens is not None and not prompts:
        raise StudyError(f"--answer-tokens = {answer_tokens}: has no effect without --prompts. Fix: leave it out")
    if prompts and tasks is None:
        tasks = ["none"]  # those of the files alone
    given = {
        "tasks": None if tasks is None else _listed(tasks),
        "lengths": None if lengths is None else [_number(one, "--lengths") for one in _listed(lengths)],
        "samples": samples,
        "format": format,
        "threshold": threshold,
        "perplexity": None if max_tokens is None else {"max_tokens_per_document": max_tokens},
    }
    if given["tasks"] in ([], ["none"]):
        if not (text or prompts) or not given["tasks"]:
            raise StudyError(
                f"--tasks = {', '.join(tasks or ())!r}: nothing is left to do. Fix: name a task, or give --text or "
                "--prompts"
            )
        given["tasks"] = []
        if idle := next((name for name in ("lengths", "samples", "format") if given[name] is not None), None):
            raise StudyError(f"--{idle}: has no effect where no task is asked. Fix: leave it out, or name --tasks")
    folder = out or FOLDER / _folder_name(model)
    check_folder("--out", folder)
    try:
        files = prompt_files(prompts or [], answer_tokens or ANSWER_TOKENS)
        questions = _questions(given | {"seed": seed, "chat_template": chat_template, "files": files})
        mixer = None if arm is None else parse_arm(arm)
        with _opened(model, study, root, revision) as found:
            body = _evaluated(
                found.source({"arm": mixer, "tokenizer": tokenizer, "device": device, "dtype": dtype}),
                questions,
                text or [],
                folder,
                found,
                quiet,
            )
    except StageError as error:
        raise StudyError(str(error)) from error
    except KeyboardInterrupt:
        note("interrupted; the same command goes on from there")
        raise
    if json:
        print_json("evaluate", body)
        return
    print_cells(body)
    line(f"report: {body['report']}")


def print_cells(body: dict[str, Any]) -> None:
    """The tables of an evaluation."""
    effective = {(one["task"], one["k"]): one for one in body["effective"]}
    if body["cells"]:
        threshold = body["effective"][0]["threshold"]
        rows = []
        for cell in body["cells"]:
            reach = effective[cell["task"], cell["k"]]
            longest = "none" if reach["effective"] is None else f"{reach['effective']:,}"
            rows.append(
                [
                    cell["task"],
                    str(cell["k"]),
                    f"{cell['length']:,}",
                    percent(cell["score"]),
                    f"[{percent(cell['low'])}, {percent(cell['high'])}]",
                    str(cell["n"]),
                    "" if cell["chance"] is None else f"{100 * cell['chance']:.2g}%",
                    f"{cell['answer_nll']:.3f}",
                    longest,
                ]
            )
        names = ["task", "k", "length", "score", "95% interval", "n", "chance", "answer nll"]
        table([*names, f"effective ({threshold:.0%})"], rows)
    for number in body["perplexity"]:
        bounds = [number["low"], number["high"]]
        interval = "no interval" if None in bounds else f"[{', '.join(f'{bound:.4g}' for bound in bounds)}]"
        estimate = "too large for a number" if number["estimate"] is None else f"{number['estimate']:.4g}"
        line(f"{number['label']}: {estimate} {interval}, n = {number['n']}")


class _Found:
    """Where a checkpoint is. ``store``, ``commit``: of an artifact."""

    def __init__(self, folder: Path, named: str, store: Store | None = None, commit: Commit | None = None) -> None:
        self.folder, self.named, self.store, self.commit = folder, named, store, commit

    def source(self, options: dict[str, Any]) -> CheckpointSource:
        """Raises StageError for options that are not allowed."""
        from stages.evidence.standalone.config import CheckpointSource

        key = "" if self.commit is None else self.commit.key
        made: CheckpointSource = _valid(
            CheckpointSource, {"model": self.folder, "named": self.named, "key": key, **options}
        )
        return made

    def of_study(self) -> dict[str, Any]:
        """Tokenizer and held-out text of the study that made an artifact; nothing for other checkpoints."""
        if self.store is None or self.commit is None:
            return {}
        from stages.data.tasks.prompts import haystack_of
        from stages.data.tokens.load import document_tokens, load_tokenizer
        from stages.evidence.standalone.tokenizer import of_study

        inputs, made = self.commit.meta.get("inputs", {}), {one.key: one for one in self.store.commits()}
        tokenizer, tokens = (made.get(inputs.get(name, "")) for name in ("tokenizer", "tokens"))
        if tokenizer is None:
            raise StudyError(f"MODEL = {self.named!r}: the tokenizer of {self.commit.step} is not in the store")
        opened = load_tokenizer(self.store.artifact(tokenizer))
        found: dict[str, Any] = {"tokenizer": of_study(opened, tokenizer.key)}
        if tokens is not None:
            text = document_tokens(self.store.artifact(tokens), "test")
            found["haystack"] = (tokens.key, haystack_of(text, opened.eos_id, opened.bos_id))
        return found


@contextmanager
def _opened(model: str, study: str | None, root: str | None, revision: str | None) -> Iterator[_Found]:
    if not model.strip():
        raise StudyError(
            f"MODEL = {model!r}: no name. Fix: give a checkpoint's folder, a Hub id, or a step of the store"
        )
    folder = Path(os.path.expanduser(model))
    if study is None and folder.is_dir():
        if revision is not None:
            raise StudyError(f"--revision = {revision!r}: has no effect on a folder, {model!r}. Fix: leave it out")
        yield _Found(folder, model)
        return
    if study is None and folder.is_file():
        raise StudyError(f"MODEL = {model!r}: is a file. Fix: give the folder that holds config.json and the weights")
    from pipeline.cli.inspect import find
    from pipeline.engine.store import Store
    from stages.evidence.standalone.found import HUB_ID, from_hub

    store = Store(root_url(root))
    try:
        store.check_there()
        commit = find(store, model, study)
    except (StudyError, UnknownName):
        if study is not None or (root is not None and not re.fullmatch(HUB_ID, model)):
            raise
        yield _Found(from_hub(model, revision), model)
        return
    artifact = store.artifact(commit)
    if _MODEL not in artifact.manifest:
        raise StudyError(f"MODEL = {model!r}: {commit.step} holds no model (allowed: steps of base and pretrain)")
    yield _Found(artifact.path("model"), commit.step, store, commit)


def _evaluated(
    source: CheckpointSource, questions: Questions, text: Sequence[Path], out: Path, found: _Found, quiet: bool
) -> dict[str, Any]:
    """Evaluate, write the page; what --json prints."""
    from stages.evidence.standalone.run import evaluate as run
    from stages.evidence.standalone.texts import read_texts
    from stages.verdict.report.document import finite
    from stages.verdict.report.numbers import by_position, perplexities
    from stages.verdict.standalone.page import write_page
    from stages.verdict.standalone.scores import answers, cells, evidence_of, reached

    with _progress(source.named, quiet) as progress:
        texts = read_texts(text)
        own = found.of_study()
        if source.tokenizer is not None:
            own.pop("tokenizer", None)
        if texts or source.tokenizer is not None:
            own.pop("haystack", None)
        done = run(source, questions, texts, out, progress, **own)
        evidence = evidence_of(out, _folder_name(source.named), done.facts["model"]["mixer"], questions.threshold)
        rows = answers(evidence)
        reaches = reached(evidence, rows)
        page = write_page(evidence, done.facts, reaches, out)
        numbers = [number.to_dict() for number in (*perplexities(evidence), *by_position(evidence))]
    body: dict[str, Any] = finite(
        {
            **{name: done.facts[name] for name in ("name", "model", "tokenizer", "questions", "haystack", "text")},
            "cells": [asdict(cell) for cell in cells(evidence, rows, questions.format)],
            "effective": [asdict(one) for one in reaches],
            "perplexity": [
                {name: n[name] for name in ("label", "estimate", "low", "high", "n", "unit")} for n in numbers
            ],
            "resumed": done.resumed,
            "directory": str(out),
            "report": str(page),
        }
    )
    return body


@contextmanager
def _progress(name: str, quiet: bool) -> Iterator[Callable[[float, float, str], None]]:
    from pipeline.engine.progress import Display

    display, ended = Display(quiet=quiet), threading.Event()
    display.started(name)

    def ticking() -> None:  # weights, one long prompt and statistics take their time too, and tell nothing
        while not ended.wait(1.0):
            display.tick()

    ticker = threading.Thread(target=ticking, daemon=True)
    ticker.start()
    try:
        yield lambda done, total, unit: display.progress(name, done, total, unit, {})
    finally:
        ended.set()
        ticker.join()
        display.end()


def _questions(given: dict[str, Any]) -> Questions:
    from stages.evidence.standalone.config import Questions

    made: Questions = _valid(Questions, {name: value for name, value in given.items() if value is not None})
    return made


def _valid(kind: Any, fields: dict[str, Any]) -> Any:
    """A config, or StudyError naming the option that is wrong."""
    from pydantic import ValidationError

    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        option = f"--{first['loc'][0]}".replace("_", "-") if first["loc"] else "options"
        option = "--prompts" if option == "--files" else option
        value = "" if first["type"] == "value_error" else f" = {first['input']!r}"
        raise StudyError(f"{option}{value}: {message} ({place or kind.__name__}). Fix: correct the option") from error


def _listed(values: Sequence[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def _number(text: str, option: str) -> int:
    plain = text.lower().replace("_", "")
    factor = {"k": 2**10, "m": 2**20}.get(plain[-1:], 1)
    digits = plain if factor == 1 else plain[:-1]
    if not re.fullmatch("[0-9]{1,15}", digits):
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        raise StudyError(
            f"{option} = {shown!r}: allowed are numbers of tokens, such as 4096, 4K or 1M. Fix: correct it"
        )
    return int(digits) * factor


def _folder_name(model: str) -> str:
    """The name of a checkpoint as a folder's."""
    return re.sub(r"[^\w.-]+", "-", Path(model).name if Path(model).is_dir() else model)[:100].strip("-.") or "model"
