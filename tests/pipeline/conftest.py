"""The command line in a folder with a tiny study."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.called import Command, Said, caller
from tests.tiny import STUDY, write_books


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], books: Path) -> Command:
    """Runs a command in a folder with books/ and tiny.yaml; ``study`` replaces the text of the study file."""
    (tmp_path / "books").symlink_to(books)
    (tmp_path / "tiny.yaml").write_text(STUDY)
    command = caller(tmp_path, monkeypatch, capsys.readouterr)

    def call(*arguments: str, study: str | bytes | None = None) -> Said:
        if study is not None:
            Path("tiny.yaml").write_bytes(study.encode() if isinstance(study, str) else study)
        return command(*arguments)

    return call


@pytest.fixture(scope="session")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adversary") / "books"
    write_books(folder, words=200)
    return folder
