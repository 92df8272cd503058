"""Rows that models are tuned on and that hold text of what is asked: found, left out, counted; and others are not."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages.data.pinned import digest_of
from stages.data.summaries import digest
from stages.data.taskaudit.config import TaskSource
from stages.data.tokens.load import load_tokenizer
from stages.stage import StageError
from stages.training.align.config import ChatFormat
from stages.training.align.examples import read_examples
from stages.training.finetune.config import SummaryPairs
from stages.training.finetune.pairs import read_pairs
from stages.training.tuning.data import LEFT_OUT, rows_of
from stages.training.tuningaudit.config import TuningAuditConfig
from stages.training.tuningaudit.match import left_out
from stages.training.tuningaudit.stage import STAGE
from tests.stages.evaluation_inputs import build, prose
from tests.support import LocalArtifact, LocalContext


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return build(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def held_out(inputs) -> str:
    table = pq.read_table(inputs["documents"].path("documents")).to_pylist()
    return next(row["text"] for row in table if row["doc_id"] == "test0")


def jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def audited(folder: Path, inputs, **settings) -> LocalArtifact:
    (folder / "audit").mkdir()
    summary = STAGE.run(TuningAuditConfig(**settings), inputs, folder / "audit", LocalContext(str(folder / "work")))
    assert summary.metrics["rows_left_out"] == len(left_out(LocalArtifact(folder / "audit")))
    assert all((folder / "audit" / name).is_file() for name in (*summary.tables.values(), *summary.figures))
    return LocalArtifact(folder / "audit")


def test_conversations_with_a_held_out_document_are_left_out_and_counted(inputs, held_out, tmp_path):
    """A stretch of 60 words of one is enough, in a question or in a rejected answer; one of 12 is not."""
    words = held_out.split()
    clean = {"prompt": prose(80, 7), "chosen": "Yes.", "rejected": "No."}
    rows = [
        clean,
        clean | {"prompt": f"{prose(30, 8)} {' '.join(words[20:80])} {prose(30, 9)}"},
        clean | {"rejected": f"{' '.join(words[40:110])}"},
        clean | {"chosen": " ".join(words[30:42])},
        {"messages": [{"role": "user", "content": " ".join(words[10:90])}, {"role": "assistant", "content": "Yes."}]},
    ]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    audit = audited(tmp_path, inputs, layout="turns", path=str(path), pin=digest_of(path.read_bytes()))
    assert left_out(audit) == {2, 3, 5}
    codec = load_tokenizer(inputs["tokenizer"])
    read = read_examples(rows_of(str(path), None, "x"), "dpo", codec, ChatFormat(), 4096, "x", left_out(audit))
    assert len(read.examples) == 2 and read.skipped == {LEFT_OUT: 3}


def test_summaries_that_are_asked_for_are_not_trained_on(inputs, tmp_path):
    """Neither a text that is to be summarized nor its reference, however short; other chapters of the book are."""
    chapters = [prose(200, 20 + i) for i in range(4)]
    asked = [{"book_id": "b", "text": chapters[0], "summary": "A wall that nobody went along, and a bridge in ruins."}]
    trained = [
        {"book_id": "b", "text": chapters[1], "summary": "The old town."},
        {"book_id": "b", "text": chapters[0], "summary": "Otherwise said."},  # the text
        {"book_id": "b", "text": chapters[2], "summary": asked[0]["summary"]},  # the reference
        {"book_id": "b", "text": chapters[0], "summary": "Held out.", "split": "test"},
        {"book_id": "b", "text": chapters[3], "summary": "A river."},
    ]
    path, of_tasks = jsonl(tmp_path / "pairs.jsonl", trained), jsonl(tmp_path / "asked.jsonl", asked)
    tasks = (
        TaskSource(
            name="summarize",
            path=str(of_tasks),
            pin=digest(of_tasks, tmp_path, "x"),
            text="text",
            summary="summary",
            layout="pairs",
        ),
    )
    pin = digest(path, tmp_path, "x")
    audit = audited(tmp_path, inputs, layout="pairs", path=str(path), splits=("train",), pin=pin, tasks=tasks)
    assert left_out(audit) == {2, 3}
    pairs = SummaryPairs(path=str(path), max_tokens=4096, summary_tokens=200)
    read = read_pairs(pairs, load_tokenizer(inputs["tokenizer"]), left_out(audit))
    assert len(read.examples) == 2 and read.skipped == {LEFT_OUT: 2, "of the split test": 1}
    with pytest.raises(StageError, match=LEFT_OUT):
        read_pairs(pairs.model_copy(update={"splits": ("test",)}), load_tokenizer(inputs["tokenizer"]), {4})


def test_another_file_than_the_pinned_one_is_not_audited(inputs, tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(StageError, match=r"align\.data\.pin.*changed after the plan"):
        audited(tmp_path, inputs, layout="turns", path=str(path), pin=digest_of(b"other"))


def test_where_the_files_lie_does_not_move_the_key():
    one, other = (
        TuningAuditConfig(layout="pairs", path=path, texts=texts, splits=("train",), pin=digest_of(b"x"))
        for path, texts in (("/a/pairs", None), ("/b/pairs", "/c"))
    )
    assert one.key_fields() == other.key_fields()
    assert one.key_fields() != one.model_copy(update={"splits": ("test",)}).key_fields()
