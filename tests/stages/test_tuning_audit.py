"""Rows that models are tuned on and that hold text of what is asked: found, left out, counted; and others are not."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.pinned import digest_of
from stages.data.summaries import digest
from stages.data.taskaudit.config import TaskSource
from stages.data.tasks.config import PromptFile
from stages.data.tokens.load import load_tokenizer
from stages.stage import StageError
from stages.training.align.config import ChatFormat
from stages.training.align.examples import read_examples
from stages.training.finetune.config import SummaryPairs
from stages.training.finetune.pairs import read_pairs
from stages.training.tuning.data import LEFT_OUT, rows_of
from stages.training.tuningaudit.config import TuningAuditConfig
from stages.training.tuningaudit.match import left_out
from stages.training.tuningaudit.prompts import AskedPrompts
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


NEEDLE = "One of the special magic numbers for {} is: {}."
ASKED = "What is the special magic number for {} mentioned in the provided text? The special magic number is"


def prompt_file(path: Path, rows: list[tuple[str, list[str]]]) -> dict[str, PromptFile]:
    jsonl(path, [{"input": text, "outputs": outputs} for text, outputs in rows])
    return {"mine": PromptFile(path=str(path), pin=digest_of(path.read_bytes()))}


def found_prompts(folder: Path, inputs, files: dict[str, PromptFile], rows: list[str]) -> dict[int, list[str]]:
    """Row -> prompts that it answers; all of such rows, and no others, are left out."""
    path = jsonl(folder / "rows.jsonl", [{"prompt": row, "chosen": "Yes.", "rejected": "No."} for row in rows])
    audit = audited(folder, inputs, layout="turns", path=str(path), pin=digest_of(path.read_bytes()), prompts=files)
    found: dict[int, list[str]] = {}
    for row in pq.read_table(audit.path("prompts.parquet")).to_pylist():
        found.setdefault(row["row"], []).append(row["item"])
        assert len(row["words"].split()) >= 7 and row["words"] in rows[row["row"] - 1]
    assert left_out(audit) == set(found)
    return found


def test_rows_that_answer_a_prompt_of_a_file_are_left_out_and_others_like_it_are_not(inputs, tmp_path):
    """Ten needles in one haystack: the needle counts in whatever text it lies, haystack and question alone do not."""
    haystack = [prose(40, 50 + i) for i in range(20)]
    keys = [("amber-harbour", 1000003), ("quiet-orchard", 2000003), *((f"key-{i}", 3000003 + i) for i in range(8))]

    def prompt(key: str, value: object, at: int = 10) -> str:
        return " ".join([*haystack[:at], NEEDLE.format(key, value), *haystack[at:], ASKED.format(key)])

    files = prompt_file(tmp_path / "mine.jsonl", [(prompt(key, value), [str(value)]) for key, value in keys])
    rows = [
        prompt(*keys[0]),  # itself
        f"{prose(60, 90)} {NEEDLE.format(*keys[1])} {prose(60, 91)}",  # its needle in other text
        prompt(keys[1][0], 7654321),  # another number for the same key, in the same haystack
        prompt("green-lantern", 1000003, at=3),  # the number of another key
        f"{' '.join(haystack)} {ASKED.format(keys[0][0])}",  # the question without its answer
        prose(200, 92),
        NEEDLE.format("amber-harbour", "1000003,").upper(),  # other case, other marks
    ]
    assert found_prompts(tmp_path, inputs, files, rows) == {
        1: ["mine/file/0"],
        2: ["mine/file/1"],
        7: ["mine/file/0"],
    }


def test_where_no_output_stands_in_the_prompt_the_question_counts_and_a_template_does_not(inputs, tmp_path):
    template = "Read the question and give the letter of the answer that is right, no other words at all."
    questions = [
        "Which of the rivers near the old town carries the most barges in a dry summer",
        "Who built the bridge",
    ]
    questions += [f"How many of the {i} walls that the founder of the town ordered still stand today" for i in range(4)]
    files = prompt_file(
        tmp_path / "mine.jsonl", [(f"{template} {one}? (A) one (B) two. Answer:", ["Z"]) for one in questions]
    )
    rows = [f"{template} {prose(30, 95)}", f"{prose(9, 96)} {questions[0]}?", f"{questions[4]}: two.", prose(50, 97)]
    assert found_prompts(tmp_path, inputs, files, rows) == {2: ["mine/file/0"], 3: ["mine/file/4"]}


def test_prompts_that_have_too_few_words_of_their_own_are_named(inputs, tmp_path):
    files = prompt_file(tmp_path / "mine.jsonl", [("2 + 2 =", ["4"]), (f"{prose(40, 98)} river 31", ["31"])])
    prompts = AskedPrompts.of(files, DecontaminateConfig())
    assert prompts.unseen == ["mine/file/0"] and prompts.items == ["mine/file/1"]


def test_prompts_count_in_the_key_where_there_are_some():
    plain = TuningAuditConfig(layout="turns", path="a", pin=digest_of(b"x"))
    one, other = (
        plain.model_copy(update={"prompts": {"mine": PromptFile(path=path, pin=digest_of(b"y"))}}) for path in "pq"
    )
    assert "prompts" not in plain.key_fields() and one.key_fields() == other.key_fields() != plain.key_fields()


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
