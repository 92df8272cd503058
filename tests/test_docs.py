"""What the pages tell a reader to type: commands, options, targets, fields, files and links are there.

Nothing is run. ``docs/results/LOG.md`` says what was typed once and is left alone, but for the paths of its links.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import TypeAdapter, ValidationError

from pipeline.cli.app import app
from pipeline.study.load import load
from pipeline.study.study import StudyConfig

REPOSITORY = Path(__file__).parents[1]
DOCS = sorted(REPOSITORY.glob("docs/**/*.md"))
PAGES = [*(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "runs/README.md")), *DOCS]
TYPED = [page for page in PAGES if page.name != "LOG.md"]
HEADS = [*sorted(REPOSITORY.glob("runs/*.yaml")), *sorted(REPOSITORY.glob("cluster/deploy/*"))]
"""Files that begin with the commands they are used with, as comments."""

BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", flags=re.M | re.S)
SPAN = re.compile(r"`([^`\n]+)`")
MAKEFILE = (REPOSITORY / "Makefile").read_text()
FOREIGN = {
    *("--no-deps", "--upgrade", "--include_path", "--metadata", "--model", "--model_args", "--tasks", "--batch_size"),
    *("--apply_chat_template", "--save-to"),
}
"""Options of pip and lm_eval that pages name by themselves."""


def name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


def commands(path: Path) -> Iterator[list[str]]:
    """Words of every command that a page, or a file's head, shows: lines of its blocks, spans within its text."""
    text = path.read_text()
    if path.suffix == ".md":
        lines = [line for block in blocks(path, "", "bash") for line in block.replace("\\\n", " ").splitlines()]
        lines += SPAN.findall(BLOCK.sub("", text))
    else:
        comments = "\n".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
        lines = comments.replace("\\\n", " ").splitlines()
    for line in lines:
        try:
            words = shlex.split(line.replace("|", " | "), comments=True)
        except ValueError:  # prose with an apostrophe
            continue
        starts = [i for i, word in enumerate(words) if word in ("infini-study", "python", "make", "pytest", "lm_eval")]
        for start, end in pairwise([*starts, len(words)]):
            if path.suffix == ".md" or start == 0:
                yield [re.sub(r"^\[(-.*|[A-Z]+=.*)$|^(\w+)\]$", r"\1\2", word) for word in words[start:end]]


def shown(*paths: Path) -> list[Any]:
    return [pytest.param(path, id=name(path)) for path in paths]


def of_typer(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words behind ``infini-study`` name, and what is left of them."""
    found: Any = typer.main.get_command(app)
    while words and not words[0].startswith("-") and (inner := getattr(found, "commands", None)):
        if words[0] not in inner and "study" in inner:  # of audit
            return inner["study"], words
        if words[0] not in inner:
            break
        found, words = inner[words[0]], words[1:]
    return found, words


def options(command: Any) -> set[str]:
    return {one for parameter in command.params for one in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


def every_option(command: Any) -> set[str]:
    found = options(command)
    for inner in getattr(command, "commands", {}).values():
        found |= every_option(inner)
    return found


def flags(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]


def sources(module: str) -> str:
    """Text of a module of this repository, or of a package and what it is made of."""
    place = REPOSITORY / module.replace(".", "/")
    files = sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    assert files and all(file.is_file() for file in files), f"no module {module}"
    return "\n".join(file.read_text() for file in files)


def fault(words: list[str]) -> str:
    """What of a command is not there, "" where all is."""
    if words[0] == "infini-study":
        command, rest = of_typer(words[1:])
        if hasattr(command, "commands") and rest and not rest[0].startswith("-"):
            return f"no command {rest[0]}"
        if command.name == "lm-eval":  # the harness's own
            return ""
        unknown = [flag for flag in flags(rest) if flag not in options(command)]
        return f"no option {unknown[0]}" if unknown else ""
    if words[0] == "python" and len(words) > 2 and words[1] == "-m":
        if words[2] in ("pip", "pytest") or "." not in words[2]:
            return ""
        text = sources(words[2])
        unknown = [flag for flag in flags(words[3:]) if f'"{flag}"' not in text]
        return f"{words[2]} has no option {unknown[0]}" if unknown else ""
    if words[0] == "make":
        for word in (word for word in words[1:] if re.fullmatch(r"[a-z-]+|[A-Z]+=.*", word)):
            variable, given, _ = word.partition("=")
            if not re.search(rf"\b{variable}\b" if given else rf"^{word}:", MAKEFILE, flags=re.M):
                return f"the Makefile has no {variable}"
        return ""
    files = [word.partition("::")[0] for word in words[1:] if word.startswith("tests/")]
    missing = [file for file in files if not (REPOSITORY / file).exists()]
    return f"no file {missing[0]}" if missing else ""


@pytest.mark.parametrize("page", shown(*TYPED, *HEADS))
def test_every_command_is_one_and_has_the_options_that_are_given(page: Path) -> None:
    assert [(said, " ".join(words)) for words in commands(page) if (said := fault(words))] == []


@pytest.mark.parametrize("page", shown(*TYPED, *HEADS))
def test_study_files_of_commands_are_valid_with_what_is_set(page: Path) -> None:
    for words in commands(page):
        studies = [word for word in words if re.fullmatch(r"(STUDY=)?runs/[\w-]+\.yaml", word)]
        given = [value for flag, value in pairwise(words) if flag == "--set"]
        if studies and not any("..." in one or one.endswith("=") for one in given):
            load(REPOSITORY / studies[0].removeprefix("STUDY="), given, environment={})


def test_commands_are_found_at_all() -> None:
    """Else the tests above pass over nothing."""
    found = [words for page in (*TYPED, *HEADS) for words in commands(page)]
    assert len([words for words in found if words[0] == "infini-study" and len(words) > 1]) > 90
    assert len([words for words in found if words[0] == "python"]) > 20
    assert len([words for words in found if "--set" in words]) > 10
    assert fault(["infini-study", "run", "STUDY", "--sett", "a=1"]) == "no option --sett"
    assert fault(["infini-study", "cluster", "upp"]) == "no command upp"
    assert fault(["python", "-m", "bench.evaluate", "share", "--depth", "3"]) == "bench.evaluate has no option --depth"
    assert fault(["make", "bench-evals"]) == "the Makefile has no bench-evals"
    assert fault(["pytest", "tests/no_such.py"]) == "no file tests/no_such.py"


@pytest.mark.parametrize("page", shown(*TYPED))
def test_options_that_are_named_by_themselves_exist(page: Path) -> None:
    known = every_option(typer.main.get_command(app)) | FOREIGN
    benches = "".join(file.read_text() for file in (*REPOSITORY.glob("bench/**/*.py"), *REPOSITORY.glob("model/*.py")))
    benches += sources("stages.training.pretrain")
    spans = [span.split() for span in SPAN.findall(page.read_text()) if span.startswith("--")]
    named = [word.partition("=")[0] for words in spans for word in words if word.startswith("--")]
    assert [one for one in named if one != "--" and one not in known and f'"{one}"' not in benches] == []


@pytest.mark.parametrize("page", shown(*(page for page in PAGES if blocks(page, "yaml"))))
def test_sections_of_study_files_have_the_fields_that_are_shown(page: Path) -> None:
    for block in blocks(page, "yaml"):
        for section, value in yaml.safe_load(block).items():
            assert section in StudyConfig.model_fields, f"no section {section}"
            try:
                TypeAdapter(StudyConfig.model_fields[section].annotation).validate_python(value)
            except ValidationError as error:  # what a page does not repeat may be missing
                assert [one for one in error.errors() if one["type"] != "missing"] == []


@pytest.mark.parametrize("page", shown(*(page for page in PAGES if blocks(page, "python"))))
def test_what_pythons_examples_import_is_there(page: Path) -> None:
    """Those of adding.md, which are named, run in tests/test_adding.py."""
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                inner = {one.stem for place in getattr(module, "__path__", ()) for one in Path(place).glob("*.py")}
                assert [one.name for one in node.names if not (hasattr(module, one.name) or one.name in inner)] == []


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", shown(*PAGES))
def test_no_section_stands_twice(page: Path) -> None:
    heads = re.findall(r"^##+ .*$", BLOCK.sub("", page.read_text()), flags=re.M)
    assert sorted(heads) == sorted(set(heads))


@pytest.mark.parametrize("page", shown(*PAGES))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text())
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text):
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists(), f"no file {target}"
        assert not anchor or anchor in anchors(file), f"no heading {target}"
    if page.name == "LOG.md":
        return
    tops = "bench|cluster|docs|model|pipeline|runs|stages|tests"
    for path in re.findall(rf"`((?:{tops})/[\w./-]+\.(?:py|yaml|md|sh|csv))(?:::\w+)?`", text):
        assert (REPOSITORY / path).exists(), f"no file {path}"
