"""Large files read in pieces give the table they give in one; local inputs are hashed once."""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.corpus import documents as layout_of
from stages.data.corpus import files as hashing
from stages.data.corpus import groups as reading
from stages.data.corpus import hub, readers
from stages.data.corpus import ingest as ingesting
from stages.data.corpus.config import Hub, IngestConfig, JsonLines
from stages.data.corpus.documents import DocumentsWriter, document_files
from stages.data.corpus.files import ExternalFile
from stages.data.corpus.opened import lines_of
from stages.data.corpus.pin import pin
from stages.data.corpus.readers import Piece
from stages.data.corpus.stage import STAGE
from stages.stage import StageError
from tests.support import LocalContext, settled


@pytest.fixture(autouse=True)
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A file of each kind, with everything in it that a reader can meet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(layout_of, "PART_BYTES", 3000)
    chance = random.Random(0)
    lines: list[bytes] = []
    for i in range(200):
        row = {"text": f"Text {i}. " * chance.randrange(1, 60), "id": f"{i % 90:03}" if i % 3 else None}
        lines.append(json.dumps(row).encode() + (b"\r\n" if i % 7 == 0 else b"\n"))
        lines += (
            [b"\n"] * (i % 11 == 0)
            + [b"{broken\n"] * (i % 50 == 9)
            + [b'{"text": "' + b"x" * 4000 + b'"}\n'] * (i == 70)
        )
    (tmp_path / "rows.jsonl").write_bytes(b"".join(lines).removesuffix(b"\n"))
    texts = [f"Row {i}. " * chance.randrange(1, 60) for i in range(150)]
    table = pa.table({"text": [*texts[:70], None, "", *texts[72:]], "name": [f"n{i % 140}" for i in range(150)]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=8)
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.table({"text": [f"Hub {i}. " * 30 for i in range(100)]}), tmp_path / "hub" / "train.parquet")
    (tmp_path / "held.txt").write_text("Held out.")
    return [
        {"kind": "jsonl", "name": "j", "url": "rows.jsonl", "split": "train", "columns": {"id": "id"}},
        {"kind": "parquet", "name": "p", "url": "rows.parquet", "split": "train", "columns": {"id": "name"}},
        {"kind": "hub", "name": "h", "path": "hub", "splits": {"train": "train"}},
        {"kind": "text", "name": "t", "url": "held.txt", "split": "test"},
    ]


def run(tmp_path: Path, sources: list[dict[str, Any]], name: str, work: str = "") -> dict[str, bytes]:
    """Files of an ingest into ``name``."""
    output = tmp_path / name
    output.mkdir()
    config = pin(IngestConfig.model_validate({"sources": sources}), tmp_path)
    STAGE.run(config, {}, output, LocalContext(work or str(tmp_path / f"work-{name}")))
    return {str(p.relative_to(output)): p.read_bytes() for p in settled(output).rglob("*") if p.is_file()}


def test_files_in_pieces_give_the_very_bytes_of_files_in_one(
    tmp_path: Path, sources: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path, sources, "whole")
    read: list[Piece | None] = []
    original = reading.read_group

    def read_group(group: Any, *rest: Any) -> Any:
        read.append(group.piece)
        return original(group, *rest)

    monkeypatch.setattr(reading, "read_group", read_group)
    monkeypatch.setattr(reading, "SPLIT_BYTES", 2500)
    assert run(tmp_path, sources, "pieces") == whole
    assert sum(piece is not None for piece in read) > 30 and len(document_files(tmp_path / "pieces" / "documents")) > 10
    assert run(tmp_path, sources, "remote", f"memory://{tmp_path.name}") == whole


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_same_bytes_with_any_number_of_tasks_at_a_time(
    tmp_path: Path, sources: list[dict[str, Any]], ray_session: None, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """The hub is left out: every worker would import its library. What is set here workers do not see."""
    del sources[2]
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole = run(tmp_path, sources, "whole")
    monkeypatch.setattr(ingesting, "WORTH_TASKS", 0)
    monkeypatch.setattr(reading, "SPLIT_BYTES", 20_000)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": workers})
    assert run(tmp_path, sources, "ray") == whole


def test_damage_in_one_piece_ends_the_reading_of_the_file_as_in_one(
    tmp_path: Path, sources: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "ROWS_BYTES", 1000)
    content = bytearray((tmp_path / "rows.parquet").read_bytes())
    group = pq.read_metadata(tmp_path / "rows.parquet").row_group(9)
    column = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "text")
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 24] = b"\xff" * 24
    (tmp_path / "rows.parquet").write_bytes(content)
    whole = run(tmp_path, sources[1::2], "whole")
    monkeypatch.setattr(reading, "SPLIT_BYTES", 2500)
    assert run(tmp_path, sources[1::2], "pieces") == whole
    rows = pq.read_table(tmp_path / "pieces" / "problems.parquet").to_pylist()
    assert any(row["detail"].startswith("damaged after ") for row in rows)
    read = pq.read_table(tmp_path / "pieces" / "documents")["doc_id"].to_pylist()
    assert 30 < sum(name.startswith("p/") for name in read) <= 72


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([b"a", b"bb", b"\n", b"\n\n", b"ccccc\n"]), max_size=30), st.integers(1, 9))
def test_every_line_begins_in_one_piece(parts: list[bytes], size: int) -> None:
    content = b"".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "opened", lambda location: io.BytesIO(content))
        found: list[bytes] = []
        for start in range(0, len(content), size):
            piece = Piece(start, min(len(content), start + size), 0)
            mine = list(lines_of(io.BytesIO(content), piece.start, piece.end))
            source = JsonLines(name="j", url="x", split="train")
            group = reading.Group(source, (ExternalFile("x", "x", len(content), ""),), piece=piece)
            assert reading.rows_of(group) - (content == b"") == len(mine)
            found += mine
    assert found == content.splitlines(keepends=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=30))
def test_the_layout_is_that_of_the_writer(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    folder = tmp_path_factory.mktemp("layout")
    empty = dict.fromkeys(("title", "author", "year"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout_of, "PART_BYTES", 20)
        writer = DocumentsWriter(folder)
        row = {**empty, "doc_id": "d", "source": "s", "split": "train", "sha256": "0"}
        places = [writer.write({**row, "text": b"x" * size}) for size in sizes]
        found = reading.layout(np.array(sizes, np.int64))
    assert [(part, row) for part, (a, b) in enumerate(found) for row in range(b - a)] == places


def test_unchanged_local_files_are_hashed_once_and_changed_ones_again(
    tmp_path: Path, sources: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "RACY_NS", -1)
    hashed: list[str] = []
    original = hashing.digest_of
    monkeypatch.setattr(hashing, "digest_of", lambda path: hashed.append(Path(path).name) or original(path))
    config = pin(IngestConfig.model_validate({"sources": sources}), tmp_path, hashing.default_cache())
    assert sorted(hashed) == ["held.txt", "rows.jsonl", "rows.parquet", "train.parquet"]
    hashed.clear()
    (tmp_path / "out").mkdir()
    STAGE.run(config, {}, tmp_path / "out", LocalContext(str(tmp_path / "work")))
    assert not hashed
    (tmp_path / "held.txt").write_text("Held in.")
    (tmp_path / "out2").mkdir()
    with pytest.raises(StageError, match=r"input of source 't' changed after the plan was made"):
        STAGE.run(config, {}, tmp_path / "out2", LocalContext(str(tmp_path / "work2")))
    assert hashed == ["held.txt"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz"])
def test_a_hub_data_set_is_read_shard_by_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Two files, of Parquet three row groups each: a task for each; the rows keep their numbers; a slice is loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    for at in range(2):
        rows = [{"id": f"x{i}" if i % 2 else None, "content": {"text": f"Text {at} {i}. " * 9}} for i in range(25)]
        path = tmp_path / "set" / f"train-{at}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)
        else:
            lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
            path.write_bytes(gzip.compress(lines) if kind.endswith("gz") else lines)
    (tmp_path / "held.txt").write_text("Held out.")
    source = {"kind": "hub", "name": "h", "path": "set", "columns": {"text": "content.text", "id": "id"}}
    held = {"kind": "text", "name": "t", "url": "held.txt", "split": "test"}
    whole = run(tmp_path, [{**source, "splits": {"train": "train"}}, held], "whole")
    sliced = run(tmp_path, [{**source, "splits": {"train": "train[:40]"}}, held], "sliced")
    pieces: list[Piece] = []
    original = reading.in_pieces
    monkeypatch.setattr(
        reading, "in_pieces", lambda *given: pieces.extend(g.piece for g in original(*given)) or original(*given)
    )
    monkeypatch.setattr(reading, "SPLIT_BYTES", 100)
    assert run(tmp_path, [{**source, "splits": {"train": "train"}}, held], "pieces") == whole
    assert len(pieces) == (6 if kind == "parquet" else 2)
    assert run(tmp_path, [{**source, "splits": {"train": "train[:40]"}}, held], "slices") == sliced
    names = pq.read_table(tmp_path / "pieces" / "documents")["doc_id"].to_pylist()
    assert names[26] == "h/x1#2" and names[27] == "h/train:0000027", names[24:30]


@pytest.mark.parametrize(
    ("offline", "path", "wanted", "streamed"),
    [
        ("", "owner/name", "train", True),
        ("1", "owner/name", "train", False),
        ("1", "/data/set", "train", True),
        ("", "owner/name", "train[:10%]", False),
        ("0", "owner/name", "train", True),
    ],
)
def test_what_is_only_in_the_cache_is_loaded_not_streamed(
    monkeypatch: pytest.MonkeyPatch, offline: str, path: str, wanted: str, streamed: bool
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    source = Hub(name="h", path=path, revision=None, splits={"train": wanted})
    assert hub.streamed(source, "train") is streamed
