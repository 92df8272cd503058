"""Whatever is told to write somewhere says so in one line, before any work, where it cannot."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pipeline.called import Command, caller
from tests.pipeline.recorded_study import record

# the command up to the place, and the name of the option that takes it
COMMANDS = {
    "report": (("report", "quickstart", "--out"), "--out"),
    "init": (("init", "--to"), "--to"),
    "export": (("export", "pretrain/infini-delta/0"), "DIR"),
    "import": (("import", "checkpoint"), "DIR"),
    "compare": (("compare", "quickstart:local", "quickstart:infini-delta", "--out"), "--out"),
    "evaluate": (("evaluate", "pretrain/infini-delta/0", "--out"), "--out"),
    "audit scan": (("audit", "scan", "texts", "--against", "texts", "--out"), "--out"),
    "human export": (("human", "export", "quickstart"), "DIR"),
    "human import": (("human", "import", "key.json", "ratings.json", "--out"), "--out"),
    "cluster files": (("cluster", "files"), "FOLDER"),
}
PLACES = {
    "no disk": ("/proc/nothing/below", "No such file or directory"),
    "a file above": ("taken.txt/below", "is a file"),
    "too long": ("n" * 300, "File name too long"),
    "a link to nowhere": ("dangling/below", "link that leads nowhere"),
    "a link to itself": ("circle/below", "link that leads nowhere"),
    "an unknown drive": ("s9://bucket/out", "is a URL"),
    "object storage": ("s3://bucket/out", "is a URL"),
    "no name": ("", "no name"),
}


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    record(tmp_path / "runs" / "store")
    (tmp_path / "taken.txt").write_text("a text")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file.txt").write_text("a text")
    return caller(tmp_path, monkeypatch, capsys.readouterr)


def files(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in found if not name.startswith("cache")}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_cannot_be_written_is_one_error(called: Command, tmp_path: Path, command: str, place: str) -> None:
    (arguments, field), (path, why) = COMMANDS[command], PLACES[place]
    before = files(tmp_path)
    said = called(*arguments, path)
    (fault,) = said.faults
    assert said.code == 2 and said.out == ""
    assert fault.startswith(f"{field} = '{path[:100]}") and why in fault and len(fault) < 500
    assert re.search(r"\(allowed: .+\)\. Fix: ", fault)
    assert files(tmp_path) == before, "nothing is left behind"


@pytest.mark.parametrize("command", ["export", "import", "human export"])
@pytest.mark.parametrize("place", ["full", "taken.txt"])
def test_what_is_there_is_not_written_into(called: Command, command: str, place: str) -> None:
    (fault,) = called(*COMMANDS[command][0], place).faults
    assert fault.startswith(f"DIR = '{place}': is there already") and "a new or empty folder" in fault


@pytest.mark.parametrize("place", ["new", "made/on/the/way", "full"])
def test_a_place_that_can_be_written_is(called: Command, tmp_path: Path, place: str) -> None:
    assert called("init", "--to", f"{place}/study.yaml").code == 0
    assert (tmp_path / place / "study.yaml").is_file()
    assert called("cluster", "files", place).code == 0
    assert not [name for name in files(tmp_path) if ".written-" in name]


def test_a_report_of_another_version_is_not_copied_in_a_traceback(called: Command) -> None:
    (fault,) = called("report", "quickstart", "--out", "new").faults
    assert re.search(r"report\.json = '.*': made by code_version 1 of the report.*Fix: infini-study run", fault)


def test_a_folder_of_the_home_is_meant_by_its_sign(
    called: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert called("init", "--to=~/study.yaml").code == 0
    assert (tmp_path / "home" / "study.yaml").is_file()


@pytest.mark.parametrize(
    "uri", ["sqlite:////proc/nothing/mlflow.db", "sqlite:///taken.txt/mlflow.db", "file:///proc/x"]
)
def test_a_tracking_database_that_cannot_be_written_is_told_before_the_run(
    called: Command, tmp_path: Path, uri: str
) -> None:
    assert called("init", "--to", "study.yaml").code == 0
    said = called("run", "study.yaml", "--root", "fresh", "--tracking-uri", uri)
    (fault,) = said.faults
    assert said.code == 2 and fault.startswith("--tracking-uri = ") and "Fix: " in fault
    assert not (tmp_path / "fresh").exists()
