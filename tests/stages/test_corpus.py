"""Ingest: every kind of source gives the documents its files hold, and nothing bad passes in silence."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.data.corpus import ingest as ingesting
from stages.data.corpus.config import IngestConfig
from stages.data.corpus.manuals import manual_pages
from stages.data.corpus.pin import pin
from stages.data.corpus.stage import STAGE
from stages.stage import StageError
from tests.support import LocalContext, documents_of

Ingested = tuple[dict[str, dict[str, Any]], list[dict[str, Any]], LocalContext, Path]


@pytest.fixture
def ingest(tmp_path: Path) -> Callable[..., Ingested]:
    """Runs the stage on sources given as in a study file; (documents by id, problems, context, output folder)."""

    def run(*sources: dict[str, Any], out: str = "out", **options: Any) -> Ingested:
        config = pin(IngestConfig.model_validate({"sources": sources, **options}), tmp_path)
        output, context = tmp_path / out, LocalContext(str(tmp_path / "work" / out))
        output.mkdir()
        STAGE.run(config, {}, output, context)
        documents = {row["doc_id"]: row for row in documents_of(output / "documents")}
        return documents, pq.read_table(output / "problems.parquet").to_pylist(), context, output

    return run


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """Six short books in PG-19's layout."""
    for split, ids in {"train": (11, 12, 13), "validation": (20,), "test": (30, 31)}.items():
        (tmp_path / "books" / split).mkdir(parents=True)
        for number in ids:
            (tmp_path / "books" / split / f"{number}.txt").write_text(f"Book {number}.\nIt begins.\n")
    return tmp_path / "books"


BOOKS = {"kind": "pg19", "name": "books", "url": "books"}


def test_pg19_layout_keeps_the_official_splits_and_reads_metadata(ingest: Any, books: Path) -> None:
    (books / "metadata.csv").write_text('id,title,author,year\n11,"Alice, again",Carroll,1865\n30,Waves,,1931-01-02\n')
    documents, problems, _, _ = ingest(BOOKS)
    assert {name: row["split"] for name, row in documents.items()} == {
        "books/11": "train",
        "books/12": "train",
        "books/13": "train",
        "books/20": "validation",
        "books/30": "test",
        "books/31": "test",
    }
    alice, waves = documents["books/11"], documents["books/30"]
    assert (alice["title"], alice["author"], alice["year"]) == ("Alice, again", "Carroll", 1865)
    assert (waves["title"], waves["author"], waves["year"]) == ("Waves", None, 1931)
    assert alice["text"] == "Book 11.\nIt begins.\n" and alice["source"] == "books"
    assert not problems


def test_pg19_metadata_without_a_header(ingest: Any, books: Path) -> None:
    (books / "metadata.csv").write_text("12,Emma,1815,http://www.gutenberg.org/ebooks/12\n")
    documents, *_ = ingest(BOOKS)
    assert (documents["books/12"]["title"], documents["books/12"]["year"]) == ("Emma", 1815)


def test_pg19_limit_takes_the_same_books_whatever_else_is_there(ingest: Any, books: Path) -> None:
    first = set(ingest({**BOOKS, "limit": 1})[0])
    assert len(first) == 3
    again = set(ingest({**BOOKS, "limit": 2}, out="out2")[0])
    assert first < again and len(again) == 5


def test_pg19_ids_may_be_numbers_and_must_exist(ingest: Any, books: Path) -> None:
    documents, *_ = ingest({**BOOKS, "ids": [11, "30"]})
    assert set(documents) == {"books/11", "books/30"}
    with pytest.raises(StageError, match=r"sources\.0\.ids = '99'.*Fix"):
        ingest({**BOOKS, "ids": [11, 99]}, out="out2")


def test_bad_documents_are_named_counted_and_skipped(ingest: Any, books: Path) -> None:
    (books / "train" / "11.txt").write_bytes(b"caf\xe9 in Latin-1")
    (books / "train" / "12.txt").write_text(" \n\n")
    (books / "test" / "31.txt").write_bytes(b"PK\0\0")
    (books / "train" / "30.txt").write_text("The same id in two splits.")
    documents, problems, context, _ = ingest(BOOKS)
    assert {name: row["split"] for name, row in documents.items()} == {
        "books/13": "train",
        "books/20": "validation",
        "books/30": "test",
        "books/30#2": "train",
    }
    assert [(p["name"], p["problem"], p["action"]) for p in problems] == [
        ("books/11", "undecodable", "skipped"),
        ("books/12", "empty", "skipped"),
        ("books/30#2", "same_id", "renamed"),
        ("books/31", "nul_byte", "skipped"),
    ]
    assert any("1 document(s) skipped, undecodable: books/11" in line for line in context.warned)


def test_bad_documents_can_stop_the_run(ingest: Any, books: Path) -> None:
    (books / "train" / "11.txt").write_bytes(b"\xff")
    with pytest.raises(StageError, match=r"on_bad_document = 'fail'.*books/11: undecodable"):
        ingest(BOOKS, on_bad_document="fail")


@pytest.mark.parametrize(("removed", "lacking"), [(("train",), "training"), (("validation", "test"), "evaluation")])
def test_a_corpus_without_a_side_is_refused(ingest: Any, books: Path, removed: tuple[str, ...], lacking: str) -> None:
    for split in removed:
        for path in (books / split).iterdir():
            path.unlink()
    with pytest.raises(StageError, match=f"no {lacking}"):
        ingest(BOOKS)


def test_byte_order_marks_and_crlf_are_normalised(ingest: Any, books: Path) -> None:
    (books / "train" / "11.txt").write_bytes(b"\xef\xbb\xbfOne\r\nTwo\n")
    documents, *_ = ingest(BOOKS)
    assert documents["books/11"]["text"] == "One\nTwo\n"


def test_parquet_with_named_columns_and_a_split_column(ingest: Any, tmp_path: Path) -> None:
    rows = [
        {"body": "One.", "key": "x/1", "part": "train"},
        {"body": "Two.", "key": "x/2", "part": "test"},
        {"body": None, "key": "x/3", "part": "train"},
        {"body": "Four.", "key": "x/4", "part": "dev"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    columns = {"text": "body", "id": "key", "id_pattern": r"/(\d+)$", "split": "part"}
    documents, problems, *_ = ingest({"kind": "parquet", "name": "p", "url": "*.parquet", "columns": columns})
    assert {name: row["split"] for name, row in documents.items()} == {"p/1": "train", "p/2": "test"}
    assert [(p["name"], p["problem"]) for p in problems] == [("p/3", "empty"), ("p/4", "unknown_split")]
    columns["text"] = "text"
    with pytest.raises(StageError, match=r"'text': no such column \(allowed: body, key, part\)"):
        ingest({"kind": "parquet", "name": "p", "url": "*.parquet", "columns": columns}, out="out2")


def test_compressed_json_lines_split_by_a_stable_hash(ingest: Any, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"Text {i}.", "id": i}) for i in range(200)] + ["{broken", '{"other": 1}']
    with gzip.open(tmp_path / "part.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    source = {
        "kind": "jsonl",
        "name": "j",
        "url": "part.jsonl.gz",
        "columns": {"id": "id"},
        "split": {"validation": 0.1, "test": 0.2},
    }
    documents, problems, *_ = ingest(source)
    splits = [row["split"] for row in documents.values()]
    assert 8 <= splits.count("validation") <= 35 and 25 <= splits.count("test") <= 60
    assert [(p["name"], p["problem"]) for p in problems] == [
        ("j/part.jsonl.gz:0000200", "undecodable"),
        ("j/part.jsonl.gz:0000201", "undecodable"),
    ]


def test_text_files_from_object_storage(ingest: Any) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({"/corpus/a/one.txt": b"One.", "/corpus/b/two.txt": b"Two.", "/held/three.txt": b"Three."})
    documents, *_ = ingest(
        {"kind": "text", "name": "web", "url": "memory://corpus/**/*.txt", "split": "train"},
        {"kind": "text", "name": "held", "url": "memory://held/three.txt", "split": "test"},
    )
    assert {name: row["text"] for name, row in documents.items()} == {
        "held/three.txt": "Three.",
        "web/a/one.txt": "One.",
        "web/b/two.txt": "Two.",
    }


NAMES = ("part.001", "part.002", "z.txt", "z.md", "a b#1.txt", "50%.txt", "q?.txt", "[1].txt", "p::q.txt", "p::q.gz")


def test_any_name_is_a_name(ingest: Any, books: Path, tmp_path: Path) -> None:
    """With its suffix; wildcards and fsspec's marks in names of files and folders stand for themselves."""
    folder = tmp_path / "odd [x]"
    folder.mkdir()
    for name in NAMES:
        packed = gzip.compress(name.encode()) if name.endswith(".gz") else name.encode()
        (folder / name).write_bytes(packed)
    documents, problems, *_ = ingest(BOOKS, {"kind": "text", "name": "t", "url": "odd [x]/*", "split": "train"})
    assert {name for name in documents if name.startswith("t/")} == {f"t/{name}" for name in NAMES} and not problems
    assert all(documents[f"t/{name}"]["text"] == name for name in NAMES)
    one = {"kind": "text", "name": "t", "url": "odd [x]/[1].txt", "split": "train"}
    assert "t/[1].txt" in ingest(BOOKS, one, out="one")[0]


def test_names_with_marks_on_object_storage(ingest: Any, books: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({"/odd[1]/p::q.txt": b"One.", "/odd[1]/r.txt.gz": gzip.compress(b"Two."), "/odd[1]/[s].txt": b"Three."})
    documents, *_ = ingest(BOOKS, {"kind": "text", "name": "t", "url": "memory://odd[1]/*", "split": "train"})
    found = {name: row["text"] for name, row in documents.items() if name.startswith("t/")}
    assert found == {"t/p::q.txt": "One.", "t/r.txt.gz": "Two.", "t/[s].txt": "Three."}
    one = {"kind": "text", "name": "t", "url": "memory://odd[1]/[s].txt", "split": "train"}
    assert ingest(BOOKS, one, out="one")[0]["t/[s].txt"]["text"] == "Three."


def test_zstd_with_several_frames_and_one_cut_short(ingest: Any, books: Path, tmp_path: Path) -> None:
    import zstandard

    rows = [json.dumps({"text": f"Text {i}. " * 500, "id": i}).encode() + b"\n" for i in range(200)]
    long_window = zstandard.ZstdCompressionParameters.from_level(3, window_log=29, enable_ldm=True)
    frames = [
        zstandard.ZstdCompressor(level=3).compress(b"".join(rows[:100])),
        zstandard.ZstdCompressor(compression_params=long_window).compressobj().compress(b"") or b"",
    ]
    packer = zstandard.ZstdCompressor(compression_params=long_window).compressobj()
    frames[1] = packer.compress(b"".join(rows[100:])) + packer.flush()
    (tmp_path / "whole.jsonl.zst").write_bytes(b"".join(frames))
    source = {"kind": "jsonl", "name": "z", "url": "whole.jsonl.zst", "columns": {"id": "id"}, "split": "train"}
    documents, problems, *_ = ingest(BOOKS, source)
    assert sum(name.startswith("z/") for name in documents) == 200 and not problems
    (tmp_path / "cut.jsonl.zst").write_bytes(b"".join(frames)[:-20])
    documents, problems, *_ = ingest(BOOKS, {**source, "url": "cut.jsonl.zst"}, out="cut")
    assert [(p["name"], p["problem"]) for p in problems] == [("z/cut.jsonl.zst", "undecodable")]
    (tmp_path / "no.jsonl.zst").write_bytes(b"not zstd at all")
    assert [p["problem"] for p in ingest(BOOKS, {**source, "url": "no.jsonl.zst"}, out="no")[1]] == ["undecodable"]


@pytest.mark.parametrize(("kind", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_damage_behind_a_whole_part_of_a_packed_file_is_no_end_of_it(
    ingest: Any, books: Path, tmp_path: Path, kind: str, pack: Callable[[bytes], bytes]
) -> None:
    first, second = (pack(b"".join(json.dumps({"text": f"{n} {i}"}).encode() + b"\n" for i in range(40))) for n in "ab")
    (tmp_path / f"whole.jsonl.{kind}").write_bytes(first + bytes(512) + second + bytes(512))
    (tmp_path / f"broken.jsonl.{kind}").write_bytes(first + second[:20] + bytes([second[20] ^ 0xFF]) + second[21:])
    (tmp_path / f"empty.jsonl.{kind}").touch()
    source = {"kind": "jsonl", "name": "j", "url": f"*.jsonl.{kind}", "split": "train"}
    documents, problems, *_ = ingest(BOOKS, source)
    names = [name.split(":")[0] for name in documents if name.startswith("j/")]
    assert names.count(f"j/whole.jsonl.{kind}") == 80 and names.count(f"j/broken.jsonl.{kind}") == 40
    said = {row["name"]: (row["problem"], row["detail"].split(" document")[0]) for row in problems}
    assert said == {
        f"j/broken.jsonl.{kind}": ("undecodable", "damaged after 40"),
        f"j/empty.jsonl.{kind}": ("undecodable", "damaged after 0"),
    }


def test_columns_inside_columns(ingest: Any, books: Path, tmp_path: Path) -> None:
    rows = [{"content": {"text": f"Text {i}.", "by": {"name": f"N{i}"}}, "content.id": str(i)} for i in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"text": "content.text", "id": "content.id", "author": "content.by.name"}
    for kind in ("parquet", "jsonl"):
        source = {"kind": kind, "name": "n", "url": f"rows.{kind}", "split": "train", "columns": columns}
        documents, *_ = ingest(BOOKS, source, out=kind)
        assert (documents["n/1"]["text"], documents["n/1"]["author"]) == ("Text 1.", "N1")
        wrong = {**source, "columns": {"text": "content.txt"}}
        with pytest.raises(StageError, match=r"columns = 'content\.txt': no "):
            ingest(BOOKS, wrong, out=f"{kind}-wrong")


def test_a_shard_may_lack_what_is_optional(ingest: Any, books: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "text": ["One."], "title": ["T"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["Two."]}), tmp_path / "b.parquet")
    source = {"kind": "parquet", "name": "p", "url": "?.parquet", "split": "train"}
    documents, *_ = ingest(BOOKS, {**source, "columns": {"title": "title", "id": "id"}})
    assert documents["p/a"]["title"] == "T" and documents["p/b.parquet:0000000"]["title"] is None
    with pytest.raises(StageError, match=r"columns = 'year': no file of source 'p' has such a column"):
        ingest(BOOKS, {**source, "columns": {"year": "year"}}, out="year")
    pq.write_table(pa.table({"body": ["Three."]}), tmp_path / "c.parquet")
    with pytest.raises(StageError, match=r"c\.parquet: columns = 'text': no such column \(allowed: body\)"):
        ingest(BOOKS, source, out="text")
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]), tmp_path / "c.parquet")
    with pytest.raises(StageError, match=r"c\.parquet: columns = 'text': several columns have this name"):
        ingest(BOOKS, source, out="twice")


def test_a_line_of_json_that_is_no_object_is_called_so(ingest: Any, books: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('[{"text": "One."}]\n"two"\n{"text": "Three."}\n')
    _, problems, *_ = ingest(BOOKS, {"kind": "jsonl", "name": "j", "url": "t.jsonl", "split": "train"})
    assert [row["detail"] for row in problems] == [
        f"line {line} is JSON, but no object: JSON Lines has one a line" for line in (1, 2)
    ]


def test_deep_json_costs_its_line_only(ingest: Any, books: Path, tmp_path: Path) -> None:
    def row(name: str, depth: int) -> str:
        return json.dumps({"id": name, "text": f"Text of {name}."})[:-1] + ', "m": ' + "[" * depth + "]" * depth + "}"

    brackets = json.dumps({"id": "brackets", "text": "[" * 5000})
    (tmp_path / "t.jsonl").write_text("\n".join([row("deep", 100_000), row("flat", 300), row("less", 900), brackets]))
    source = {"kind": "jsonl", "name": "j", "url": "t.jsonl", "split": "train", "columns": {"id": "id"}}
    documents, problems, *_ = ingest(BOOKS, source)
    assert {"j/flat", "j/brackets"} == {name for name in documents if name.startswith("j/")}
    assert [(p["name"], p["problem"]) for p in problems] == [
        ("j/t.jsonl:0000000", "undecodable"),
        ("j/t.jsonl:0000002", "undecodable"),
    ]


def test_other_encodings_are_read_where_they_are_named(ingest: Any, books: Path, tmp_path: Path) -> None:
    text = "Ein Café in München, naïve façade. " * 40
    for encoding in ("latin-1", "utf-8", "utf-16", "utf-32", "utf-8-sig"):
        (tmp_path / f"{encoding}.txt").write_bytes(text.encode(encoding))
    line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
    (tmp_path / "wide.jsonl").write_bytes((line * 3).encode("utf-16"))
    (tmp_path / "latin.jsonl").write_bytes((line * 3).encode("latin-1"))
    source = {"kind": "text", "name": "t", "url": "*.txt", "split": "train"}
    lines = {"kind": "jsonl", "name": "j", "url": "*.jsonl", "split": "train"}
    _, problems, *_ = ingest(BOOKS, source, lines)
    assert {p["name"] for p in problems if p["name"].startswith("t/")} == {
        "t/latin-1.txt",
        "t/utf-16.txt",
        "t/utf-32.txt",
    }
    both = ["utf-8", "latin-1"]
    documents, problems, *_ = ingest(BOOKS, {**source, "encoding": both}, {**lines, "encoding": both}, out="read")
    assert not problems
    assert {row["text"] for name, row in documents.items() if name[0] in "tj"} == {text}
    assert len(documents) == 6 + 5 + 6
    with pytest.raises(ValueError, match=r"encoding = 'klingon': no encoding of text"):
        ingest(BOOKS, {**source, "encoding": "klingon"}, out="none")
    with pytest.raises(ValueError, match=r"encoding = 'base64'"):
        ingest(BOOKS, {**source, "encoding": "base64"}, out="none")


def forbidden(scandir: Callable[..., Any], name: str) -> Callable[..., Any]:
    """``os.scandir`` or ``os.listdir`` for one who may not look into folders of that name."""

    def refuse(folder: str | int) -> Any:
        if isinstance(folder, str) and os.path.basename(folder) == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return scandir(folder)

    return refuse


def test_links_are_followed_once_and_not_in_circles(
    ingest: Any, books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train/one.txt", "elsewhere/two.txt", "elsewhere/deep/three.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for link, target in {"more": "../elsewhere", "again": "../elsewhere/deep", "loop": ".", "up": ".."}.items():
        (tmp_path / "train" / link).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to("../train")
    source = {"kind": "text", "name": "t", "url": "train/**/*.txt", "split": "train"}
    documents, *_ = ingest(BOOKS, source)
    assert sorted(row["text"] for name, row in documents.items() if name.startswith("t/")) == [
        "elsewhere/deep/three.txt",
        "elsewhere/two.txt",
        "train/one.txt",
    ]
    monkeypatch.setattr(os, "scandir", forbidden(os.scandir, "more"))
    with pytest.raises(StageError, match=r"folder = '.*more': cannot be read: Permission denied"):
        ingest(BOOKS, source, out="forbidden")
    monkeypatch.setattr(os, "listdir", forbidden(os.listdir, "more"))
    with pytest.raises(StageError, match=r"folder = '.*more': cannot be read: Permission denied"):
        ingest(BOOKS, {**source, "url": "train/*/*.txt"}, out="forbidden")
    monkeypatch.undo()
    (tmp_path / "train" / "gone.txt").symlink_to("nowhere.txt")
    with pytest.raises(StageError, match=r"gone\.txt': a link that leads nowhere"):
        ingest(BOOKS, source, out="gone")


def test_a_byte_order_mark_counts_more_than_the_encoding_that_is_named(
    ingest: Any, books: Path, tmp_path: Path
) -> None:
    for encoding in ("utf-8-sig", "utf-16", "latin-1"):
        (tmp_path / f"{encoding}.txt").write_bytes("Ein Café für Übermut.".encode(encoding))
    rows = [json.dumps({"text": f"{i} Café"}, ensure_ascii=False) for i in range(3)]
    (tmp_path / "rows.jsonl").write_bytes("\n".join(rows).encode("utf-8-sig"))
    named = {"split": "train", "encoding": "latin-1"}
    texts = {"kind": "text", "name": "t", "url": "*.txt", **named}
    documents, problems, *_ = ingest(BOOKS, texts, {"kind": "jsonl", "name": "j", "url": "rows.jsonl", **named})
    assert {row["text"] for row in documents.values() if row["source"] == "t"} == {"Ein Café für Übermut."}
    assert [row["text"] for row in documents.values() if row["source"] == "j"] == ["0 Café", "1 Café", "2 Café"]
    assert not problems


def test_a_text_that_is_not_decoded_says_what_would_read_it(ingest: Any, books: Path, tmp_path: Path) -> None:
    (tmp_path / "wide.txt").write_bytes("wide".encode("utf-16"))
    (tmp_path / "none.txt").write_bytes("Übermut".encode("utf-16-be"))
    source = {"kind": "text", "name": "t", "url": "*.txt", "split": "train"}
    _, problems, *_ = ingest(BOOKS, source, out="plain")
    said = {row["name"]: row["detail"] for row in problems}
    assert "the source's encoding: utf-16 would read it" in said["t/wide.txt"]
    _, problems, *_ = ingest(BOOKS, {**source, "encoding": "utf-16"}, out="named")
    assert "no byte-order mark, name utf-16-le or utf-16-be" in {r["name"]: r["detail"] for r in problems}["t/none.txt"]


def test_a_hub_data_set_in_a_local_folder(ingest: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split, ids in {"train": (1, 2), "validation": (3,), "test": (4,)}.items():
        rows = [
            {
                "short_book_title": f"Title {i}",
                "publication_date": 1800 + i,
                "url": f"http://www.gutenberg.org/ebooks/{i}",
                "text": f"Book {i}.",
            }
            for i in ids
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hub" / "data" / f"{split}-00000.parquet")
    source = {
        "kind": "hub",
        "name": "pg19",
        "path": "hub",
        "columns": {"id": "url", "id_pattern": r"(\d+)/?$", "title": "short_book_title", "year": "publication_date"},
    }
    documents, *_ = ingest(source)
    assert {name: row["split"] for name, row in documents.items()} == {
        "pg19/1": "train",
        "pg19/2": "train",
        "pg19/3": "validation",
        "pg19/4": "test",
    }
    assert (documents["pg19/4"]["title"], documents["pg19/4"]["year"]) == ("Title 4", 1804)
    with pytest.raises(StageError, match="remove revision"):
        ingest({**source, "revision": "0" * 40}, out="out2")
    with pytest.raises(StageError, match=r"sources\.0\.revision = None"):
        ingest({**source, "path": "owner/name"}, out="out3")


def test_manual_pages_read_documentation_without_running_it() -> None:
    source = '''
"""Tools for knots."""
import nonexistent_module
raise SystemExit
if True:
    def tie(rope, *, twice: bool = False) -> int:
        """Tie a knot.

        Twice if asked.
        """
def bare(): pass
class Knot(Base):
    """A knot."""
    def undo(self):
        """Open it."""
'''
    ((name, text),) = manual_pages("ropes/knots/__init__.py", source)
    assert name == "ropes.knots"
    for line in (
        "Tools for knots.",
        "def tie(rope, *, twice: bool=False) -> int",
        "    Twice if asked.",
        "class Knot(Base)",
        "    def undo(self)",
        "        Open it.",
    ):
        assert line in text.splitlines()
    assert "bare" not in text
    assert list(manual_pages("x.py", "x = 1")) == []


def test_the_manuals_of_python_make_a_corpus_of_both_sides(ingest: Any) -> None:
    documents, *_ = ingest({"kind": "python-docs", "name": "manuals", "packages": ["packaging"]})
    assert {"manuals/stdlib.argparse", "manuals/topics.typesseq", "manuals/packaging.version"} <= set(documents)
    splits = [row["split"] for row in documents.values()]
    assert splits.count("train") > 100 and splits.count("validation") > 3 and splits.count("test") > 3
    assert min(len(row["text"].encode()) for row in documents.values()) >= 1500
    with pytest.raises(StageError, match=r"sources\.0\.packages = 'no_such_package'"):
        ingest({"kind": "python-docs", "name": "m", "packages": ["no_such_package"]}, out="out2")


def test_workers_write_the_same_bytes_as_one_process(
    ingest: Any, books: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop, then Ray tasks of one file each."""
    (books / "train" / "12.txt").write_bytes(b"\xff")
    monkeypatch.setattr(ingesting, "GROUP_BYTES", 1)
    written = []
    for out, worth in (("a", 2**60), ("b", 0)):
        monkeypatch.setattr(ingesting, "WORTH_TASKS", worth)
        *_, output = ingest(BOOKS, out=out)
        written.append({p.relative_to(output): p.read_bytes() for p in output.rglob("*") if p.is_file()})
    assert written[0] == written[1] and len(written[0]) == 5 + 2
