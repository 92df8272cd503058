"""A store of which this user may not read a folder or a file: one line that names it, whatever the command."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.test_hostile_store import STEP, files, folders, good_store
from tests.pipeline.called import Command, caller
from tests.tiny import write_study

DAC_OVERRIDE, DAC_READ_SEARCH = 1 << 1, 1 << 2  # capabilities(7): what lets root read everything
CAPABILITIES_V3 = 0x20080522


@contextmanager
def without_privileges() -> Iterator[None]:
    """Permissions hold for this thread as for any user's; its capabilities come back at the end."""
    try:
        library = ctypes.CDLL(None)
        head, sets = (ctypes.c_uint32 * 2)(CAPABILITIES_V3, 0), (ctypes.c_uint32 * 6)()
        failed = library.capget(head, sets)
    except (OSError, AttributeError):
        failed = -1
    if failed:
        pytest.skip("capabilities of Linux are needed")
    effective = sets[0]
    sets[0] &= ~(DAC_OVERRIDE | DAC_READ_SEARCH)
    assert library.capset(head, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert library.capset(head, sets) == 0


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good") / "store"
    good_store(root)
    return root


@pytest.fixture
def cli(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    shutil.copytree(good, tmp_path / "store")
    return caller(tmp_path, monkeypatch, capsys.readouterr, behind="--root store")


LOCKED: dict[str, tuple[str, ...]] = {
    "stage": ("ls", "verify", "gc", "gc --delete", "status quickstart", f"explain quickstart {STEP}", "show report"),
    "key": ("ls", "verify", "gc", "gc --delete", "status quickstart", f"explain quickstart {STEP}", "show report"),
    "attempts": ("verify", "gc", "gc --delete", "show report", "report quickstart"),
    "attempt": ("verify", "gc", "show report --table verdicts", "report quickstart"),
    "lease folder": ("gc", "gc --delete"),
    "studies": ("gc", "gc --delete", "status quickstart", f"explain quickstart {STEP}"),
    "commit": ("ls", "verify", "gc", "status quickstart", f"explain quickstart {STEP}", "show report"),
    "manifest": ("verify", "show report", "report quickstart"),
    "report": ("verify", "report quickstart"),
    "record": ("gc", "gc --delete", "status quickstart", f"explain quickstart {STEP}"),
    "work": ("gc", "gc --delete"),
    "log": ("logs report",),
}


@pytest.mark.parametrize("what", LOCKED)
def test_what_cannot_be_read_is_named_in_one_line(cli: Command, tmp_path: Path, what: str) -> None:
    place = (folders(tmp_path / "store") | files(tmp_path / "store"))[what]
    mode = place.stat().st_mode
    place.chmod(0)
    try:
        for command in LOCKED[what]:
            with without_privileges():
                said = cli(*command.split())
            lines = [line for line in (said.out + said.err).splitlines() if str(place) in line]
            assert said.code in (2, 4) and len(lines) == 1, (command, said)
            assert said.code == 4 or (said.err.splitlines() == lines and "Fix: " in lines[0]), (command, said)
    finally:
        place.chmod(mode)


def test_a_plan_names_the_folder_that_it_cannot_read(cli: Command, tmp_path: Path) -> None:
    write_study(tmp_path)
    place = tmp_path / "store" / "ingest"
    place.mkdir()
    place.chmod(0)
    with without_privileges():
        said = cli("plan", "tiny.yaml")
    place.chmod(0o755)
    assert said.code == 2 and said.out == "" and len(said.faults) == 1 and str(place) in said.faults[0]
