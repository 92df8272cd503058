"""The audit from the command line: of a study that was run, and of the sources of tasks."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from pipeline.cli import app
from tests.pipeline.called import Command, caller
from tests.stages.test_decontaminate import text_of
from tests.stages.test_decontaminate_match import prose
from tests.tiny import STUDY, write_books

PAIRS = [
    {"id": "103", "text": "", "summary": "in training by its id alone"},
    {"id": "elsewhere", "text": "", "summary": ""},
    {"id": "nowhere", "text": text_of(prose(500, 300)), "summary": text_of(prose(501, 90))},
]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny study with pairs to summarize, run until its audits are made."""
    folder = tmp_path_factory.mktemp("study")
    write_books(folder / "books")
    book = (folder / "books" / "train" / "104.txt").read_text()
    summary = " ".join((folder / "books" / "train" / "105.txt").read_text().split()[100:200])
    rows = [*PAIRS, {"id": "x", "text": book, "summary": summary}]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    tasks = "task_audit: {sources: [{name: booksum, path: pairs.jsonl, text: text, summary: summary}]}\n"
    (folder / "tiny.yaml").write_text(STUDY + tasks)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["x", "run", "tiny.yaml", "--until", "taskaudit", "--address", "inline", "-q"])
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert ended.value.code == 0
    return folder


@pytest.fixture
def here(study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return caller(study, monkeypatch, capsys.readouterr)


def test_the_audit_of_a_study_reconciles_and_names_its_page(here: Command) -> None:
    body = here("audit", "tiny.yaml", "--json").json
    balance = body["totals"]["balance"]
    assert balance["in"]["bytes"] == sum(balance[fate]["bytes"] for fate in ("kept", "cut", "dropped"))
    (pair,) = body["pairs"]
    assert (pair["doc_id"], pair["book_id"], pair["action"]) == ("books/107", "books/1", "drop")
    assert body["totals"]["rescan"]["documents_to_act_on"] == 0 and Path(body["path"]).is_file()
    said = here("audit", "tiny.yaml")
    assert said.code == 0 and "they balance" in said.out
    assert "second scan of the output: 7 documents, 0 to act" in said.out
    assert here("audit", "study", "tiny.yaml").out == said.out == here("audit", "--limit", "30", "tiny.yaml").out


@pytest.mark.parametrize("option", [("--book", "books/1"), ("--document", "books/107")])
def test_one_document_is_shown_with_its_evidence(here: Command, study: Path, option: tuple[str, str]) -> None:
    body = here("audit", "tiny.yaml", *option, "--json").json
    (span,) = body["spans"]
    own = (study / "books/train/107.txt").read_bytes()[span["doc_start"] : span["doc_end"]].decode()
    other = (study / "books/test/1.txt").read_bytes()[span["book_start"] : span["book_end"]].decode()
    assert own.split() == other.split() and 215 <= len(own.split()) <= 225
    said = here("audit", "tiny.yaml", *option).out
    assert f"books/107 bytes {span['doc_start']}-{span['doc_end']}: " in said
    assert f"books/1 bytes {span['book_start']}-{span['book_end']}: " in said
    if option[0] == "--book":
        assert "words found nowhere" in said
    else:
        assert "books/107: drop" in said and body["decisions"][0]["bytes_out"] == 0


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--book", "books/11"), "unknown evaluation document 'books/11'; did you mean 'books/1'"),
        (("--document", "books/1"), "unknown training document 'books/1'; did you mean"),
    ],
)
def test_an_unknown_document_is_told(here: Command, option: tuple[str, str], said: str) -> None:
    done = here("audit", "tiny.yaml", *option)
    assert done.code == 2 and said in done.err


def test_a_clean_document_of_a_study_says_that_nothing_was_found(here: Command) -> None:
    said = here("audit", "tiny.yaml", "--document", "books/100")
    assert said.code == 0 and "books/100: keep" in said.out and "nothing found in it" in said.out


def test_sources_of_tasks_are_found_by_id_and_by_text(here: Command) -> None:
    tasks = here("audit", "tiny.yaml", "--json").json["tasks"]
    found = {row["id"]: row for row in tasks["items"]}
    assert {name: row["found"] for name, row in found.items()} == {
        "103": "id",
        "elsewhere": "no",
        "nowhere": "no",
        "x": "text and summary",
    }
    assert found["103"]["id_document"] == "books/103"
    assert (found["x"]["text_document"], found["x"]["summary_document"]) == ("books/104", "books/105")
    assert found["x"]["text_coverage"] > 0.99 and found["nowhere"]["text_coverage"] == 0
    said = here("audit", "tiny.yaml").out
    assert "tasks: booksum: 2 of 4 items in the training text (1 by id, 1 by text, 1 by summary)" in said


TASKS = "task_audit: {sources: [{name: t, path: FILE, OPTION}]}\n"


@pytest.mark.parametrize(
    ("file", "option", "expected"),
    [
        ("nowhere.jsonl", "id: id", r"task_audit\.sources\.0\.path = 'nowhere\.jsonl': no such file"),
        (
            "pairs.jsonl",
            "id: key",
            r"task_audit\.sources\.0\.id = 'key': pairs\.jsonl has no such column \(allowed",
        ),
        ("pairs.jsonl", "id: null", r"task_audit\.sources\.0 = 't': nothing to look for"),
        ("tiny.yaml", "id: id", r"cannot be read: .*allowed: JSON Lines or CSV"),
        ("pairs.jsonl", "pin: 'sha256:" + "0" * 64 + "'", r"sources\.0\.pin = .*the file is not the pinned one"),
    ],
)
def test_a_mistake_in_the_tasks_is_told_before_any_work(
    here: Command, study: Path, file: str, option: str, expected: str
) -> None:
    path = study / "wrong.yaml"
    path.write_text(STUDY + TASKS.replace("FILE", file).replace("OPTION", option))
    said = here("plan", "wrong.yaml")
    assert said.code == 2 and re.search(expected, said.err) and "Fix" in said.err


def test_pairs_to_summarize_are_audited_without_being_asked(here: Command, study: Path) -> None:
    summarize = "summarize: {documents: 2, prompt_tokens: 96, new_tokens: 16"
    path = study / "pairs.yaml"
    path.write_text(STUDY.replace(summarize, summarize + ", pairs: {path: pairs.jsonl}"))
    steps = {step["step"]: step for step in here("plan", "pairs.yaml", "--json").json["steps"]}
    assert "taskaudit" in steps
    path.write_text(STUDY)
    assert "taskaudit" not in {step["step"] for step in here("plan", "pairs.yaml", "--json").json["steps"]}
