"""Deduplication as a stage: repeats go, everything else stays, and one table says what became of each document."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from bench.dedup_accuracy import lines
from pipeline.study.graph import expand
from pipeline.study.load import load
from stages.data.audit import tables as audit_tables
from stages.data.corpus import documents as documents_module
from stages.data.corpus.config import IngestConfig, Pg19
from stages.data.corpus.documents import DocumentsWriter, document_files, write_table
from stages.data.corpus.stage import STAGE as INGEST
from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.stage import STAGE as DECONTAMINATE
from stages.data.dedup import compare as comparing
from stages.data.dedup import run as running
from stages.data.dedup.config import LANGUAGES, DedupConfig
from stages.data.dedup.language import identifier
from stages.data.dedup.stage import STAGE
from stages.stage import StageError, Summary
from tests.stages.test_decontaminate_match import prose
from tests.support import LocalArtifact, LocalContext, documents_of
from tests.tiny import write_study


@dataclass(frozen=True)
class Book:
    """One document of a test's corpus."""

    text: str
    year: int | None = None
    split: str = "train"


@dataclass
class Run:
    """What a run of the stage left behind."""

    output: Path
    summary: Summary

    def table(self, name: str = "decisions") -> pd.DataFrame:
        return pd.read_parquet(self.output / f"{name}.parquet")

    def row(self, doc_id: str) -> dict[str, Any]:
        rows = pq.read_table(self.output / "decisions.parquet").to_pylist()
        (found,) = (row for row in rows if row["doc_id"] == doc_id)
        return found

    def texts(self) -> dict[str, str]:
        return {row["doc_id"]: row["text"] for row in documents_of(self.output / "documents")}

    def rules(self) -> dict[str, str]:
        """Dropped document -> rule."""
        dropped = self.table().query("fate == 'dropped'")
        return dict(zip(dropped["doc_id"], dropped["rule"], strict=True))

    def files(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.output)): p.read_bytes() for p in self.output.rglob("*") if p.is_file()}


def write_documents(folder: Path, books: dict[str, Book]) -> LocalArtifact:
    writer = DocumentsWriter(folder / "documents")
    for name, book in books.items():
        row = {"doc_id": name, "source": "s", "title": None, "author": None, "year": book.year, "split": book.split}
        writer.write({**row, "text": book.text, "sha256": hashlib.sha256(book.text.encode()).hexdigest()})
    writer.close()
    return LocalArtifact(folder)


def audited(folder: Path, books: dict[str, Book]) -> LocalArtifact:
    """The artifact of an audit that found nothing."""
    artifact = write_documents(folder, books)
    write_empty_audit(folder, {name: len(book.text.encode()) for name, book in books.items() if book.split == "train"})
    return artifact


def write_empty_audit(folder: Path, sizes: dict[str, int]) -> None:
    empty: dict[str, Any] = dict.fromkeys(audit_tables.DECISIONS.names)
    rows = [
        {**empty, "doc_id": name, "action": "keep", "reason": "", "matched_words": 0, "bytes_in": n, "bytes_out": n}
        for name, n in sizes.items()
    ]
    write_table(pa.Table.from_pylist(rows, schema=audit_tables.DECISIONS), folder / "decisions.parquet")
    write_table(audit_tables.SPANS.empty_table(), folder / "spans.parquet")


Dedup = Callable[..., Run]


@pytest.fixture
def dedup(tmp_path: Path) -> Dedup:
    def run(books: dict[str, Book] | LocalArtifact, out: str = "out", **options: Any) -> Run:
        artifact = audited(tmp_path / f"in-{out}", books) if isinstance(books, dict) else books
        (tmp_path / out).mkdir()
        context = LocalContext(str(tmp_path / "work"))
        config = DedupConfig.model_validate(options)
        return Run(tmp_path / out, STAGE.run(config, {"documents": artifact}, tmp_path / out, context))

    return run


def edited(words: list[str], share: float, seed: int = 0) -> list[str]:
    chance = random.Random(seed)
    return ["erratum" if chance.random() < share else word for word in words]


NOVEL, ESSAY, TALE = prose(1, 6000), prose(2, 3000), prose(3, 2000)


def corpus() -> dict[str, Book]:
    """Every kind of repeat once, and texts that are none."""
    return {
        "s/a-test": Book(lines(edited(NOVEL, 0.01)), split="validation"),
        "s/anthology": Book(lines(prose(10, 3000) + TALE + prose(11, 3000))),
        "s/clean": Book(lines(prose(12, 4000))),
        "s/essay": Book(lines(ESSAY), 1850),
        "s/essay-copy": Book(lines(ESSAY), 1840),
        "s/essay-retyped": Book(lines((word.upper() for word in ESSAY), 7), 1860),
        "s/novel": Book(lines(NOVEL)),
        "s/novel-edition": Book(lines([*edited(NOVEL, 0.02), *prose(13, 100)])),
        "s/novel-volume": Book(lines(NOVEL[2000:4000])),
        "s/quoting": Book(lines(prose(14, 3000) + NOVEL[:300])),
        "s/short": Book("Too short for a 5-gram."),
        "s/short-copy": Book("too short -- for a 5-gram"),
        "s/signs": Book("* * *"),
        "s/signs-too": Book("- - -"),
        "s/tale": Book(lines(TALE)),
        "s/test": Book(lines(NOVEL), split="test"),
    }


def test_repeats_are_dropped_and_the_rest_is_left_alone(dedup: Dedup) -> None:
    before = corpus()
    done = dedup(before)
    assert done.rules() == {
        "s/essay": "exact copy",
        "s/essay-retyped": "same words",
        "s/novel": "edition",
        "s/novel-volume": "contained",
        "s/short-copy": "same words",
        "s/tale": "contained",
    }
    after = done.texts()
    assert after == {name: book.text for name, book in before.items() if name not in done.rules()}
    kept_for = {name: done.row(name)["kept_id"] for name in done.rules()}
    assert kept_for == {
        "s/essay": "s/essay-copy",
        "s/essay-retyped": "s/essay-copy",
        "s/novel": "s/novel-edition",
        "s/novel-volume": "s/novel-edition",
        "s/short-copy": "s/short",
        "s/tale": "s/anthology",
    }
    assert done.summary.metrics["documents_kept"] == 8
    assert "3 as equal texts, 1 as editions, 2 as parts of others dropped" in done.summary.headline
    assert all((done.output / file).is_file() for file in done.summary.tables.values())


def test_a_dropped_document_shows_the_words_it_shares_its_score_and_the_threshold(dedup: Dedup) -> None:
    before = corpus()
    done = dedup(before)
    edition, part = done.row("s/novel"), done.row("s/novel-volume")
    assert edition["measure"] == "Jaccard" and 0.75 < edition["score"] < 0.9 and edition["threshold"] == 0.7
    assert part["measure"] == "containment" and 0.85 < part["score"] < 0.95 and part["threshold"] == 0.8
    assert "6," in edition["reason"] and "dropped from 0.7" in edition["reason"]
    for row in (edition, part):
        said, other = row["text"].removesuffix(" …"), row["other_text"].removesuffix(" …")
        assert said in before[row["doc_id"]].text and other in before[row["other_id"]].text
        assert said.split()[:20] == other.split()[:20]
    pairs = done.table("pairs")
    assert {"s/novel", "s/novel-volume", "s/tale"} <= set(pairs["doc_id"])


def test_every_document_and_every_byte_is_in_the_table_once(dedup: Dedup) -> None:
    before = corpus()
    done = dedup(before)
    rows, fates = done.table(), done.table("fates")
    training = {name: book for name, book in before.items() if book.split == "train"}
    assert sorted(rows["doc_id"]) == sorted(training)
    sizes = {name: len(book.text.encode()) for name, book in training.items()}
    assert dict(zip(rows["doc_id"], rows["bytes_in"], strict=True)) == sizes
    left = {name: sizes[name] for name in done.texts() if name in sizes}
    assert rows.query("bytes_out > 0").set_index("doc_id")["bytes_out"].to_dict() == left
    assert fates["documents"].sum() == len(training) and fates["bytes_in"].sum() == sum(sizes.values())
    assert fates["bytes_out"].sum() == sum(left.values()) == done.summary.metrics["bytes_kept"]
    assert list(rows["fate"]) == sorted(rows["fate"]), "the dropped ones first"


def test_the_fates_of_the_audit_are_in_the_same_table(dedup: Dedup, tmp_path: Path) -> None:
    books = {
        "s/clean": Book(lines(prose(20, 4000))),
        "s/clean-copy": Book(lines(prose(20, 4000))),
        "s/clean-edition": Book(lines([*edited(prose(20, 4000), 0.01), "more"])),
        "s/copied": Book(lines(ESSAY)),
        "s/note": Book(lines(prose(21, 3000) + NOVEL[:40])),
        "s/passage": Book(lines(prose(22, 2000) + NOVEL[200:400] + prose(23, 2000))),
        "s/passage-too": Book(lines(edited(prose(22, 2000) + NOVEL[200:400] + prose(23, 2000), 0.01))),
        "s/test": Book(lines(NOVEL), split="test"),
        "s/test-too": Book(lines(ESSAY), split="test"),
    }
    ingested = write_documents(tmp_path / "ingest", books)
    (tmp_path / "audit").mkdir()
    config = DecontaminateConfig.model_validate({"canaries": {"count": 0}})
    DECONTAMINATE.run(config, {"documents": ingested}, tmp_path / "audit", LocalContext(str(tmp_path / "work")))
    done = dedup(LocalArtifact(tmp_path / "audit"))
    columns = ["fate", "stage", "rule", "contamination", "other_id", "kept_id"]
    said = {name: tuple(done.row(name)[column] for column in columns) for name in books if "test" not in name}
    assert said == {
        "s/clean": ("dropped", "dedup", "edition", "keep", "s/clean-edition", "s/clean-edition"),
        "s/clean-copy": ("dropped", "decontaminate", "exact copy", "drop", "s/clean", "s/clean-edition"),
        "s/clean-edition": ("kept", None, None, "keep", None, "s/clean-edition"),
        "s/copied": ("dropped", "decontaminate", "contamination", "drop", "s/test-too", None),
        "s/note": ("kept", "decontaminate", "contamination", "note", "s/test", "s/note"),
        "s/passage": ("cut", "decontaminate", "contamination", "cut", "s/test", "s/passage"),
        "s/passage-too": ("dropped", "dedup", "edition", "cut", "s/passage", "s/passage"),
    }
    passage, rows = done.row("s/passage"), done.table()
    assert passage["score"] == 200 and passage["measure"] == "matched words"
    assert passage["text"].split()[:5] == passage["other_text"].split()[:5] == NOVEL[200:205]
    total = sum(len(book.text.encode()) for book in books.values() if book.split == "train")
    assert rows["bytes_in"].sum() == done.summary.metrics["corpus_bytes"] == total
    left = sum(len(text.encode()) for name, text in done.texts().items() if "test" not in name)
    assert rows["bytes_out"].sum() == left


def test_what_the_audit_only_reported_is_kept_and_said(dedup: Dedup, tmp_path: Path) -> None:
    books = {"s/copied": Book(lines(ESSAY)), "s/clean": Book(lines(TALE)), "s/test": Book(lines(ESSAY), split="test")}
    (tmp_path / "audit").mkdir()
    config = DecontaminateConfig.model_validate({"canaries": {"count": 0}, "action": "report_only"})
    ingested = write_documents(tmp_path / "ingest", books)
    DECONTAMINATE.run(config, {"documents": ingested}, tmp_path / "audit", LocalContext(str(tmp_path / "work")))
    done = dedup(LocalArtifact(tmp_path / "audit"))
    assert set(done.texts()) == set(books)
    row = done.row("s/copied")
    assert (row["fate"], row["contamination"], row["rule"]) == ("kept", "drop", "contamination")


def test_of_similar_documents_one_is_kept_by_text_then_year_then_id(dedup: Dedup) -> None:
    longest = [*edited(NOVEL, 0.01, 1), *prose(30, 50)]
    assert set(dedup({"s/a": Book(lines(NOVEL), 1800), "s/b": Book(lines(longest), 1900)}).texts()) == {"s/b"}
    retyped = lines((word.upper() for word in NOVEL), 9)
    first = dedup({"s/a": Book(lines(NOVEL), 1900), "s/b": Book(retyped, 1800), "s/c": Book(retyped)}, out="years")
    assert set(first.texts()) == {"s/b"}
    assert set(dedup({"s/b": Book(lines(NOVEL)), "s/a": Book(retyped)}, out="ids").texts()) == {"s/a"}


def test_documents_similar_only_through_a_third_are_not_dropped_for_one_another(dedup: Dedup) -> None:
    """Each step changes a tenth of the text: neighbours are editions of one another, the ends of the chain are not."""
    parts = [[prose(40 + k, 300) for k in range(20)], [prose(90 + k, 300) for k in range(20)]]
    steps = [[w for k in range(20) for w in parts[k < 2 * step][k]] for step in range(3)]
    books = {f"s/{step}": Book(lines([*words, *prose(150, 30 - 10 * step)])) for step, words in enumerate(steps)}
    done = dedup(books, containment=None)
    assert done.rules() == {"s/1": "edition"} and done.row("s/1")["other_id"] == "s/0"
    assert set(dedup({**books, "s/0": Book("")}, out="without", containment=None).rules()) == {"s/2"}


def test_a_license_around_short_books_does_not_make_them_alike(dedup: Dedup) -> None:
    terms = lines(prose(50, 3000))
    head, foot = "*** START OF THE PROJECT GUTENBERG EBOOK ***\n", "*** END OF THE PROJECT GUTENBERG EBOOK ***\n"
    books = {f"s/{k}": Book(terms[:900] + "\n" + head + lines(prose(51 + k, 300)) + foot + terms) for k in range(2)}
    assert set(dedup(books).texts()) == set(books)
    twice = {**books, "s/2": Book(head + lines(prose(51, 300)) + foot)}
    assert dedup(twice, out="twice").rules() == {"s/2": "same words"}


def test_filters_drop_by_length_and_language_and_nothing_stands_for_a_filtered_document(dedup: Dedup) -> None:
    german = "Der alte Mann ging am Abend durch den Wald, und die Kinder warteten schon lange auf das Essen. " * 8
    english = "The old man walked through the forest in the evening, and the children had long been waiting. " * 8
    books = {
        "s/de": Book(german),
        "s/en": Book(english),
        "s/long": Book(lines(NOVEL)),
        "s/numbers": Book("12 345 678 " * 60),
        "s/part": Book(lines(NOVEL[:3000])),
        "s/tiny": Book("Hello there."),
    }
    done = dedup(books, language={"keep": ["en"]}, length={"min_bytes": 50, "max_words": 5000})
    rules = done.rules()
    assert rules == {"s/de": "language", "s/long": "length", "s/tiny": "length"}, "the part outlives the filtered whole"
    assert done.row("s/de")["language"] == "de" and done.row("s/de")["text"].startswith("Der alte Mann")
    assert done.row("s/de")["kept_id"] is None and done.row("s/numbers")["language"] == "und"
    assert done.row("s/long")["reason"] == "6,000 words, at most 5,000 are allowed"
    assert done.row("s/tiny")["reason"] == "12 bytes, at least 50 are asked"
    assert done.summary.metrics["dropped_language"] == 1 and done.summary.metrics["dropped_length"] == 2


def test_filters_that_leave_nothing_are_an_error(dedup: Dedup) -> None:
    with pytest.raises(StageError, match=r"dedup\.length.*no training document is left: 14 dropped by length.*loosen"):
        dedup(corpus(), length={"min_words": 10**6})


def test_rules_can_be_switched_off_one_by_one(dedup: Dedup) -> None:
    rules = set(dedup(corpus(), exact=False, out="a").rules().values())
    assert rules == {"edition", "contained"}
    assert "contained" not in dedup(corpus(), containment=None, out="b").rules().values()
    assert "edition" not in dedup(corpus(), editions=None, out="c").rules().values()


def test_order_parts_and_workers_do_not_change_what_is_kept(
    dedup: Dedup, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = corpus()
    plain = dedup(books, out="loop").files()
    monkeypatch.setattr(running, "WORTH_TASKS", 0)
    assert dedup(books, out="ray").files() == plain
    monkeypatch.setattr(documents_module, "PART_BYTES", 20_000)
    monkeypatch.setattr(comparing, "LEAST_BYTES", 1)
    monkeypatch.setattr(running, "RUNS", 3)
    shuffled = dict(random.Random(0).sample(sorted(books.items()), len(books)))
    other = dedup(shuffled, out="parts")
    assert len(document_files(other.output / "documents")) > 3
    tables = {name: data for name, data in other.files().items() if not name.startswith("documents")}
    assert tables == {name: data for name, data in plain.items() if not name.startswith("documents")}


def test_a_second_run_over_the_output_drops_nothing(dedup: Dedup) -> None:
    once = dedup(corpus())
    again = {name: replace(book, text=once.texts()[name]) for name, book in corpus().items() if name in once.texts()}
    assert dedup(again, out="again").rules() == {}


def test_a_part_file_of_nothing_but_repeats_leaves_no_file(dedup: Dedup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "PART_BYTES", 1)
    books = {"s/a": Book(lines(NOVEL)), "s/b": Book(lines(NOVEL)), "s/t": Book(lines(ESSAY), split="test")}
    done = dedup(books)
    assert [path.name for path in document_files(done.output / "documents")] == [
        "part-00000.parquet",
        "part-00002.parquet",
    ]
    assert pq.read_schema(done.output / "documents" / "part-00000.parquet").equals(documents_module.SCHEMA)


def test_a_damaged_audit_is_noticed(dedup: Dedup, tmp_path: Path) -> None:
    artifact = audited(tmp_path / "in", corpus())
    table = pq.read_table(tmp_path / "in" / "decisions.parquet")
    write_table(table.slice(1), tmp_path / "in" / "decisions.parquet")
    with pytest.raises(RuntimeError, match="no row for s/anthology"):
        dedup(artifact)
    wrong = table.set_column(table.column_names.index("bytes_out"), "bytes_out", pa.array([1] * len(table)))
    write_table(wrong, tmp_path / "in" / "decisions.parquet")
    with pytest.raises(RuntimeError, match="the audit left 1 bytes"):
        dedup(artifact, out="sizes")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"exact": False, "editions": None, "containment": None}, "all of it is switched off"),
        ({"editions": {"threshold": 0.3}}, "20 bands of 5 rows find only 5%"),
        ({"containment": {"min_words": 100}}, "below 512 words have too few fingerprints"),
        ({"language": {"keep": ["eng"]}}, "'eng' is no language known here .*such as en"),
        ({"language": {"keep": []}}, "at least 1 item"),
        ({"length": {}}, "no effect without a bound"),
        ({"length": {"min_words": 9, "max_words": 3}}, "no document lies between them"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DedupConfig.model_validate(options)


def test_the_languages_of_a_study_file_are_those_of_the_library() -> None:
    assert set(identifier().labels) - {"zxx"} == LANGUAGES


def test_a_study_with_the_section_trains_on_what_is_left(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    without = expand(load(study), None)
    study.write_text(study.read_text() + "dedup: {}\n")
    plan = expand(load(study), None)
    steps = {step.id: step for step in plan.steps}
    assert steps["dedup"].inputs == {"documents": "decontaminate"}
    assert [name for name, step in steps.items() if "decontaminate" in step.inputs.values()] == ["dedup", "report"]
    assert {name for name, step in steps.items() if step.inputs.get("documents") == "dedup"} >= {
        "tokenizer",
        "tokenize",
    }
    assert len(plan.steps) == len(without.steps) + 1


def test_natural_editions_and_volumes_of_real_books_are_found(shared_data: Path, dedup: Dedup, tmp_path: Path) -> None:
    """Against pairs known from an independent count of shared 13-grams; without the audit, which takes some of them."""
    for name in ("ingest", "audit"):
        (tmp_path / name).mkdir()
    context = LocalContext(str(tmp_path / "work"))
    INGEST.run(
        IngestConfig(sources=(Pg19(name="pg19", url=str(shared_data / "pg19")),)), {}, tmp_path / "ingest", context
    )
    ids = [row["doc_id"] for row in documents_of(tmp_path / "ingest" / "documents", ["doc_id"])]
    audit = tmp_path / "audit"
    (audit / "documents").symlink_to(tmp_path / "ingest" / "documents")
    training = [row for row in documents_of(audit / "documents") if row["split"] == "train"]
    write_empty_audit(audit, {row["doc_id"]: len(row["text"].encode()) for row in training})
    done = dedup(LocalArtifact(audit), language={"keep": ["en"]})
    dropped = done.table().query("fate == 'dropped'")
    found = {tuple(x.removeprefix("pg19/") for x in row) for row in dropped[["doc_id", "rule", "other_id"]].to_numpy()}
    assert found == {
        ("33", "edition", "25344"),
        ("43", "edition", "42"),
        ("1286", "edition", "573"),
        ("3755", "edition", "147"),
        ("8800", "edition", "1008"),
        ("8789", "contained", "1008"),
        ("3339", "contained", "3350"),
    }
    assert len(done.texts()) == len(ids) - 7
    near = done.table("pairs").query("rule.isna()")
    assert list(near["doc_id"]) == ["pg19/20"], "another printing of Paradise Lost, in other spelling"
    assert 0.3 < near["jaccard"].iloc[0] < 0.4
