"""What people read of an audit: numbers that reconcile, evidence that stands where it is said to, text left text."""

from __future__ import annotations

import html
import json
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.audit import page
from stages.data.audit.classify import (
    Measured,
    class_of,
    deep,
    extent,
    margins,
    near_miss,
    overlap,
    shared_sources,
)
from stages.data.audit.figures import draw
from stages.data.audit.highlight import highlighted
from stages.data.decontaminate.balance import Balanced, Imbalance, balance, beside
from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.decide import covered, merged
from stages.data.decontaminate.stage import STAGE
from stages.data.matching.chain import Span
from tests.stages.test_decontaminate import ESSAY, LETTER, NOVEL, Audited, corpus, text_of, write_corpus
from tests.stages.test_decontaminate_match import prose
from tests.support import LocalContext

RULE = DecontaminateConfig()


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Audited]:
    """Runs the stage once per corpus and options; what it left behind is only looked at."""
    done: dict[str, Audited] = {}

    def run(texts: Mapping[str, str] | None = None, **options: Any) -> Audited:
        key = json.dumps([texts, options], sort_keys=True)
        if key not in done:
            folder = tmp_path_factory.mktemp("audit")
            documents = write_corpus(folder / "in", dict(texts or corpus()))
            (folder / "out").mkdir()
            config = DecontaminateConfig.model_validate({"canaries": {"count": 4}, **options})
            context = LocalContext(str(folder / "work"))
            summary = STAGE.run(config, {"documents": documents}, folder / "out", context)
            done[key] = Audited(folder / "out", summary, context)
        return done[key]

    return run


def totals(done: Audited) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((done.output / "audit.json").read_text())
    return value


Run = Callable[..., Audited]


def test_documents_and_bytes_in_are_kept_cut_or_dropped(audited: Run) -> None:
    found = totals(audited())["balance"]
    training = {name: text for name, text in corpus().items() if name.startswith("train/")}
    assert found["in"] == {"documents": len(training), "bytes": sum(len(t.encode()) for t in training.values())}
    for what in ("documents", "bytes"):
        assert found["in"][what] == sum(found[fate][what] for fate in ("kept", "cut", "dropped"))
    assert (found["kept"]["documents"], found["cut"]["documents"], found["dropped"]["documents"]) == (3, 1, 5)
    assert found["out"]["bytes"] == found["in"]["bytes"] - found["cut"]["bytes_removed"] - found["dropped"]["bytes"]
    assert found["dropped"]["bytes_removed"] == found["dropped"]["bytes"] and not found["kept"]["bytes_removed"]


def replaced(table: pa.Table, name: str, values: list[str]) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))


def renamed(table: pa.Table) -> pa.Table:
    return replaced(table, "doc_id", ["train/new"])


def lengthened(table: pa.Table) -> pa.Table:
    return replaced(table, "text", [text + "!" for text in table["text"].to_pylist()])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda t: t.slice(1), "is gone without a decision"),
        (lambda t: pa.concat_tables([t, renamed(t.slice(0, 1))]), "never went in"),
        (lengthened, "came out with another size"),
    ],
)
def test_an_output_that_does_not_balance_is_an_error(
    audited: Run, tmp_path: Path, damage: Callable[[pa.Table], pa.Table], said: str
) -> None:
    done = audited()
    kept = pq.read_table(done.output / "documents")
    kept = kept.filter([name in ("train/clean", "train/note") for name in kept["doc_id"].to_pylist()])
    write_corpus(tmp_path / "in", {k: v for k, v in corpus().items() if k in ("train/clean", "train/note")})
    decisions = pq.read_table(done.output / "decisions.parquet")
    mine = [name in ("train/clean", "train/note") for name in decisions["doc_id"].to_pylist()]
    pq.write_table(decisions.filter(mine), tmp_path / "decisions.parquet")
    (tmp_path / "out").mkdir()
    pq.write_table(kept, tmp_path / "out" / "part.parquet")
    (source,) = (tmp_path / "in" / "documents").iterdir()

    def balanced() -> Balanced:
        compared = beside(source, tmp_path / "out" / "part.parquet")
        return balance(compared, tmp_path / "decisions.parquet", tmp_path)

    assert balanced().fates["kept"]["documents"] == 2
    pq.write_table(damage(kept), tmp_path / "out" / "part.parquet")
    with pytest.raises(Imbalance, match=said):
        balanced()


def test_the_second_scan_of_the_output_and_its_digests_are_shown(audited: Run) -> None:
    found = totals(audited())
    assert found["rescan"]["documents"] == 4 and found["rescan"]["documents_to_act_on"] == 0
    assert found["rescan"]["coverage_max"] == audited().table("books")["coverage_after"].max() <= RULE.coverage_limit
    assert {"index", "config", "input", "output"} == set(found["digests"])
    again, other = totals(audited(canaries={"count": 0})), totals(audited(act_words=60))
    assert found["digests"]["index"] == again["digests"]["index"]
    assert found["digests"]["input"] == other["digests"]["input"]
    assert found["digests"]["config"] != other["digests"]["config"]
    text = (audited().output / "audit.html").read_text()
    assert all(digest in text for digest in found["digests"].values())
    assert "a second scan of all 4 documents that are left finds nothing to act on" in text


def test_a_planted_passage_is_shown_with_its_bytes(audited: Run) -> None:
    texts = corpus()
    spans = audited().table("spans").set_index("doc_id")
    span = spans.loc["train/passage"]
    own = texts["train/passage"].encode()[span["doc_start"] : span["doc_end"]].decode()
    other = texts["validation/novel"].encode()[span["book_start"] : span["book_end"]].decode()
    assert own.split() == other.split() == NOVEL[4000:4200]
    assert (span["words"], span["identity"]) == (200, 1.0)
    page_text = (audited().output / "evidence" / "001.html").read_text()
    assert f"bytes {span['doc_start']:,}–{span['doc_end']:,}" in page_text
    assert f"bytes {span['book_start']:,}–{span['book_end']:,}" in page_text


def test_every_kind_of_sharing_has_its_class(audited: Run) -> None:
    pairs = audited().table("pairs")
    found = {(row.doc_id, row.book_id): row._asdict() for row in pairs.rename(columns={"class": "kind"}).itertuples()}
    assert {document: row["kind"] for (document, _), row in found.items()} == {
        "train/anthology": "anthology",
        "train/edition": "edition",
        "train/note": "quotation",
        "train/passage": "excerpt",
        "train/shuffled": "whole",
        "train/whole": "whole",
    }
    assert totals(audited())["classes"] == pairs["class"].value_counts().sort_index().to_dict()
    note = found["train/note", "validation/novel"]
    assert note["margin_act_words"] == note["longest_words"] - 50 == -10 and note["near_miss"] == "act_words"
    assert found["train/passage", "validation/novel"]["margin_drop_words"] == 200 - 500


def test_passages_that_stand_in_many_places_are_a_shared_source(audited: Run) -> None:
    psalm, texts = prose(40, 90), {"test/essay": text_of(ESSAY + prose(40, 90) + prose(41, 2000))}
    for n, name in enumerate("abc"):
        texts[f"train/{name}"] = text_of(prose(50 + n, 3000) + psalm + prose(60 + n, 500))
    texts["train/clean"] = text_of(prose(12, 1000))
    texts["train/own"] = text_of(prose(70, 3000) + ESSAY[100:200] + prose(71, 500))
    pairs = audited(texts).table("pairs").sort_values("doc_id").set_index("doc_id")
    assert dict(pairs["class"]) == {
        "train/a": "shared source",
        "train/b": "shared source",
        "train/c": "shared source",
        "train/own": "excerpt",
    }


def test_sources_and_remainder_make_up_an_evaluation_document(audited: Run) -> None:
    texts = {
        "test/essay": text_of(ESSAY),
        "train/first": text_of(prose(80, 2000) + ESSAY[:1000]),
        "train/overlapping": text_of(prose(81, 2000) + ESSAY[500:1500]),
        "train/last": text_of(prose(82, 2000) + ESSAY[2800:]),
        "train/clean": text_of(prose(12, 1000)),
    }
    done = audited(texts)
    sources = done.table("sources")
    assert list(sources["doc_id"]) == ["train/first", "train/overlapping", "train/last"]
    assert list(sources["rank"]) == [1, 2, 3] and list(sources["words"]) == [1000, 1000, 200]
    assert sources["new_share"].round(9).tolist() == pytest.approx([1 / 3, 1 / 6, 1 / 15])
    book = done.table("books").iloc[0]
    assert sources["cumulative_share"].iloc[-1] == book["coverage"] == 1700 / 3000
    assert book["uncovered_words"] == 1300
    (rest,) = done.table("uncovered").to_dict("records")
    assert rest["words"] == 1300
    assert texts["test/essay"].encode()[rest["book_start"] : rest["book_end"]].decode().split() == ESSAY[1500:2800]


def test_recall_of_the_canaries_comes_with_its_interval(audited: Run) -> None:
    canaries = audited().table("canaries")
    assert (canaries["recall"] == canaries["acted"] / canaries["planted"]).all()
    assert ((canaries["low"] <= canaries["recall"]) & (canaries["recall"] <= canaries["high"])).all()
    together = totals(audited())["canaries"]
    assert together["planted"] == 12 and 0.6 < together["low"] < together["recall"] <= together["high"] <= 1
    assert totals(audited(canaries={"count": 0}))["canaries"]["recall"] is None


def test_figures_and_tables_go_to_the_tracking_server(audited: Run) -> None:
    summary = audited().summary
    assert {"audit.html", "evidence/001.html", "figures/coverage.png", "figures/margins.png"} <= set(summary.figures)
    assert all((audited().output / name).is_file() for name in [*summary.figures, *summary.tables.values()])


def test_a_clean_corpus_says_so(audited: Run) -> None:
    done = audited({"test/letter": text_of(LETTER), "train/clean": text_of(prose(90, 3000))})
    text = (done.output / "audit.html").read_text()
    assert "None of the 1 evaluation documents shares a verified span" in text and "<figure>" not in text
    assert done.summary.figures == ["audit.html"] and not list((done.output / "evidence").iterdir())


def test_pages_escape_what_they_show_and_load_nothing(audited: Run) -> None:
    evil = [f"<script>alert({i})</script>" for i in range(80)]
    name = "<img src=x onerror=alert(1)>"
    done = audited(
        {
            f"test/{name}": " ".join(evil),
            f"train/{name}&": " ".join(evil) + " more",
            "train/clean": text_of(prose(32, 1000)),
        }
    )
    for file in ("audit.html", "evidence/001.html"):
        text = (done.output / file).read_text()
        assert html.escape(f"train/{name}&") in text and "script&gt;" in text and "<mark>" in text
        assert "<script" not in text and "<img" not in text
        assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:|//|data:|javascript:)""", text)
        assert "default-src 'none'" in text


def test_links_lead_to_what_is_there(audited: Run) -> None:
    output = audited().output
    for path in [output / "audit.html", *(output / "evidence").iterdir()]:
        for link in re.findall(r'<a href="([^"]+)"', path.read_text()):
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.is_file(), link
            assert not anchor or f'id="{anchor}"' in target.read_text(), link


def test_thousands_of_spans_go_to_pages_of_bounded_size(audited: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PAGE_SPANS", 5)
    monkeypatch.setattr(page, "PAIR_SPANS", 12)
    monkeypatch.setattr(page, "ALL_SPANS", 21)
    chance = random.Random(0)
    pieces = [(chance.randrange(0, 2900), chance.randrange(4)) for _ in range(60)]
    texts = {"test/essay": text_of(ESSAY), "test/letter": text_of(LETTER), "train/clean": text_of(prose(12, 1000))}
    for document in range(4):
        parts = [prose(200 + document, 500)]
        for n, (start, where) in enumerate(pieces):
            if where == document:
                parts += [ESSAY[start : start + 60], prose(300 + n, 80)]
        texts[f"train/{document}"] = text_of([word for part in parts for word in part])
    done = audited(texts, canaries={"count": 1})
    pages = sorted((done.output / "evidence").iterdir())
    shown = [re.findall(r'<div class="span" id="s(\d+)"', path.read_text()) for path in pages]
    assert len(pages) > 3 and all(1 <= len(rows) <= 5 for rows in shown)
    rows = [int(row) for found in shown for row in found]
    assert len(rows) == len(set(rows)) == min(21, len(done.table("spans")))
    assert "the rest is in spans.parquet" in (done.output / "audit.html").read_text()


def test_the_same_audit_gives_the_same_bytes(audited: Run, tmp_path: Path) -> None:
    first = audited()
    documents = write_corpus(tmp_path / "in", corpus())
    (tmp_path / "out").mkdir()
    config = DecontaminateConfig.model_validate({"canaries": {"count": 4}})
    STAGE.run(config, {"documents": documents}, tmp_path / "out", LocalContext(str(tmp_path / "work")))
    for path in sorted(p for p in first.output.rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(first.output)).read_bytes(), path


def test_highlighting_marks_runs_of_words_both_sides_share() -> None:
    left, right = highlighted("The Cat, sat down", "the dog sat down")
    assert left == "<mark>The</mark> Cat, <mark>sat down</mark>"
    assert right == "<mark>the</mark> dog <mark>sat down</mark>"
    assert (
        highlighted("the well-known Café", "the well known cafe")[0] == "<mark>the</mark> well-known <mark>Café</mark>"
    )
    assert highlighted("don’t stop", "dont stop")[0] == "<mark>don’t stop</mark>"


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_highlighting_loses_no_character_and_escapes_all(left: str, right: str) -> None:
    left, right = (text.encode(errors="ignore").decode() for text in (left, right))
    for text, shown in zip((left, right), highlighted(left, right), strict=True):
        assert html.unescape(shown.replace("<mark>", "").replace("</mark>", "")) == html.unescape(html.escape(text))
        assert not re.sub(r"</?mark>", "", shown).count("<")


ranges = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 9)).map(lambda found: (found[0], found[0] + found[1])), max_size=6
).map(merged)


@settings(max_examples=200, deadline=None)
@given(st.lists(ranges, max_size=5), st.integers(1, 3), ranges)
def test_depth_and_overlap_of_ranges_agree_with_counting(
    layers: list[list[tuple[int, int]]], depth: int, other: list[tuple[int, int]]
) -> None:
    count = np.zeros(60, int)
    for layer in layers:
        for start, end in layer:
            count[start:end] += 1
    found = deep(layers, depth)
    assert covered(found) == int((count >= depth).sum()) == sum(end - start for start, end in found)
    inside = np.zeros(60, bool)
    for start, end in other:
        inside[start:end] = True
    assert overlap(found, other) == int((inside & (count >= depth)).sum())


@pytest.mark.parametrize(
    ("document", "book", "words", "shared", "expected"),
    [
        ((0, 1000), (0, 1000), 1000, True, "whole"),
        ((0, 1000), (0, 1000), 900, True, "edition"),
        ((0, 1000), (0, 500), 500, False, "excerpt"),  # a document that repeats itself holds half of the book
        ((0, 500), (0, 900), 500, True, "anthology"),
        ((0, 200), (0, 200), 200, True, "shared source"),
        ((0, 200), (0, 200), 200, False, "excerpt"),
        ((0, 40), (0, 40), 40, False, "quotation"),
    ],
)
def test_the_first_class_that_fits_counts(
    document: tuple[int, int], book: tuple[int, int], words: int, shared: bool, expected: str
) -> None:
    found = extent([Span(0, *document, *book, words, 0, 0, 0, 0)], 1000, 1000)
    assert class_of(found, shared, RULE) == expected
    loose = class_of(found, shared, RULE, copied=False)
    assert loose == (expected if expected in ("whole", "edition", "anthology") else "translation")


@pytest.mark.parametrize(
    ("action", "found", "expected"),
    [
        ("note", Measured(39, 39, 0.0, 0.0), ""),
        ("note", Measured(40, 40, 0.0, 0.0), "act_words"),
        ("cut", Measured(60, 399, 0.0, 0.0), ""),
        ("cut", Measured(60, 400, 0.1, 0.01), "drop_words"),
        ("cut", Measured(60, 410, 0.19, 0.01), "drop_document_share"),
        ("cut", Measured(60, 60, 0.1, 0.049), "drop_book_share"),
        ("drop", Measured(60, 499, 0.3, 0.0), ""),
    ],
)
def test_a_near_miss_names_the_threshold_it_almost_reached(action: str, found: Measured, expected: str) -> None:
    assert near_miss(action, found, RULE) == expected
    assert (margins(found, RULE)["margin_act_words"] >= 0) == (found.longest >= RULE.act_words)


def test_editions_of_one_work_are_not_elsewhere() -> None:
    spans = [Span(0, 0, 100, 0, 100, 100, 0, 0, 0, 0)]
    pairs = {("train/a", "test/x"): spans, ("train/a", "test/y"): spans}
    assert shared_sources(pairs, {"test/x": "x", "test/y": "x"}) == set()
    assert shared_sources(pairs, {}) == set(pairs)


def test_a_title_in_any_script_or_with_control_characters_is_drawn_without_a_word(
    audited: Run, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    done = audited()
    for name in ("books", "pairs"):
        table = pq.read_table(done.output / f"{name}.parquet")
        if name == "books":
            table = replaced(table, "title", ["\x1b]0;x\x07\u202e日本語 ไทย"] * len(table))
        pq.write_table(table, tmp_path / f"{name}.parquet")
    drawn = draw(tmp_path, RULE)["coverage"]
    assert r"\x1b]0;x\x07\u202e日本語" in drawn and "\x1b" not in drawn
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
