"""Texts with reference summaries: every layout, several references, whole books in files, what is wrong with a row."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from stages.data.summaries import digest, items, read
from stages.data.taskaudit.config import TaskAuditConfig, TaskSource
from stages.data.taskaudit.file import items as audited
from stages.data.taskaudit.pin import task_of_pairs
from stages.evidence.summarize.config import Pairs, SummarizeConfig, pin_pairs
from stages.evidence.summarize.items import from_pairs
from stages.stage import StageError

BOOKSUM = [  # the columns of BookSum's Parquet, two summaries of one chapter by different hands
    {
        "bid": 27681,
        "is_aggregate": True,
        "source": source,
        "chapter_path": "all/chapters_1.txt",
        "book_id": "The Mohicans.chapter 1",
        "summary_id": "chapter 1",
        "content": None,
        "chapter": "It was a feature.",
        "summary": json.dumps({"name": "Chapter 1", "summary": ["First.", "Second."]}),
        "summary_text": text,
    }
    for source, text in (("cliffnotes", "War."), ("novelguide", "The war."))
]


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_booksums_parquet_gives_one_item_with_both_references(tmp_path):
    path = tmp_path / "booksum.parquet"
    pd.DataFrame(BOOKSUM).to_parquet(path)
    (item,) = items(read(path, tmp_path, "pairs"))
    assert (item.book, item.level, item.text) == ("27681", "chapter", "It was a feature.")
    assert item.references == ("War.", "The war.") and item.rows == (1, 2)


def test_summaries_in_booksums_json_are_read(tmp_path):
    row = {name: value for name, value in BOOKSUM[0].items() if name != "summary_text"}
    (item,) = items(read(jsonl(tmp_path / "a.jsonl", [row]), tmp_path, "pairs"))
    assert item.references == ("First.\nSecond.",)


def test_paragraphs_of_a_text_are_joined(tmp_path):
    rows = [{"text": [], "chapter": ["One.", "Two."], "summary": ["A.", "B."]}]
    (pair,) = read(jsonl(tmp_path / "pairs.jsonl", rows), tmp_path, "pairs")
    assert (pair.text, pair.summary) == ("One.\nTwo.", "A.\nB.")


def test_a_folder_holds_both_levels_and_books_are_files(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "11.txt").write_text("A whole book.")
    jsonl(tmp_path / "pairs" / "books.jsonl", [{"book_id": "11", "book_file": "11.txt", "summary": "A book."}])
    pd.DataFrame(BOOKSUM).to_parquet(tmp_path / "pairs" / "chapters.parquet")
    config = SummarizeConfig(
        tasks=("condense",), prompt_tokens=9, new_tokens=9, pairs=Pairs(path="pairs", texts="texts"), documents=5
    )
    pinned = pin_pairs(config, tmp_path)
    assert pinned.pairs is not None
    examples = from_pairs(pinned.pairs, pinned)
    assert [(e.level, e.book, e.text) for e in examples] == [
        ("book", "11", "A whole book."),
        ("chapter", "27681", "It was a feature."),
    ]
    (tmp_path / "texts" / "11.txt").write_text("Another book.")
    with pytest.raises(StageError, match=r"summarize\.pairs\.pin.*now has the digest"):
        pin_pairs(pinned, tmp_path)
    (tmp_path / "texts" / "11.txt").unlink()
    with pytest.raises(StageError, match=r"summarize\.pairs\.texts.*no such text"):
        pin_pairs(config, tmp_path)


def test_books_take_turns_so_that_a_short_sample_holds_many(tmp_path):
    rows = [{"book_id": b, "section": f"{n}", "text": f"{b}{n}", "summary": "s"} for b in "ab" for n in range(3)]
    made = items(read(jsonl(tmp_path / "a.jsonl", rows), tmp_path, "pairs"))
    assert [item.name for item in made] == ["a/0", "b/0", "a/1", "b/1", "a/2", "b/2"]


def test_splits_and_their_absence(tmp_path):
    rows = [{"id": "x", "text": "t", "summary": "s", "split": "train"}, {"id": "y", "text": "u", "summary": "s"}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    assert [pair.book for pair in read(path, tmp_path, "pairs", ("train",))] == ["x"]
    with pytest.raises(StageError, match=r"no pair of the splits \['test'\]"):
        read(path, tmp_path, "pairs", ("test",))


@pytest.mark.parametrize("row", [{"text": "only"}, {"summary": "only"}, {"text": "  ", "summary": "s"}, {}])
def test_one_sided_and_empty_pairs_are_one_error(tmp_path, row):
    with pytest.raises(StageError, match=r"pairs\.path.*line 2 lacks text or summary"):
        read(jsonl(tmp_path / "a.jsonl", [{"text": "t", "summary": "s"}, row]), tmp_path, "pairs")


def test_a_line_ends_where_the_file_says_not_within_a_text(tmp_path):
    """JSON writes U+2028 and U+0085 as they are; str.splitlines would cut there."""
    text = "one\u2028two\x85three"
    row = {"bid": 1, "chapter": text, "summary_text": "said"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (pair,) = read(tmp_path / "pairs.jsonl", tmp_path, "pairs", None)
    assert pair.text == text
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write("\n[1]\n")
    with pytest.raises(StageError, match=r"pairs.jsonl cannot be read: line 3: no object"):
        list(read(tmp_path / "pairs.jsonl", tmp_path, "pairs", None))


def test_what_is_no_table_and_an_empty_folder_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("{")
    with pytest.raises(StageError, match=r"a\.jsonl cannot be read"):
        read(tmp_path / "a.jsonl", tmp_path, "pairs")
    (tmp_path / "b.parquet").write_bytes(b"PAR0")
    with pytest.raises(StageError, match=r"b\.parquet cannot be read"):
        read(tmp_path / "b.parquet", tmp_path, "pairs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match="the folder holds no file of pairs"):
        read(tmp_path / "empty", tmp_path, "pairs")


def test_the_audit_of_tasks_reads_every_layout_and_old_keys_stay(tmp_path):
    path = tmp_path / "booksum.parquet"
    pd.DataFrame(BOOKSUM).to_parquet(path)
    pairs = Pairs(path=str(path), pin=digest(path, tmp_path, "pairs"))
    (source,) = task_of_pairs(pairs, ())
    assert [(i.id, i.text, i.summary) for i in audited(source)] == [
        ("27681", "It was a feature.", "War."),
        ("27681", "It was a feature.", "The war."),
    ]
    plain = jsonl(tmp_path / "plain.jsonl", [{"id": "1", "text": "t", "summary": "s"}])
    (source,) = task_of_pairs(Pairs(path=str(plain), pin=digest(plain, tmp_path, "pairs")), ())
    fields = TaskAuditConfig(sources=(source,)).key_fields()["sources"][0]
    assert set(fields) == {"name", "pin", "id", "title", "text", "summary"}, "what keys were made of before"
    assert TaskSource(name="a", path="b").layout == "columns"


def test_the_real_pairs_are_read(shared_data: Path):
    books = items(read(shared_data / "summaries" / "book_level.jsonl", shared_data, "pairs"))
    assert len(books) == 28 and {item.level for item in books} == {"book"}
    assert all(len(item.text.split()) > 20_000 for item in books)
    chapters = items(read(shared_data / "summaries" / "chapter_level.jsonl", shared_data, "pairs"))
    assert len(chapters) == 85 and {item.book for item in chapters} == {"829", "6130", "3160"}
    assert [item.book for item in chapters[:3]] == ["829", "6130", "3160"], "books in turn"
