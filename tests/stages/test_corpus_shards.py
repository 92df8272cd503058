"""Ingest by shards: bounded, resumed, the same bytes; what is wrong with an input is told, early where it can be."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.data.corpus import documents as layout
from stages.data.corpus import groups as grouping
from stages.data.corpus import ingest as ingesting
from stages.data.corpus import readers
from stages.data.corpus.config import IngestConfig
from stages.data.corpus.documents import read_texts
from stages.data.corpus.pin import pin, possible_splits
from stages.data.corpus.stage import STAGE
from stages.stage import StageError, Summary
from tests.support import LocalContext, documents_of

HELD_OUT = {"kind": "text", "name": "held", "url": "held/*.txt", "split": "test"}


@pytest.fixture(autouse=True)
def held_out(tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "a.txt").write_text("Held out.")


def configured(tmp_path: Path, *sources: dict[str, Any]) -> IngestConfig:
    return pin(IngestConfig.model_validate({"sources": sources}), tmp_path)


def run(tmp_path: Path, *sources: dict[str, Any], out: str = "out", work: str = "work") -> tuple[Path, LocalContext]:
    output, context = tmp_path / out, LocalContext(str(tmp_path / work))
    output.mkdir()
    made: Summary = STAGE.run(configured(tmp_path, *sources), {}, output, context)
    assert set(made.tables) == {"Problems"}
    return output, context


def problems(output: Path) -> list[tuple[str, str, str, str]]:
    rows = pq.read_table(output / "problems.parquet").to_pylist()
    return [(row["name"], row["problem"], row["action"], row["detail"]) for row in rows]


def content(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def write_texts(folder: Path, texts: dict[str, str]) -> dict[str, Any]:
    for name, text in texts.items():
        (folder / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "train" / name).write_text(text)
    return {"kind": "text", "name": "t", "url": "train/**/*.txt", "split": "train"}


def test_an_interrupted_ingest_goes_on_with_the_groups_it_has_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_texts(tmp_path, {f"{i}.txt": f"Text {i}. " * 9 for i in range(6)})
    monkeypatch.setattr(ingesting, "GROUP_BYTES", 1)
    seen: list[str] = []
    reading = readers.read

    def read(source: Any, file: Any, columns: Any) -> Any:
        seen.append(file.name)
        if file.name == "3.txt" and seen.count("3.txt") == 1:
            raise RuntimeError("the power fails")
        return reading(source, file, columns)

    monkeypatch.setattr(grouping, "read", read)
    with pytest.raises(RuntimeError):
        run(tmp_path, source, HELD_OUT, out="torn")
    resumed, context = run(tmp_path, source, HELD_OUT)
    assert seen == ["0.txt", "1.txt", "2.txt", "3.txt", "3.txt", "4.txt", "5.txt", "a.txt"]
    assert any("3 of 7" in line for line in context.logged)
    whole, _ = run(tmp_path, source, HELD_OUT, out="whole", work="other")
    assert content(resumed) == content(whole)
    changed = write_texts(tmp_path, {"1.txt": "Another text."})
    again, _ = run(tmp_path, changed, HELD_OUT, out="again")
    assert "Another text." in {row["text"] for row in documents_of(again / "documents")}


def test_files_hold_a_bounded_amount_of_text_in_the_order_of_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "PART_BYTES", 1000)
    sizes = {"a": 300, "b": 300, "c": 300, "d": 5000, "e": 300}
    source = write_texts(tmp_path, {f"{name}.txt": name * size for name, size in sizes.items()})
    output, _ = run(tmp_path, HELD_OUT, source)
    files = sorted((output / "documents").iterdir())
    held = [pq.read_table(path)["doc_id"].to_pylist() for path in files]
    assert held == [["held/a.txt"], ["t/a.txt", "t/b.txt", "t/c.txt"], ["t/d.txt"], ["t/e.txt"]]
    texts = {text.doc_id: bytes(text.data).decode() for text in read_texts(output / "documents")}
    assert texts == {row["doc_id"]: row["text"] for row in documents_of(output / "documents")}


@pytest.mark.parametrize("group_bytes", [1, 2**20])
def test_of_documents_with_one_id_and_text_one_is_kept_and_other_texts_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_bytes: int
) -> None:
    monkeypatch.setattr(ingesting, "GROUP_BYTES", group_bytes)
    files = {"a": "x y x#2", "b": "z x", "c": "x", "d": "y", "e": "x"}
    for number, (name, ids) in enumerate(files.items()):
        rows = ids.split()
        texts = [f"a {row}" if name in "dac" else f"{name} {row}" for row in rows]
        table = {"text": texts, "id": rows, "part": ["test" if name == "b" else "train" for _ in rows]}
        pq.write_table(pa.table(table), tmp_path / f"{number}{name}.parquet")
    source = {"kind": "parquet", "name": "p", "url": "*.parquet", "columns": {"id": "id", "split": "part"}}
    output, context = run(tmp_path, source)
    found = {row["doc_id"]: (row["text"], row["split"]) for row in documents_of(output / "documents")}
    assert found == {
        "p/x": ("b x", "test"),
        "p/x#3": ("a x", "train"),
        "p/x#4": ("e x", "train"),
        "p/x#2": ("a x#2", "train"),
        "p/y": ("a y", "train"),
        "p/z": ("b z", "test"),
    }, "the evaluation document keeps its id"
    assert [row[:3] for row in problems(output)] == [
        ("p/x", "duplicate_id", "skipped"),
        ("p/x#3", "same_id", "renamed"),
        ("p/x#4", "same_id", "renamed"),
        ("p/y", "duplicate_id", "skipped"),
    ]
    assert any("2 document(s) skipped, duplicate_id" in line for line in context.warned)
    assert any("2 document(s) had the id of another with another text" in line for line in context.warned)


def test_texts_no_table_can_hold_are_refused_without_reading_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_TEXT_BYTES", 100)
    source = write_texts(tmp_path, {"long.txt": "x" * 101, "right.txt": "x" * 100})
    with gzip.open(tmp_path / "train" / "packed.txt.gz", "wb") as file:
        file.write(b"y" * 5000)
    output, _ = run(tmp_path, {**source, "url": "train/*"}, HELD_OUT)
    assert {row["doc_id"] for row in documents_of(output / "documents")} == {"t/right.txt", "held/a.txt"}
    assert {row[:2] for row in problems(output)} == {("t/long.txt", "too_long"), ("t/packed.txt.gz", "too_long")}


def test_a_text_of_a_table_that_is_not_utf8_costs_that_document_only(tmp_path: Path) -> None:
    texts = pa.array([b"One.", b"caf\xe9", b"Tw\0o", b" \n", b"\xef\xbb\xbfFive.\r\n"], pa.binary())
    unchecked = pa.StringArray.from_buffers(len(texts), *texts.buffers()[1:])
    pq.write_table(pa.table({"text": unchecked, "id": ["1", "2", "3", "4", "5"]}), tmp_path / "rows.parquet")
    columns = {"id": "id"}
    source = {"kind": "parquet", "name": "p", "url": "rows.parquet", "split": "train", "columns": columns}
    output, _ = run(tmp_path, source, HELD_OUT)
    found = {row["doc_id"]: row["text"] for row in documents_of(output / "documents")}
    assert found == {"p/1": "One.", "p/5": "Five.\n", "held/a.txt": "Held out."}
    assert problems(output) == [
        ("p/2", "undecodable", "skipped", "byte 3 is not UTF-8: 0xe9"),
        ("p/3", "nul_byte", "skipped", "NUL at byte 2: a binary file?"),
        ("p/4", "empty", "skipped", "no text but white space"),
    ]


def test_a_shard_cut_short_is_named_with_what_was_read_of_it(tmp_path: Path) -> None:
    lines = gzip.compress(b"\n".join(json.dumps({"text": f"{i} " * 400}).encode() for i in range(900)), 1)
    (tmp_path / "cut.jsonl.gz").write_bytes(lines[: len(lines) // 2])
    source = {"kind": "jsonl", "name": "j", "url": "*.jsonl.gz", "split": "train"}
    output, context = run(tmp_path, source, HELD_OUT)
    read = sum(row["split"] == "train" for row in documents_of(output / "documents"))
    ((name, problem, action, detail),) = problems(output)
    assert (name, problem, action) == ("j/cut.jsonl.gz", "undecodable", "skipped") and read > 10
    assert f"damaged after {read} document(s): EOFError" in detail
    assert any("cut.jsonl.gz" in line for line in context.warned)


@pytest.mark.parametrize("keep", [3, 0.5, 0.99])
def test_half_a_parquet_file_is_found_before_any_work(tmp_path: Path, keep: float) -> None:
    pq.write_table(pa.table({"text": [f"Text {i}" for i in range(500)]}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    source = {"kind": "parquet", "name": "p", "url": "*.parquet", "split": "train"}
    configured(tmp_path, source, HELD_OUT)
    (tmp_path / "a.parquet").write_bytes(whole[: int(keep if keep > 1 else keep * len(whole))])
    with pytest.raises(StageError, match=r"sources\.0\.url = .*a\.parquet.*Parquet file.*Fix"):
        configured(tmp_path, source, HELD_OUT)


def test_the_training_file_as_evaluation_set_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "One."}\n')
    (tmp_path / "copy.jsonl").write_text('{"text": "One."}\n')
    sources = [
        {"kind": "jsonl", "name": name, "url": f"{file}.jsonl", "split": split}
        for name, file, split in (("a", "one", "train"), ("b", "copy", "validation"))
    ]
    with pytest.raises(StageError, match=r"sources\.1 = 'b': the evaluation set of source 'b' is also training text"):
        configured(tmp_path, *sources)
    configured(tmp_path, sources[0], {**sources[1], "split": "train"}, HELD_OUT)


def test_evaluation_texts_in_the_training_set_are_named_and_all_of_them_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "Held out."}\n{"text": "Something else."}\n')
    source = {"kind": "jsonl", "name": "j", "url": "rows.jsonl", "split": "train"}
    with pytest.raises(StageError, match=r"every evaluation document \(1\) is also a training document.*Fix"):
        run(tmp_path, source, HELD_OUT)
    (tmp_path / "held" / "b.txt").write_text("Held out as well.")
    output, context = run(tmp_path, source, HELD_OUT, out="out2")
    assert problems(output) == [
        ("j/rows.jsonl:0000000", "evaluation_text", "kept", "its text is that of the evaluation document held/a.txt")
    ]
    assert len(documents_of(output / "documents")) == 4
    assert any("copies of evaluation documents" in line for line in context.warned)


def test_shares_of_text_files_tell_their_splits_by_name(tmp_path: Path) -> None:
    """What no file falls into is known before the files are read."""
    source = write_texts(tmp_path, {f"{i}.txt": f"Text {i}." for i in range(3)})
    shares = {**source, "split": {"validation": 0.0, "test": 0.0}}
    (resolved,) = configured(tmp_path, shares).sources
    assert possible_splits(resolved) == {"train"}
    shares["split"] = {"validation": 0.3, "test": 0.65}
    (resolved,) = configured(tmp_path, shares).sources
    output, _ = run(tmp_path, shares, {**HELD_OUT, "split": "train"})
    rows = documents_of(output / "documents")
    assert possible_splits(resolved) == {row["split"] for row in rows if row["source"] == "t"}
