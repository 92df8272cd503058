"""Pairs in a data set of the Hub: fetched over HTTP at a pinned commit, its splits by names of files, then offline."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest

from stages.data.summaries import read, rows, split_of
from stages.training.finetune.config import SummaryPairs
from stages.training.finetune.pairs import fault
from tests.stages.test_summaries_pairs import BOOKSUM

COMMIT = "1234567890abcdef1234567890abcdef12345678"
NAME = "some/booksum"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """As such data sets lie there: BookSum's columns, which have no split, a file a split."""
    folder, found = tmp_path_factory.mktemp("dataset"), {}
    for split, chapter in (("train", "A wall."), ("validation", "A river."), ("test", "A bridge.")):
        file = folder / f"{split}.parquet"
        pd.DataFrame([row | {"chapter": chapter, "book_id": split} for row in BOOKSUM]).to_parquet(file)
        found[f"data/{split}-00000-of-00001.parquet"] = file.read_bytes()
    return {**found, "dataset_infos.json": b"{}\n", "README.md": b"#", "big/other.bin": b"not fetched"}


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's HTTP interface that a snapshot uses."""

    def __init__(self, *arguments: object, files: dict[str, bytes], asked: list[str]) -> None:
        self.files, self.asked = files, asked
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        about, resolve = f"/api/datasets/{NAME}/", f"/datasets/{NAME}/resolve/{COMMIT}/"
        body, problem = b"", "RepoNotFound"
        if path == f"{about}revision/{COMMIT}":  # what older libraries ask for, and newer ones
            siblings = [{"rfilename": name} for name in self.files]
            body, problem = json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode(), ""
        elif path == f"{about}tree/{COMMIT}":
            tree = [{"type": "file", "path": name, "size": len(of), "oid": "0"} for name, of in self.files.items()]
            body, problem = json.dumps(tree).encode(), ""
        elif path.startswith(about):
            problem = "RevisionNotFound"
        elif path.startswith(resolve) and (name := path.removeprefix(resolve)) in self.files:
            self.asked.append(name)
            body, problem = self.files[name], ""
        self.send_response(404 if problem else 200)
        if problem:
            self.send_header("X-Error-Code", problem)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Its address, and what was fetched from it."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, files=files, asked=asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


CODE = """
import json, sys
from pathlib import Path
from stages.data import summaries
from stages.data.taskaudit.file import items
from stages.data.taskaudit.pin import task_of_pairs
from stages.evidence.summarize.config import Pairs, SummarizeConfig, pin_pairs
from stages.evidence.summarize.items import from_pairs
from stages.stage import StageError
from stages.training.finetune.config import FinetuneSettings, SummaryPairs, pin_finetune
from stages.training.finetune.pairs import _rows
from stages.training.tuning.data import Read
said = []
for path in json.loads(sys.argv[1]):
    try:
        pairs = Pairs(path=path, splits=("test",))
        config = SummarizeConfig(tasks=("condense",), prompt_tokens=9, new_tokens=9, pairs=pairs, documents=5)
        pinned = pin_pairs(config, Path())
        tuned = SummaryPairs(path=path, max_tokens=64, summary_tokens=8)
        settings = FinetuneSettings(steps=1, batch_sequences=1, lr=1e-3, pairs=tuned)
        trained = pin_finetune(settings, Path(), "finetune").pairs
        (source,) = task_of_pairs(pinned.pairs, ())
        said.append([
            [example.text for example in from_pairs(pinned.pairs, pinned)],
            [text for text, _ in _rows(trained, Read(), ())],
            [item.text for item in items(source)],
            pinned.pairs.path,
            pinned.pairs.pin == trained.pin,
        ])
    except StageError as error:
        said.append(str(error))
print(json.dumps(said))
"""


def ask(tmp_path: Path, *paths: str, **environment: str) -> list[object]:
    """In a process of its own: the Hub's library reads its environment once."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(paths)],
        env={
            **os.environ,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **environment,
        },
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    found: list[object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_data_set_is_fetched_at_its_commit_and_then_used_without_a_network(
    tmp_path: Path, hub: tuple[str, list[str]]
) -> None:
    """Asked are the chapters of test, trained on are those of train; nothing else of the data set travels."""
    endpoint, asked = hub
    whole = f"hf://datasets/{NAME}@{COMMIT}"
    expected = [["A bridge."], ["A wall.", "A wall."], ["A bridge.", "A bridge."]]
    (found,) = ask(tmp_path, whole, HF_ENDPOINT=endpoint)
    assert found == [*expected, whole, True]
    assert asked and all(name.endswith((".parquet", ".json")) for name in asked)
    (again,) = ask(tmp_path, whole, HF_HUB_OFFLINE="1")
    assert again == found
    (folder,) = ask(tmp_path, f"{whole}/data", HF_ENDPOINT=endpoint)
    assert isinstance(folder, list) and folder[:3] == expected


def test_what_is_no_data_set_and_no_commit_is_one_line(tmp_path: Path, hub: tuple[str, list[str]]) -> None:
    endpoint, _ = hub
    whole = f"hf://datasets/{NAME}@{COMMIT}"
    wrong = {
        f"hf://datasets/{NAME}": "not an address of the Hub",
        f"hf://datasets/{NAME}@main": "not an address of the Hub (allowed: hf://datasets/OWNER/NAME@COMMIT",
        f"hf://datasets/some/other@{COMMIT}": "the Hub has no such data set, or a private one",
        f"hf://datasets/{NAME}@{'0' * 40}": "the Hub has no such commit",
        f"{whole}/../../other": "not an address of the Hub",
        f"{whole}/nowhere": "the data set has no such file or folder at this commit",
        f"{whole}/nowhere.parquet": "the data set has no such file or folder at this commit",
    }
    for path, said in zip(wrong, ask(tmp_path, *wrong, HF_ENDPOINT=endpoint), strict=True):
        assert isinstance(said, str) and said.startswith(f"summarize.pairs.path = '{path}': {wrong[path]}"), said
    (offline,) = ask(tmp_path / "other", whole, HF_HUB_OFFLINE="1")
    assert isinstance(offline, str) and "not in the local cache and the Hub does not answer" in offline


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("data/train-00000-of-00002.jsonl", "train"),
        ("default/test/0000.jsonl", "test"),
        ("booksum_validation.jsonl", "validation"),
        ("dev.jsonl", "validation"),
        ("train/test.jsonl", "test"),
        ("latest.jsonl", ""),
        ("trains.jsonl", ""),
        ("chapters.jsonl", ""),
    ],
)
def test_files_of_a_folder_say_their_split_by_their_names(tmp_path: Path, name: str, split: str) -> None:
    file = tmp_path / "pairs" / name
    file.parent.mkdir(parents=True)
    given = [{"text": "t", "summary": "s"}, {"text": "u", "summary": "s", "split": "own"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in given))
    assert [split_of(row) for _, _, row in rows(tmp_path / "pairs", "pairs")] == [split, "own"]
    assert [split_of(row) for _, _, row in rows(file, "pairs")] == ["", "own"]  # a file that is named is meant


def test_a_downloaded_data_set_is_trained_on_by_its_training_split_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text(json.dumps({"text": split, "summary": "s"}) + "\n")
    pairs = SummaryPairs(path=str(tmp_path), max_tokens=64, summary_tokens=8)
    assert [pair.text for pair in read(tmp_path, tmp_path, "pairs", ("train",))] == ["train"]
    assert fault(pairs) is None
    (tmp_path / "data" / "train.jsonl").unlink()
    lacking = fault(pairs.model_copy(update={"pin": None, "cue": "\n"}))
    assert lacking is not None and "of the split test: 1" in str(lacking)
