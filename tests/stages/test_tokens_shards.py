"""Shards made by many tasks hold what packing one document after the other gives, in the same bytes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.data.corpus import documents as layout
from stages.data.tokens import lots
from stages.data.tokens import tokenize as running
from stages.data.tokens.config import TokenizeConfig, TokenizerConfig
from stages.data.tokens.load import load_tokenizer
from stages.data.tokens.stage import TOKENIZE, TOKENIZER
from tests.stages.test_tokens_pieces import corpus
from tests.support import LocalArtifact, LocalContext

LENGTH = 32
Row = tuple[str, str, str, str]


@pytest.fixture
def rows() -> list[Row]:
    """id, source, split, text: many short ones, some empty, some of many rows."""
    chance = random.Random(5)
    made = []
    for i in range(300):
        split = chance.choice(["train"] * 6 + ["validation", "test"])
        words = chance.choice([0, 1, 3, 5, 6, 40, 200])
        made.append((f"{i % 3}/{i:04}", f"s{i % 3}", split, " ".join(f"w{chance.randrange(99)}" for _ in range(words))))
    return made


@pytest.fixture
def documents(tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> LocalArtifact:
    monkeypatch.setattr(layout, "PART_BYTES", 9000)
    return corpus(tmp_path / "c", rows)


def run(tmp_path: Path, documents: LocalArtifact, name: str, **options: Any) -> Path:
    (tmp_path / "tokenizer").mkdir(exist_ok=True)
    context = LocalContext(str(tmp_path / f"work-{name}"))
    TOKENIZER.run(TokenizerConfig(kind="bytes"), {"documents": documents}, tmp_path / "tokenizer", context)
    (tmp_path / name).mkdir()
    inputs = {"documents": documents, "tokenizer": LocalArtifact(tmp_path / "tokenizer")}
    config = TokenizeConfig(sequence_length=LENGTH, segment_length=8, shard_bytes=LENGTH * 5 * 7, **options)
    TOKENIZE.run(config, inputs, tmp_path / name, context)
    return tmp_path / name


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_shards_hold_what_packing_in_one_process_gives(
    tmp_path: Path, documents: LocalArtifact, rows: list[Row], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lots, "LOT", 1500)
    out = run(tmp_path, documents, "out", min_tail_share=share)
    encode = load_tokenizer(LocalArtifact(tmp_path / "tokenizer")).encode
    eos, pad = (running.json.loads((out / "meta.json").read_text())[name] for name in ("eos_id", "pad_id"))
    for split in ("train", "validation", "test"):
        expected: list[tuple[list[int], list[int], str, int, str]] = []
        for doc_id, source, where, text in rows:
            tokens = [*encode(text), eos] if where == split else []
            for at in range(0, len(tokens), LENGTH):
                piece = tokens[at : at + LENGTH]
                if len(piece) == LENGTH or split != "train" or len(piece) >= share * LENGTH:
                    fill = LENGTH - len(piece)
                    expected.append(([*piece, *[pad] * fill], [*[1] * len(piece), *[0] * fill], doc_id, at, source))
        shards = sorted((out / split).glob("data-*.arrow"))
        tables = [pa.ipc.open_stream(path.read_bytes()).read_all() for path in shards]
        found = [tuple(row.values()) for table in tables for row in table.to_pylist()]
        assert found == expected
        assert [len(table) for table in tables[:-1]] == [7] * (len(tables) - 1) and len(tables) > 1
    listed = pq.read_table(out / "documents.parquet").to_pylist()
    assert [row["doc_id"] for row in listed] == [row[0] for row in rows]
    assert [row["tokens"] for row in listed] == [len(row[3].encode()) + 1 for row in rows]


@pytest.mark.parametrize("lot", [200, 5000])
def test_whatever_a_task_gets_the_files_are_the_same(
    tmp_path: Path, documents: LocalArtifact, monkeypatch: pytest.MonkeyPatch, lot: int
) -> None:
    plain = run(tmp_path, documents, "plain")
    monkeypatch.setattr(lots, "LOT", lot)
    monkeypatch.setattr(running, "ROWS_AT_ONCE", 2**14)
    assert files(run(tmp_path, documents, "other")) == files(plain)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_same_bytes_with_any_number_of_tasks_at_a_time(
    tmp_path: Path, documents: LocalArtifact, ray_session: None, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    plain = run(tmp_path, documents, "plain")
    monkeypatch.setattr(lots, "LOT", 4000)
    monkeypatch.setattr(running, "WORTH_TASKS", 0)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": workers})
    assert files(run(tmp_path, documents, "ray")) == files(plain)


def test_the_rows_of_one_large_row_group_go_to_several_tasks(tmp_path: Path, documents: LocalArtifact) -> None:
    (name, *_) = running.document_names(documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lots, "LOT", 1000)
        parts = lots.lots_of(name, documents)
    assert len(parts) > 3 and {part.parts for part in parts} == {len(parts)}
    whole = [text.doc_id for text in lots.Lot(name, 0, 1, 0).texts(documents)]
    assert [text.doc_id for part in parts for text in part.texts(documents)] == whole
    assert np.diff([part.part for part in parts]).tolist() == [1] * (len(parts) - 1)
