"""The sources and references of evaluation tasks in the training text: the table, the verdict's note, real books."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from stages.data.corpus.config import IngestConfig, Pg19
from stages.data.corpus.stage import STAGE as INGEST
from stages.data.taskaudit.config import TaskAuditConfig, TaskSource
from stages.data.taskaudit.file import items
from stages.data.taskaudit.pin import pin_sources
from stages.data.taskaudit.stage import STAGE
from stages.stage import StageError
from stages.verdict.claims.config import ClaimsConfig
from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.table import CLAIMS, decide
from tests.stages.synthetic import ARMS, TRUNK, Synthetic
from tests.stages.test_decontaminate import ESSAY, LETTER, text_of, write_corpus
from tests.stages.test_decontaminate_match import prose
from tests.support import LocalArtifact, LocalContext


def audited(folder: Path, texts: dict[str, str], *sources: TaskSource) -> pd.DataFrame:
    documents = write_corpus(folder / "in", texts)
    (folder / "out").mkdir()
    config = TaskAuditConfig(sources=pin_sources(sources, folder))
    summary = STAGE.run(config, {"documents": documents}, folder / "out", LocalContext(str(folder / "work")))
    assert all((folder / "out" / name).is_file() for name in [*summary.tables.values(), *summary.figures])
    return pd.read_parquet(folder / "out" / "tasks.parquet").sort_values("item").reset_index(drop=True)


CORPUS = {
    "test/essay": text_of(prose(1, 500)),
    "train/11": text_of(prose(22, 3000)),
    "train/whole": text_of(ESSAY),
    "train/quoting": text_of(prose(33, 3000) + LETTER[:300] + prose(34, 3000)),
}


def test_items_are_found_by_id_by_text_and_by_summary(tmp_path: Path) -> None:
    pd.DataFrame(
        [
            {"book": 11, "text": "another text of this id", "summary": ""},
            {"book": 12, "text": text_of(ESSAY[:1500]), "summary": text_of(LETTER[:200])},
            {"book": 13, "text": text_of(prose(8, 900)), "summary": text_of(LETTER[50:90])},
            {"book": None, "text": text_of(ESSAY[:1500]), "summary": None},
        ]
    ).to_csv(tmp_path / "tasks.csv", index=False)
    source = TaskSource(name="t", path="tasks.csv", id="book", text="text", summary="summary")
    rows = audited(tmp_path, CORPUS, source)
    # pandas writes 11.0 beside an empty cell, as spreadsheets do; the id must still be that of the corpus
    assert list(rows["found"]) == ["id", "text and summary", "summary", "text"]
    assert rows.loc[0, "id_document"] == "train/11"
    assert rows.loc[1, "text_document"] == rows.loc[3, "text_document"] == "train/whole"
    assert rows.loc[1, "summary_document"] == "train/quoting" and rows.loc[1, "summary_coverage"] == 1.0
    assert rows.loc[2, "text_coverage"] == 0.0, "40 words are too short to act on, but they are the whole summary"


def test_ids_alone_need_no_text(tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_text("id,title\n11,Eleven\n99,Elsewhere\n")
    rows = audited(tmp_path, CORPUS, TaskSource(name="t", path="ids.csv", title="title"))
    assert list(rows["found"]) == ["id", "no"] and rows["text_coverage"].isna().all()


def test_a_cell_of_a_table_may_hold_a_book(tmp_path: Path) -> None:
    pd.DataFrame({"id": ["11"], "text": ["It was a word. " * 20_000]}).to_csv(tmp_path / "tasks.csv", index=False)
    (item,) = items(TaskSource(name="t", path=str(tmp_path / "tasks.csv"), text="text"))
    assert len(item.text) == 300_000


def test_a_file_that_changed_after_the_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_text("id\n11\n")
    config = TaskAuditConfig(sources=pin_sources((TaskSource(name="t", path="ids.csv"),), tmp_path))
    (tmp_path / "ids.csv").write_text("id\n12\n")
    with pytest.raises(StageError, match="changed after the plan was made"):
        STAGE.run(config, {"documents": write_corpus(tmp_path / "in", CORPUS)}, tmp_path, LocalContext(str(tmp_path)))


def test_the_place_of_a_file_is_not_part_of_the_key(tmp_path: Path) -> None:
    keys = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ids.csv").write_text("id\n11\n")
        keys.append(TaskAuditConfig(sources=pin_sources((TaskSource(name="t", path="ids.csv"),), tmp_path / name)))
    assert keys[0].sources != keys[1].sources and keys[0].key_fields() == keys[1].key_fields()


def test_the_verdict_on_clean_data_names_the_tasks(tmp_path: Path) -> None:
    study = Synthetic(tmp_path).decontaminate()
    tasks = pd.DataFrame({"task": ["booksum"] * 4, "item": range(4), "found": ["id", "no", "text", "no"]})
    study.add("taskaudit", {"tasks.parquet": tasks}, {})
    evidence = Evidence(study.inputs, arms=ARMS, seeds=study.seeds, trunk=TRUNK, rules=ClaimsConfig())
    found = decide(next(claim for claim in CLAIMS if claim.id == "C8"), evidence)
    assert found.decision == "supported"
    assert "of the 4 items of booksum 2 are in the training text" in found.reason
    (number,) = [n for n in found.numbers if n.name == "contamination.task.booksum"]
    assert (number.estimate, number.n) == (0.5, 4) and number.sources[0].table == "tasks.parquet"


def test_condensations_of_books_stand_in_a_training_volume(shared_data: Path, tmp_path: Path) -> None:
    """The real case: the reference summaries were printed in volumes that are themselves PG-19 training books."""
    (tmp_path / "ingest").mkdir()
    (tmp_path / "out").mkdir()
    context = LocalContext(str(tmp_path / "work"))
    books = Pg19(name="pg19", url=str(shared_data / "pg19"), ids=("10471", "161", "158", "4047", "11"))
    INGEST.run(IngestConfig(sources=(books,)), {}, tmp_path / "ingest", context)
    source = TaskSource(
        name="condensations", path="summaries/book_level.jsonl", id="book_id", title="title", summary="summary"
    )
    config = TaskAuditConfig(sources=pin_sources((source,), shared_data))
    STAGE.run(config, {"documents": LocalArtifact(tmp_path / "ingest")}, tmp_path / "out", context)
    rows = pd.read_parquet(tmp_path / "out" / "tasks.parquet").set_index("id")
    for book in ("161", "158"):
        assert rows.loc[book, "found"] == "id and summary"
        assert rows.loc[book, "summary_document"] == "pg19/10471" and rows.loc[book, "summary_coverage"] > 0.98
    assert rows.loc["11", "summary_document"] == "pg19/11", "abridged in the words of the book"
    assert (rows["found"] == "no").sum() > 10
