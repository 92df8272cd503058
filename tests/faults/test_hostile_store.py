"""A store that somebody else wrote: whatever stands where, looking at it is one clear error or a line less.

Control files are emptied, cut, nested and filled with what their fields cannot hold; files and folders are pipes,
devices, links out of the store or round in it. No command may hang, show a traceback or a raw control character, or
touch what lies outside.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine import lease
from pipeline.engine.store import Store
from stages.training.pretrain.channel import Writer
from tests.pipeline.called import Command, caller
from tests.pipeline.recorded_study import NEVER_MADE, key, record

STEP = "evaluate/local/0"
COMMANDS = (
    "ls --json",
    "ls --study quickstart",
    "show report",
    "show report --json",
    "show report --table verdicts",
    "show report --table report",
    f"show {STEP}",
    "lineage report",
    "verify",
    "verify --json",
    "logs report",
    f"logs {NEVER_MADE}",
    "status quickstart",
    f"explain quickstart {STEP}",
    f"explain quickstart {NEVER_MADE}",
    "report quickstart",
    "report quickstart --out published",
    "audit quickstart",
    "gc",
    "gc --delete",
    "export pretrain/local/0 exported",
    "compare quickstart quickstart --out compared",
    "watch quickstart --once",
    "watch quickstart --json",
    "plan quickstart",
    "human export quickstart rated",
)
NASTY: tuple[Any, ...] = (
    *(None, True, -1, 1.5, 10**400, float("nan"), float("inf"), [], {}, {"": {}}, [[]]),
    *(
        "\x1b]0;a\x07\x1b[31m",
        "a\nb\rc",
        "\u202eabc",
        "x" * 50_000,
        "../../outside/kept",
        "/etc/passwd",
        "",
        "\0",
        "\ud800",
    ),
)
RAW = {
    "nothing": b"",
    "bytes": bytes(range(256)),
    "null": b"null",
    "a list": b"[]",
    "an object": b"{}",
    "a number": b"9" * 6000,
    "brackets": b"[" * 100_000,
    "objects": b'{"a":' * 50_000,
    "NaN": b"NaN",
    "UTF-16": "{}".encode("utf-16"),
}
Mutation = Callable[[Path, Path], None]
"""Changes the store at the first path; the second is a folder outside of it."""


def good_store(root: Path) -> None:
    """A recorded study with a lease, logs, a note, an attempt that lost and a training that is under way."""
    store = record(root)
    for stage, its in list(store.keys()):
        store.note_mlflow(stage, its, tracking_uri="sqlite:///m.db", experiment_id="1", run_id="ab" * 16)
        (logs := Path(store.folder(stage, its)) / "logs").mkdir()
        (logs / "000001-a.log").write_text("a log\n")
    place = store.lease_folder("summarize", key(NEVER_MADE))
    held = lease.LeaseRequest(store.fs, place, lease.this_process()).take()
    assert isinstance(held, lease.Lease)
    held.release()
    (work := Path(store.folder("summarize", key(NEVER_MADE))) / "work").mkdir()
    writer = Writer(str(work / "progress.json"))
    writer.row({"step": 1, "loss": 2.0}, 4)
    (store.attempt("report", key("report")).directory / "lost").write_text("x")


def files(root: Path) -> dict[str, Path]:
    report, left = root / "report" / key("report"), root / "summarize" / key(NEVER_MADE)
    attempt = next(report.glob("attempts/*.manifest.json"))
    return {
        "record": root / "studies" / "quickstart.json",
        "commit": report / "COMMIT.json",
        "manifest": attempt,
        "report": Path(str(attempt).removesuffix(".manifest.json")) / "report.json",
        "note": report / "mlflow.json",
        "log": report / "logs" / "000001-a.log",
        "lease": left / "lease" / "1.json",
        "progress": left / "work" / "progress.json",
    }


def folders(root: Path) -> dict[str, Path]:
    there = files(root)
    return {
        "studies": root / "studies",
        "stage": root / "report",
        "key": there["commit"].parent,
        "attempts": there["manifest"].parent,
        "attempt": there["report"].parent,
        "lease folder": there["lease"].parent,
        "logs": there["log"].parent,
        "work": there["progress"].parent,
    }


def is_a(kind: str, place: Path, outside: Path) -> None:
    """What is at ``place`` gives way to something else."""
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    if kind == "a pipe":
        os.mkfifo(place)
    elif kind == "a folder":
        (place / "a").mkdir(parents=True)
    elif kind == "a file":
        place.write_text("x")
    elif kind != "gone":
        link = {"zeros": "/dev/zero", "itself": place.name, "nowhere": "none", "above": "..", "outside": str(outside)}
        place.symlink_to(link[kind])


def forged(text: bytes, rng: random.Random) -> bytes:
    """The JSON with another value, or another name, somewhere."""
    value = json.loads(text)
    holder, name = value, rng.choice(sorted(value))
    while isinstance(holder[name], dict | list) and holder[name] and rng.random() < 0.8:
        holder = holder[name]
        name = rng.choice(sorted(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    nasty = rng.choice(NASTY)
    if isinstance(holder, dict) and isinstance(nasty, str) and rng.random() < 0.2:
        holder[nasty] = holder.pop(name)
    else:
        holder[name] = nasty
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "backslashreplace")
    finally:
        sys.set_int_max_str_digits(before)


def forge(name: str, seed: int) -> Mutation:
    def mutate(root: Path, _: Path) -> None:
        rng, there = random.Random(seed), files(root)
        changed = forged(there[name].read_bytes(), rng)
        there[name].write_bytes(changed)
        said = json.loads(there["commit"].read_bytes() if name != "commit" else changed)
        if name == "manifest":  # by somebody who knows what else to change
            said["digest"] = hashlib.sha256(changed).hexdigest()
        if name in ("commit", "manifest"):
            said.pop("sha256", None)  # as commits were before they had a digest
            sys.set_int_max_str_digits(0)
            there["commit"].write_text(json.dumps(said), errors="backslashreplace")
            sys.set_int_max_str_digits(4300)

    return mutate


def cases() -> Iterator[tuple[str, Mutation]]:
    names = ("record", "commit", "manifest", "report", "note", "log", "lease", "progress")
    for name in names:
        for what, data in RAW.items():
            yield f"{name}: {what}", lambda root, _, name=name, data=data: files(root)[name].write_bytes(data)
        for kind in ("gone", "a pipe", "a folder", "zeros", "itself", "nowhere", "outside"):
            yield f"{name} is {kind}", lambda root, out, name=name, kind=kind: is_a(kind, files(root)[name], out)
        for seed in range(18 if name not in ("log", "note") else 4):
            if name != "log":
                yield f"{name} forged {seed}", forge(name, seed)
    for name in ("studies", "stage", "key", "attempts", "attempt", "lease folder", "logs", "work"):
        for kind in ("gone", "a pipe", "a file", "itself", "nowhere", "above", "outside"):
            yield f"{name} is {kind}", lambda root, out, name=name, kind=kind: is_a(kind, folders(root)[name], out)


ALL = list(cases())
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good") / "store"
    good_store(root)
    return root


def outside_of(folder: Path) -> Path:
    """What a link out of the store leads to: as much like a store's folder as can be."""
    outside = folder / "outside"
    (outside / key("anything") / "attempts" / "lost").mkdir(parents=True)
    (outside / key("anything") / "kept").write_text("kept")
    (outside / "kept").write_text("kept")
    return outside


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return caller(tmp_path, monkeypatch, capsys.readouterr, behind="--root store")


def look_at(cli: Command, good: Path, folder: Path, chosen: list[tuple[str, Mutation]], commands: int) -> None:
    outside = outside_of(folder)
    before, root = contents(outside), folder / "store"
    for name, mutate in chosen:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(good, root)
        mutate(root, outside)
        for command in random.Random(name).sample(COMMANDS, commands):
            said = cli(*command.split(" "))
            assert said.code in (0, 1, 2, 4, 5), (name, command, said)
            assert said.code == 0 or said.out or said.err, (name, command)
            assert not CONTROL.search(said.out + said.err), (name, command, said)
            assert len(said.err) < 20_000, (name, command)
        assert contents(outside) == before, name


def test_a_store_of_somebody_else_is_looked_at_without_harm(cli: Command, good: Path, tmp_path: Path) -> None:
    assert len(ALL) >= 300
    look_at(cli, good, tmp_path, ALL[::13], 4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(6))
def test_all_of_it(cli: Command, good: Path, tmp_path: Path, part: int) -> None:
    look_at(cli, good, tmp_path, ALL[part::6], 6)


def test_what_lies_behind_a_link_is_not_deleted(cli: Command, good: Path, tmp_path: Path) -> None:
    """A stage's folder that is a link; a key's; an attempt's: the links at most go, never what they lead to."""
    shutil.copytree(good, tmp_path / "store")
    outside = outside_of(tmp_path)
    before = contents(outside)
    (tmp_path / "store" / "elsewhere").symlink_to(outside)
    (tmp_path / "store" / "report" / key("anything")).symlink_to(outside / key("anything"))
    (folders(tmp_path / "store")["attempts"] / "000000-link").symlink_to(outside)
    said = cli("gc", "--delete")
    assert said.code == 0 and "left alone, a link leads there, out of the store" in said.err
    assert contents(outside) == before
    assert not (folders(tmp_path / "store")["attempts"] / "000000-link").is_symlink()


def test_the_python_interface_says_what_a_command_says(good: Path, tmp_path: Path) -> None:
    from pipeline.api import Study
    from pipeline.errors import UserError

    outside = outside_of(tmp_path)
    for name, mutate in ALL[::7]:
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        shutil.copytree(good, tmp_path / "store")
        mutate(tmp_path / "store", outside)
        try:
            study = Study("quickstart", tmp_path / "store")
            repr(study), study.verdicts(), study[STEP].files, study[STEP].table("retrieval")
        except (UserError, OSError) as error:
            assert str(error), name
    assert Store(tmp_path / "store").fs is not None
