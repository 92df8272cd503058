"""What nobody means well by: outputs that cannot hold a character, brackets without end, names no file can have, and
passwords where others read."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import noted, storage
from model.llama import read_config, weight_files
from pipeline.cli import app
from pipeline.engine.store import Store
from pipeline.errors import StudyError
from pipeline.study.load import load
from pipeline.study.yamlfile import parse
from stages.data.corpus.files import DigestCache
from stages.data.summaries import read as read_pairs
from stages.evidence.human.merge import _json as read_ratings
from stages.evidence.human.results import read_results
from stages.evidence.judge.cache import Cache
from stages.evidence.rate.embedding import _settings as read_embedding
from stages.evidence.standalone.cache import IDENTITY, Answers
from stages.evidence.standalone.config import parse_arm
from stages.evidence.standalone.tokenizer import read_json
from stages.stage import StageError
from stages.verdict.standalone.scores import read_facts
from tests.pipeline.called import Command, Said, caller
from tests.pipeline.recorded_study import record
from tests.tiny import STUDY, write_study

# Outputs

COMMANDS = (
    "status quickstart",
    "explain quickstart pretrain/local/0",
    "report quickstart",
    "report quickstart --json",
    "ls",
    "show report",
    "show report --table report.json",
    "show evaluate/local/0 --json",
    "lineage report",
    "verify",
    "logs report",
    "gc",
    "validate tiny.yaml --resolved",
    "plan tiny.yaml",
    "power tiny.yaml",
    "run tiny.yaml -n",
    "run tiny.yaml --address nowhere:1",
    "audit quickstart",
    "audit scan books/train --against books/test",
    "audit scan books/train --against books/test --json",
    "score said.jsonl",
    "compare quickstart nothing",
    "evaluate nothing",
    "export report out",
    "import nothing out",
    "init --list",
    "human export quickstart out",
    "judge quickstart",
    "cluster status",
    "cluster submit tiny.yaml",
    "ui",
    "show λ−字\ud800",
    "stätus",
)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in a folder with the tiny study and a recorded one in ``store``."""
    monkeypatch.setenv("INFINI_STUDY_ROOT", "store")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    call = caller(tmp_path, monkeypatch, capsys.readouterr)
    write_study(tmp_path)
    record(tmp_path / "store")
    (tmp_path / "said.jsonl").write_text(json.dumps({"task": "λ−字", "pred": "é", "outputs": ["字"]}), encoding="utf-8")
    return call


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_no_command_ends_on_a_character_its_output_cannot_hold(
    cli: Command, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """Documents, verdicts and arguments hold some that none of these encodings has."""
    text = Path("books/train/100.txt")
    text.write_text(text.read_text() + " λ−字 " + Path("books/test/1.txt").read_text(), encoding="utf-8")
    for command in COMMANDS:
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2)]
        monkeypatch.setattr(sys, "argv", ["infini-study", *command.split(" ")])
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            app.main()
        out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]
        assert "Traceback" not in err and ended.value.code in (0, 1, 2, 4, 5), (command, err)
        assert out or err, command


# Brackets

DEEP = "[" * 100_000


def _file(folder: Path, name: str, text: str = DEEP) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _answers(folder: Path) -> None:
    _file(folder, f"a/{IDENTITY}")
    assert Answers(folder / "a", {}).rows == {}
    _file(folder, "a/answers.jsonl", f"{DEEP}\n")
    Answers(folder / "a", {})


REFUSED: dict[str, Callable[[Path], Any]] = {
    "study file": lambda folder: load(_file(folder, "s.yaml", STUDY + f"\nextra: {DEEP}"), (), {}),
    "override": lambda folder: load(_file(folder, "s.yaml", STUDY), (f"seeds={DEEP}",), {}),
    "variable": lambda folder: load(_file(folder, "s.yaml", STUDY), (), {"INFINI_STUDY__SEEDS": DEEP}),
    "checkpoint": lambda folder: read_config(_file(folder, "config.json").parent),
    "index of weights": lambda folder: weight_files(_file(folder, "model.safetensors.index.json").parent),
    "tokenizer_config.json": lambda folder: read_json(_file(folder, "tokenizer_config.json")),
    "evaluation.json": lambda folder: read_facts(_file(folder, "evaluation.json").parent, "A"),
    "arm": lambda folder: parse_arm(f"infini;gate_init={DEEP}", ";"),
    "modules.json": lambda folder: read_embedding(_file(folder, "modules.json").parent, "rate"),
    "results of people": lambda folder: read_results(DEEP.encode(), "results.json"),
    "answers": _answers,
    "pairs": lambda folder: read_pairs(_file(folder, "pairs.jsonl"), folder, "summarize.pairs"),
    "ratings": lambda folder: read_ratings(_file(folder, "ratings.json"), "RATINGS"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_brackets_without_end_are_refused_in_a_second(case: str, tmp_path: Path) -> None:
    began = time.process_time()
    with pytest.raises((StudyError, StageError, ValueError)) as refused:
        REFUSED[case](tmp_path)
    assert not isinstance(refused.value, RecursionError) and len(str(refused.value)) < 300_000
    assert time.process_time() - began < 5  # about a second, on whatever machine


def test_brackets_without_end_in_what_is_only_remembered_are_as_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caches and notes: what cannot be read is made anew."""
    cache = Cache(str(tmp_path / "judge"))
    _file(tmp_path, f"judge/ab/{'ab' * 32}.json")
    assert cache.get("ab" * 32) is None
    digests = DigestCache(_file(tmp_path, "digests.json"))
    assert digests.digests([(str(tmp_path / "digests.json"), (tmp_path / "digests.json").stat())])
    monkeypatch.setattr(noted, "state_folder", lambda: _file(tmp_path, "state/cluster.json").parent)
    assert noted.noted() is None


# Names

NASTY = {
    "NUL": "a\0b",
    "surrogate": "a\ud800b",
    "newline": "a\nb",
    "end of line": "name\n",
    "long": "a" * 5000,
    "longer than a file's": "a" * 300,
    "above": "../../a",
    "absolute": "/a",
    "nothing": "",
    "blank": " ",
    "letters": "字",
    "an option": "--help",
    "home of nobody": "~no-such-user/a",
    "escape sequence": "a\x1b]0;b\x07",
}
PLACES = ("name", "corpus.sources.0.name", "arms", "schedules", "evaluate.retrieval.files", "pretrain.mixture.sources")


def _named(place: str, name: str) -> dict[str, Any]:
    """The tiny study with this name at the place."""
    study: dict[str, Any] = parse(STUDY, "tiny")
    if place == "name":
        study["name"] = name
    elif place == "corpus.sources.0.name":
        study["corpus"]["sources"][0]["name"] = name
    elif place == "arms":
        study["arms"][name] = {"kind": "local"}
    elif place == "schedules":
        study["schedules"] = {name: {"lr": 1e-3}}
    elif place == "evaluate.retrieval.files":
        study["evaluate"]["retrieval"]["files"] = {name: {"path": "p.jsonl"}}
    else:
        study["pretrain"]["mixture"] = {"sources": {name: 1.0}}
    return study


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize("place", PLACES)
def test_a_name_that_no_file_or_run_can_have_is_one_clear_line(cli: Command, place: str, nasty: str) -> None:
    Path("tiny.yaml").write_text(json.dumps(_named(place, NASTY[nasty])))
    said = cli("validate", "tiny.yaml")
    assert said.code == 2 and said.out == "" and len(said.err) < 2000
    assert all(line.startswith("error: ") for line in said.err.splitlines())


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize(
    "command",
    [
        "status {}",
        "explain quickstart {}",
        "show {}",
        "show report --table {}",
        "lineage {}",
        "logs {}",
        "ls {}",
        "ls --study {}",
        "verify {}",
        "export {} out",
        "plan {}",
        "run {}",
        "audit {}",
        "report {}",
        "score {}",
        "show report --study {}",
        "compare {} quickstart",
        "evaluate {}",
        "power {}",
        "init {}",
        "cluster submit {}",
    ],
)
def test_a_name_of_nothing_on_the_command_line_is_one_clear_line(cli: Command, command: str, nasty: str) -> None:
    if nasty == "an option":
        return
    said = cli(*(word.format(NASTY[nasty]) for word in command.split(" ")))
    assert said.code in (2, 5) and len(said.err) < 12_000, said
    assert all(line.startswith("error: ") for line in said.err.splitlines()), said.err


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize("field", ["url", "path"])
def test_a_place_that_cannot_be_is_told_before_any_work(cli: Command, field: str, nasty: str) -> None:
    study = parse(STUDY, "tiny")
    if field == "url":
        study["corpus"]["sources"][0]["url"] = NASTY[nasty]
    else:
        study["tokenizer"] = {"kind": "file", "path": NASTY[nasty], "eos_token": "x"}
    Path("tiny.yaml").write_text(json.dumps(study))
    said = cli("plan", "tiny.yaml")
    assert said.code == 2 and said.out == "" and len(said.err) < 20_000
    assert all(line.startswith("error: ") for line in said.err.splitlines()), said.err


# Passwords

SECRET = "hunter2"


def _told(said: Said) -> str:
    assert said.code == 2 and SECRET not in said.out + said.err, said
    return said.err


@pytest.mark.parametrize("json_too", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize(
    "command",
    [
        "plan tiny.yaml",
        "run tiny.yaml",
        "status quickstart",
        "ls",
        "show report",
        "lineage report",
        "verify",
        "gc",
        "explain quickstart report",
        "report quickstart",
        "audit quickstart",
        "cluster submit tiny.yaml",
    ],
)
def test_a_root_with_a_password_is_refused_and_never_shown(
    cli: Command, command: str, json_too: tuple[str, ...]
) -> None:
    said = cli(*command.split(" "), *json_too, "--root", f"ftp://me:{SECRET}@host/store")
    assert "ftp://me:***@host/store" in _told(said) + said.out


def _urls() -> Iterator[tuple[str, str]]:
    yield "corpus.sources.0.url", f"ftp://me:{SECRET}@host/books"
    yield "corpus.sources.0.url", f"https://host/books?token={SECRET}"
    yield "corpus.sources.0.pin", f"ftp://me:{SECRET}@host"  # not of the form, and so shown as it stands
    yield "corpus.sources.0.urrl", f"ftp://me:{SECRET}@host"
    yield "tokenizer.path", f"s3://key:{SECRET}@bucket/tokenizer.json"


@pytest.mark.parametrize(("field", "url"), list(_urls()))
@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_a_password_in_a_study_file_is_refused_and_never_shown(
    cli: Command, command: str, field: str, url: str
) -> None:
    for arguments in ((), ("--json",)):
        _told(cli(command, "tiny.yaml", *arguments, "--set", f"{field}={url}"))


def test_a_password_in_a_place_to_scan_is_refused_and_never_shown(cli: Command) -> None:
    for arguments in ((), ("--json",)):
        _told(cli("audit", "scan", f"ftp://me:{SECRET}@host/a", "--against", "books/test", *arguments))


def test_a_store_cannot_be_opened_by_a_url_with_a_password() -> None:
    with pytest.raises(StudyError, match=r"root = 'ftp://me:\*\*\*@host/a': holds a password"):
        Store(f"ftp://me:{SECRET}@host/a")
    storage.check_bare("s3://bucket/a", "root")
