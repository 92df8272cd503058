"""The audit as a whole: what is copied goes, what is not stays, and the artifact shows why."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from stages.data.corpus import documents
from stages.data.corpus.config import IngestConfig, Pg19
from stages.data.corpus.documents import DocumentsWriter
from stages.data.corpus.stage import STAGE as INGEST
from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.stage import STAGE
from stages.data.matching import shards
from stages.stage import StageError, Summary
from tests.stages.test_decontaminate_match import prose
from tests.support import LocalArtifact, LocalContext, documents_of


@dataclass
class Audited:
    """What a run of the stage left behind."""

    output: Path
    summary: Summary
    context: LocalContext

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.output / f"{name}.parquet")

    def texts(self) -> dict[str, str]:
        return {row["doc_id"]: row["text"] for row in documents_of(self.output / "documents")}

    def actions(self) -> dict[str, str]:
        table = self.table("decisions")
        return dict(zip(table["doc_id"], table["action"], strict=True))


def write_corpus(folder: Path, texts: dict[str, str]) -> LocalArtifact:
    """An ingest artifact of {id: text}; ids begin with their split."""
    writer = DocumentsWriter(folder / "documents")
    for name, text in sorted(texts.items()):
        digest = hashlib.sha256(text.encode()).hexdigest()
        writer.write(
            {
                "doc_id": name,
                "source": "s",
                "title": name.title(),
                "author": None,
                "year": None,
                "split": name.split("/")[0],
                "text": text,
                "sha256": digest,
            }
        )
    writer.close()
    return LocalArtifact(folder)


@pytest.fixture
def audit(tmp_path: Path) -> Callable[..., Audited]:
    def run(texts: dict[str, str], out: str = "out", **options: Any) -> Audited:
        documents = write_corpus(tmp_path / f"in-{out}", texts)
        (tmp_path / out).mkdir()
        context = LocalContext(str(tmp_path / "work"))
        config = DecontaminateConfig.model_validate({"canaries": {"count": 4}, **options})
        return Audited(tmp_path / out, STAGE.run(config, {"documents": documents}, tmp_path / out, context), context)

    return run


def text_of(tokens: list[str]) -> str:
    """Prose in lines of ten words."""
    return "\n".join(" ".join(tokens[i : i + 10]) for i in range(0, len(tokens), 10)) + "\n"


NOVEL, ESSAY, LETTER = prose(1, 8000), prose(2, 3000), prose(3, 400)


def retyped(tokens: list[str], seed: int = 0) -> list[str]:
    """Another edition: one word in twenty differs, case and punctuation too."""
    chance = random.Random(seed)
    return [f"{w.upper()}," if (r := chance.random()) < 0.1 else "erratum" if r < 0.15 else w for w in tokens]


def corpus() -> dict[str, str]:
    shuffled = [ESSAY[i : i + 150] for i in range(0, 3000, 150)]
    random.Random(0).shuffle(shuffled)
    return {
        "test/essay": text_of(ESSAY),
        "test/letter": text_of(LETTER),
        "validation/novel": text_of(NOVEL),
        "train/anthology": text_of(prose(10, 20_000) + ESSAY + prose(11, 20_000)),
        "train/clean": text_of(prose(12, 5000)),
        "train/clean-copy": text_of(prose(12, 5000)),
        "train/edition": text_of(retyped(NOVEL)),
        "train/quoting": text_of(prose(13, 5000) + NOVEL[100:120] + prose(14, 500)),
        "train/note": text_of(prose(15, 5000) + NOVEL[200:240]),
        "train/passage": text_of(prose(16, 2000) + NOVEL[4000:4200] + prose(17, 2000)),
        "train/shuffled": text_of([word for part in shuffled for word in part]),
        "train/whole": text_of(LETTER),
    }


def test_copies_are_dropped_passages_cut_out_and_the_rest_left_alone(audit: Callable[..., Audited]) -> None:
    before = corpus()
    done = audit(before)
    assert done.actions() == {
        "train/anthology": "drop",
        "train/clean": "keep",
        "train/clean-copy": "drop",
        "train/edition": "drop",
        "train/note": "note",
        "train/passage": "cut",
        "train/quoting": "keep",
        "train/shuffled": "drop",
        "train/whole": "drop",
    }
    after = done.texts()
    untouched = ("train/clean", "train/quoting", "train/note", "test/essay", "test/letter", "validation/novel")
    assert set(after) == {*untouched, "train/passage"}
    assert all(after[name] == before[name] for name in untouched)
    assert after["train/passage"].split() == prose(16, 2000) + prose(17, 2000)

    books = done.table("books").set_index("book_id")
    assert books.loc["test/letter", "coverage"] == 1.0 and books.loc["validation/novel", "coverage"] > 0.9
    assert books["coverage_after"].max() <= 0.005, "40 noted words of 8000"
    assert books.loc["test/letter", "top_document"] == "train/whole"
    assert "exact copy of train/clean" in done.table("decisions").set_index("doc_id").loc["train/clean-copy", "reason"]


def test_the_second_audit_of_an_output_finds_nothing(audit: Callable[..., Audited]) -> None:
    once = audit(corpus())
    twice = audit(once.texts(), out="again")
    assert set(twice.actions().values()) <= {"keep", "note"}
    assert twice.texts() == once.texts()


def test_every_span_can_be_read_in_both_texts(audit: Callable[..., Audited]) -> None:
    before = corpus()
    done = audit(before)
    spans = done.table("spans")
    assert {"train/passage", "train/edition", "train/note"} <= set(spans["doc_id"])
    for row in spans.itertuples():
        own = before[row.doc_id].encode()[row.doc_start : row.doc_end].decode()
        other = before[row.book_id].encode()[row.book_start : row.book_end].decode()
        assert own.startswith(row.doc_text.removesuffix(" …")) and other.startswith(row.book_text.removesuffix(" …"))
        assert own.lower().split()[0].strip(",") == other.split()[0]
    decisions = done.table("decisions")
    assert decisions["bytes_in"].sum() == sum(len(t.encode()) for n, t in before.items() if n.startswith("train"))
    assert decisions["bytes_out"].sum() == sum(len(t.encode()) for n, t in done.texts().items() if "train" in n)


def test_noted_spans_are_cut_where_they_cover_much_of_a_short_document(audit: Callable[..., Audited]) -> None:
    texts = {
        "test/letter": text_of(LETTER),
        "train/a": text_of(prose(20, 3000) + LETTER[:40]),
        "train/b": text_of(prose(21, 3000)),
    }
    done = audit(texts)
    assert done.actions() == {"train/a": "cut", "train/b": "keep"}
    assert "10.0% of the evaluation document" in done.table("decisions").loc[0, "reason"]
    assert done.table("books").loc[0, "coverage_after"] == 0.0
    assert audit(texts, out="lenient", coverage_limit=0.2).actions()["train/a"] == "note"


def test_report_only_changes_nothing_and_says_so(audit: Callable[..., Audited]) -> None:
    done = audit(corpus(), action="report_only")
    assert done.texts() == corpus()
    assert done.actions()["train/whole"] == "drop"
    assert (done.table("books")["coverage_after"] == done.table("books")["coverage"]).all()
    assert any("left as they are" in line for line in done.context.warned)


def test_evaluation_documents_can_be_taken_out_instead(audit: Callable[..., Audited]) -> None:
    texts = {**corpus(), "test/safe": text_of(prose(30, 3000))}
    after = audit(texts, remove_from="evaluation").texts()
    assert {name for name in after if not name.startswith("train")} == {"test/safe"}
    assert {name for name in texts if name.startswith("train")} - set(after) == {"train/clean-copy"}
    with pytest.raises(StageError, match="nothing is left to evaluate on"):
        audit(corpus(), out="none", remove_from="evaluation")


def test_a_corpus_that_is_all_contamination_is_refused(audit: Callable[..., Audited]) -> None:
    with pytest.raises(StageError, match="nothing is left to train on"):
        audit({"test/essay": text_of(ESSAY), "train/copy": text_of(retyped(ESSAY))})


def test_evaluation_documents_that_repeat_one_another_are_named(audit: Callable[..., Audited]) -> None:
    texts = {"test/a": text_of(ESSAY), "validation/b": text_of(retyped(ESSAY)), "train/c": text_of(prose(31, 3000))}
    done = audit(texts)
    (shared,) = json.loads((done.output / "audit.json").read_text())["evaluation_documents_shared"]
    assert (shared["a"], shared["b"], shared["split_a"], shared["split_b"]) == (
        "test/a",
        "validation/b",
        "test",
        "validation",
    )
    assert any("copies of one another: test/a and validation/b" in line for line in done.context.warned)


def test_planted_canaries_are_found_and_quotations_are_not_acted_on(audit: Callable[..., Audited]) -> None:
    done = audit(corpus())
    canaries = done.table("canaries")
    assert len(canaries) == 3 and (canaries["planted"] == 4).all()
    assert canaries["acted"].sum() >= 11, "at most one of twelve may slip through"
    totals = json.loads((done.output / "audit.json").read_text())
    assert totals["quotations"] == {"kind": "quotation", "planted": 4, "found": 0, "acted": 0}
    assert done.summary.metrics["canary_recall"] == canaries["acted"].sum() / 12
    none = audit(corpus(), out="none", canaries={"count": 0})
    assert none.table("canaries")["planted"].sum() == 0 and "canary_recall" not in none.summary.metrics


def test_thresholds_out_of_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="act_words = 20"):
        DecontaminateConfig(act_words=20)


def test_workers_write_the_same_bytes_as_one_process(
    audit: Callable[..., Audited], ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    for out, worth in (("loop", 2**60), ("ray", 0)):
        monkeypatch.setattr(shards, "WORTH_TASKS", worth)
        monkeypatch.setattr(documents, "PART_BYTES", 30_000)
        output = audit(corpus(), out=out).output
        written.append({p.relative_to(output): p.read_bytes() for p in output.rglob("*") if p.is_file()})
    assert written[0] == written[1]
    assert len([path for path in written[0] if path.parent.name == "documents"]) > 3


def test_the_known_overlaps_of_real_books_are_found_and_clean_books_left_alone(
    shared_data: Path, tmp_path: Path
) -> None:
    """Against an independent count of shared 13-grams. Only books that hold evaluation text may be touched."""
    (tmp_path / "ingest").mkdir()
    (tmp_path / "out").mkdir()
    context = LocalContext(str(tmp_path))
    source = Pg19(name="pg19", url=str(shared_data / "pg19"))
    INGEST.run(IngestConfig(sources=(source,)), {}, tmp_path / "ingest", context)
    summary = STAGE.run(
        DecontaminateConfig(), {"documents": LocalArtifact(tmp_path / "ingest")}, tmp_path / "out", context
    )
    pairs = pd.read_parquet(tmp_path / "out" / "pairs.parquet")
    acted = {
        (row.doc_id.removeprefix("pg19/"), row.book_id.removeprefix("pg19/"))
        for row in pairs.itertuples()
        if row.action in ("cut", "drop")
    }
    known = {
        ("3350", "3340"),
        ("6939", "6941"),
        ("6940", "6941"),
        ("8789", "8788"),
        ("8800", "8788"),
        ("1008", "8788"),
        ("2531", "58093"),
        ("2549", "58093"),
    }
    assert known <= acted
    with open(shared_data / "pg19" / "overlap_13gram.csv") as file:
        rows = [row for row in csv.DictReader(file) if (row["split_a"] == "train") != (row["split_b"] == "train")]
    overlaps = {}
    for row in rows:
        train, book = ("a", "b") if row["split_a"] == "train" else ("b", "a")
        overlaps[row[f"id_{train}"], row[f"id_{book}"]] = float(row[f"containment_of_{book}_in_{train}"])
    assert set(overlaps) <= acted
    shares = {
        (p.doc_id.removeprefix("pg19/"), p.book_id.removeprefix("pg19/")): p.book_share for p in pairs.itertuples()
    }
    assert {pair: shares[pair] for pair in overlaps} == pytest.approx(overlaps, abs=0.01)
    extra = acted - set(overlaps)  # 78 words of one volume's last page begin the next volume
    assert extra <= {("3339", "3340")}
    assert summary.metrics["documents_keep"] == 49
    assert summary.metrics["coverage_after_max"] < 0.001
    assert summary.metrics["canary_recall"] >= 0.95 and summary.metrics["quotations_acted"] == 0
