"""Pins: the key follows the bytes of the input, not where they lie, and a change is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stages.data.corpus import pin as pinning
from stages.data.corpus.config import IngestConfig
from stages.data.corpus.pin import changes, listing, pin
from stages.data.corpus.stage import STAGE
from stages.stage import StageError
from tests.support import LocalContext


@pytest.fixture
def books(tmp_path: Path) -> Path:
    for split in ("train", "validation", "test"):
        (tmp_path / "one" / split).mkdir(parents=True)
        (tmp_path / "one" / split / f"{len(split)}.txt").write_text(f"A book of {split}.")
    return tmp_path / "one"


def config(**fields: Any) -> IngestConfig:
    return IngestConfig.model_validate({"sources": [{"kind": "pg19", "name": "b", "url": "one", **fields}]})


def test_the_key_is_the_same_wherever_the_books_lie(books: Path, tmp_path: Path) -> None:
    shutil.copytree(books, tmp_path / "elsewhere" / "two")
    here, there = pin(config(), tmp_path), pin(config(url="two", weight=3), tmp_path / "elsewhere")
    assert here.key_fields() == there.key_fields()
    assert str(tmp_path) not in json.dumps(here.key_fields())


def test_a_changed_book_changes_the_key_and_is_named(books: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "digests.json"
    before, old = pin(config(), tmp_path, cache), listing(config(), tmp_path, cache)
    assert changes(old, listing(config(), tmp_path, cache)) == []
    (books / "train" / "5.txt").write_text("A bOok of train.")
    (books / "test" / "9.txt").write_text("New.")
    (books / "validation" / "10.txt").unlink()
    assert changes(old, listing(config(), tmp_path, cache)) == [
        "added: test/9.txt",
        "changed: train/5.txt",
        "removed: validation/10.txt",
    ]
    assert pin(config(), tmp_path, cache).key_fields() != before.key_fields()


def test_unchanged_files_are_not_read_again(books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in books.rglob("*.txt"):
        os.utime(path, (1e9, 1e9))
    cache = tmp_path / "digests.json"
    first = pin(config(), tmp_path, cache)
    monkeypatch.setattr(pinning.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert pin(config(), tmp_path, cache) == first


def test_a_file_touched_this_instant_is_not_trusted_to_the_cache(books: Path, tmp_path: Path) -> None:
    """Same size, same modification time, other bytes: as when a file is rewritten within one tick of the clock."""
    cache = tmp_path / "digests.json"
    first, path = pin(config(), tmp_path, cache), books / "train" / "5.txt"
    status = path.stat()
    path.write_text("A book of drain.")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert pin(config(), tmp_path, cache) != first


def test_a_damaged_cache_costs_nothing_but_time(books: Path, tmp_path: Path) -> None:
    (tmp_path / "digests.json").write_text('{"torn')
    assert pin(config(), tmp_path, tmp_path / "digests.json") == pin(config(), tmp_path)


def test_a_pin_in_the_study_file_is_held_to(books: Path, tmp_path: Path) -> None:
    found = pin(config(), tmp_path).sources[0].pin
    assert pin(config(pin=found), tmp_path).sources[0].pin == found
    other = "sha256:" + "0" * 64
    with pytest.raises(StageError) as error:
        pin(config(pin=other), tmp_path)
    assert all(text in str(error.value) for text in ("sources.0.pin", other, str(found), "Fix:"))


def test_a_change_between_plan_and_run_is_noticed(books: Path, tmp_path: Path) -> None:
    planned = pin(config(), tmp_path)
    (books / "train" / "5.txt").write_text("Something else.")
    with pytest.raises(StageError, match="changed after the plan was made"):
        STAGE.run(planned, {}, tmp_path, LocalContext(str(tmp_path)))


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "pg19", "name": "b", "url": "nowhere"},
        {"kind": "parquet", "name": "b", "url": "nowhere/*.parquet", "split": "train"},
        {"kind": "text", "name": "b", "url": "memory://nowhere/*.txt", "split": "train"},
    ],
)
def test_missing_input_is_found_at_plan_time(source: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"sources\.0\.url = .*nowhere.*Fix"):
        pin(IngestConfig.model_validate({"sources": [source]}), tmp_path)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([{"kind": "pg19", "name": "b", "url": "x", "ids": [1], "limit": 2}], "exclude each other"),
        ([{"kind": "text", "name": "b", "url": "x", "split": {"validation": 0.5, "test": 0.5}}], "stay below 1"),
        ([{"kind": "jsonl", "name": "b", "url": "x"}], "exactly one of split"),
        ([{"kind": "parquet", "name": "b", "url": "x", "split": "dev"}], "train"),
        (
            [{"kind": "parquet", "name": "b", "url": "x", "split": "train", "columns": {"id_pattern": "(x)"}}],
            "no effect",
        ),
        ([{"kind": "hub", "name": "b", "path": "x", "revision": "main"}], "revision"),
        ([{"kind": "pg19", "name": "b", "url": "x"}] * 2, "'b' is used twice"),
        ([{"kind": "pg19", "name": "b", "url": "x", "lmit": 3}], "lmit"),
        ([], "at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(sources: list[Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        IngestConfig.model_validate({"sources": sources})


def test_planning_needs_no_heavy_library() -> None:
    code = (
        "import sys, stages.data.corpus.stage, stages.data.corpus.pin, stages.data.decontaminate.stage\n"
        "print([m for m in ('torch', 'ray', 'pyarrow', 'numpy', 'datasets', 'numba', 'fsspec') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
