"""LaTeX sources are cut into papers, each on one side, and nothing of a folder passes in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.data.corpus import ingest as ingesting
from stages.data.corpus.config import IngestConfig
from stages.data.corpus.latex import cut, paper_folders, together
from stages.data.corpus.pin import pin
from stages.data.corpus.stage import STAGE
from stages.stage import StageError
from tests.support import LocalContext, documents_of

HALF = {"validation": 0.25, "test": 0.25}


def paper(number: int, body: str = "Let $x$ be.") -> str:
    return f"\\documentclass{{article}}\n\\begin{{document}}\nPaper {number}. {body}\n\\end{{document}}\n"


@pytest.fixture
def ingest(tmp_path: Path) -> Callable[..., tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]]:
    for split, number in (("train", 1), ("validation", 2), ("test", 3)):
        (tmp_path / "books" / split).mkdir(parents=True)
        (tmp_path / "books" / split / f"{number}.txt").write_text(f"Book {number}.\n")

    def run(*sources: dict[str, Any], out: str = "out") -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
        books = {"kind": "pg19", "name": "books", "url": "books"}
        config = pin(IngestConfig.model_validate({"sources": [books, *sources]}), tmp_path)
        (tmp_path / out).mkdir()
        STAGE.run(config, {}, tmp_path / out, LocalContext(str(tmp_path / "work" / out)))
        documents = {row["doc_id"]: row for row in documents_of(tmp_path / out / "documents")}
        problems = pq.read_table(tmp_path / out / "problems.parquet").to_pylist()
        return {name: row for name, row in documents.items() if not name.startswith("books/")}, problems

    return run


def test_a_folder_is_one_paper_put_together_from_its_files(ingest: Any, tmp_path: Path) -> None:
    folder = tmp_path / "arxiv" / "2101.00001"
    (folder / "sections").mkdir(parents=True)
    (folder / "main.tex").write_text(
        "\\documentclass{article}\n\\begin{document}\n% \\input{commented}\nA \\include{sections/one} B\n"
        "\\includegraphics{plot} \\input sections/two\n\\input{absent}\n\\end{document}\n"
    )
    (folder / "sections" / "one.tex").write_text("one \\input{sections/inner.tex}")
    (folder / "sections" / "inner.tex").write_text("inner \\input{sections/one}")
    (folder / "sections" / "two.tex").write_text("two")
    (folder / "commented.tex").write_text("an old version")
    (tmp_path / "arxiv" / "alone.tex").write_text(paper(7))
    documents, problems = ingest({"kind": "text", "name": "math", "url": "arxiv", "papers": True, "split": HALF})
    assert set(documents) == {"math/2101.00001", "math/alone.tex"}
    text = documents["math/2101.00001"]["text"]
    assert "A one inner \\input{sections/one} B\n\\includegraphics{plot} two\n\\input{absent}" in text
    assert "old version" not in text and "% \\input{commented}" in text
    assert [(row["name"], row["problem"]) for row in problems] == [("math/2101.00001/commented.tex", "unused")]


def test_two_documents_of_a_folder_are_two_papers_on_one_side(ingest: Any, tmp_path: Path) -> None:
    for month in range(12):
        folder = tmp_path / "arxiv" / "sub" / f"21{month:02}.1"
        folder.mkdir(parents=True)
        for name in ("a", "b"):
            (folder / f"{name}.tex").write_text(paper(month, name))
    documents, _ = ingest({"kind": "text", "name": "math", "url": "arxiv", "papers": True, "split": HALF})
    assert len(documents) == 24 and "math/sub/2100.1/a.tex" in documents
    sides = [{row["split"] for name, row in documents.items() if f"/21{month:02}.1/" in name} for month in range(12)]
    assert all(len(side) == 1 for side in sides) and len(set.union(*sides)) > 1


def test_chapters_of_a_book_are_documents_each(tmp_path: Path) -> None:
    found = together("hott", {"hott/basics.tex": b"\\chapter{Basics}", "hott/logic.tex": b"\\chapter{Logic}"})
    assert set(found.texts) == {"hott/basics.tex", "hott/logic.tex"} and not found.unused


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "text"])
def test_texts_of_several_papers_are_cut_and_nothing_is_lost(ingest: Any, tmp_path: Path, kind: str) -> None:
    rows = [{"text": "".join(paper(10 * row + n) for n in range(8)), "id": f"lot{row}"} for row in range(3)]
    source = {"kind": kind, "name": "math", "papers": True, "split": HALF}
    if kind == "text":
        (tmp_path / "lots").mkdir()
        for row in rows:
            (tmp_path / "lots" / f"{row['id']}.tex").write_text(row["text"])
        source |= {"url": "lots/*.tex"}
    else:
        source |= {"url": f"lots.{kind}", "columns": {"id": "id"}}
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / "lots.parquet")
        else:
            (tmp_path / "lots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents, problems = ingest(source)
    assert len(documents) == 24 and not problems
    first = "math/lot1" + (".tex" if kind == "text" else "")
    assert documents[first]["text"] == paper(10) and documents[f"{first}/4"]["text"] == paper(13)
    assert len({row["split"] for row in documents.values()}) == 3  # held out by paper, not by row
    whole, _ = ingest(source | {"papers": False}, out="whole")
    assert len(whole) == 3


def test_a_paper_is_cut_only_behind_the_end_of_another() -> None:
    odd = (
        "% \\documentclass{old}\n\\ifx\\a\\b\n\\documentclass{a}\n\\else\n\\documentclass{b}\n\\fi\n"
        + paper(1).split("\n", 1)[1]
    )
    assert cut(odd.encode()) == [odd.encode()]
    assert cut((odd + paper(2)).encode()) == [odd.encode(), paper(2).encode()]
    assert cut(b"no paper at all") == [b"no paper at all"]


def test_a_group_of_files_never_ends_within_a_folder(ingest: Any, tmp_path: Path, monkeypatch: Any) -> None:
    for number in range(8):
        folder = tmp_path / "arxiv" / f"p{number}"
        folder.mkdir(parents=True)
        (folder / "a.tex").write_text(paper(number, "\\input{b}"))
        (folder / "b.tex").write_text(f"inside {number}")
    source = {"kind": "text", "name": "math", "url": "arxiv", "papers": True, "split": HALF}
    expected = ingest(source)
    monkeypatch.setattr(ingesting, "GROUP_BYTES", 1)
    assert ingest(source, out="small") == expected
    assert all(f"inside {n}" in expected[0][f"math/p{n}"]["text"] for n in range(8))


def test_folders_are_the_topmost_that_hold_files() -> None:
    names = ["2101/2101.1/main.tex", "2101/2101.1/sec/a.tex", "loose.tex", "x/y.tex", "x/z/w.tex"]
    assert list(paper_folders(names).values()) == ["2101/2101.1", "2101/2101.1", "", "x", "x"]


def test_other_keys_stay() -> None:
    plain = {"kind": "text", "name": "math", "url": "x", "split": HALF}
    texts = [{"sources": [source]} for source in (plain, plain | {"papers": False}, plain | {"papers": True})]
    fields = [json.dumps(IngestConfig.model_validate(text).key_fields()) for text in texts]
    assert fields[0] == fields[1] and "papers" not in fields[0] and fields[2] != fields[0]


def test_a_folder_without_latex_is_an_error(ingest: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match=r"corpus\.sources\.1\.url.*nothing matches|nothing matches.*sources\.1\.url"):
        ingest({"kind": "text", "name": "math", "url": "empty", "papers": True, "split": HALF})
