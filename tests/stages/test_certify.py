"""The second count finds exactly what was planted, whatever the detector that cleaned thinks of it."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pandas as pd
import pytest

from stages.data.certify import count
from stages.data.certify.config import CertifyConfig
from stages.data.certify.stage import STAGE
from stages.data.corpus import documents as documents_module
from stages.data.corpus.documents import DocumentsWriter, document_files
from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.stage import STAGE as DECONTAMINATE
from stages.stage import StageError
from tests.support import LocalArtifact, LocalContext

N = 13


def vocabulary(seed: int, size: int = 4000) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choice("abcdefghijklmnoprstuvwz") for _ in range(rng.randint(3, 9))) for _ in range(size)]


def prose(seed: int, words: int) -> list[str]:
    """Words of one shared vocabulary: texts share words, never thirteen in a row."""
    rng, lexicon = random.Random(seed), vocabulary(0)
    return [rng.choice(lexicon) for _ in range(words)]


def artifact(folder: Path, texts: dict[str, str]) -> LocalArtifact:
    """doc_id -> text; its split is what stands before the slash."""
    writer = DocumentsWriter(folder / "documents")
    for name, text in texts.items():
        row = {"doc_id": name, "source": "s", "title": f"Title of {name}", "author": None, "year": 1900}
        digest = hashlib.sha256(text.encode()).hexdigest()
        writer.write({**row, "split": name.split("/")[0], "text": text, "sha256": digest})
    writer.close()
    return LocalArtifact(folder)


def certify(documents: LocalArtifact, output: Path, **config: int) -> tuple[pd.DataFrame, LocalContext, str]:
    output.mkdir(parents=True)
    context = LocalContext(str(output))
    summary = STAGE.run(CertifyConfig(**config), {"documents": documents}, output, context)
    table = pd.read_parquet(output / "containment.parquet").set_index("book_id", drop=False)
    return table, context, summary.headline


def slowly(texts: dict[str, list[str]], n: int = N) -> dict[str, int]:
    """Contained distinct n-grams of every evaluation document, with sets of tuples."""

    def grams(text: list[str]) -> set[tuple[str, ...]]:
        return {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}

    train: set[tuple[str, ...]] = set().union(*(grams(t) for name, t in texts.items() if name.startswith("train/")))
    return {name: len(grams(t) & train) for name, t in texts.items() if not name.startswith("train/")}


@pytest.fixture
def planted() -> dict[str, list[str]]:
    texts = {f"train/{i}": prose(10 + i, 3000) for i in range(6)}
    texts |= {"test/a": prose(1, 2000), "test/b": prose(2, 1500), "validation/c": prose(3, 1000)}
    texts["train/1"][500:500] = texts["test/a"][100:200]  # 100 words: 88 n-grams
    texts["train/4"][40:40] = texts["test/a"][150:450]  # 300 words, 50 of them the same: 288, of which 38 are known
    texts["train/5"] += texts["test/b"][:13]  # one n-gram
    texts["train/2"][9:9] = texts["validation/c"][:12]  # a word too short
    return texts


def test_planted_passages_are_counted_to_the_word(planted: dict[str, list[str]], tmp_path: Path):
    texts = {name: " ".join(text) for name, text in planted.items()}
    table, context, headline = certify(artifact(tmp_path / "in", texts), tmp_path / "out")
    assert table["contained"].to_dict() == {"test/a": 338, "test/b": 1, "validation/c": 0} == slowly(planted)
    assert table["ngrams"].to_dict() == {"test/a": 1988, "test/b": 1488, "validation/c": 988}
    assert table["longest"].to_dict() == {"test/a": 300, "test/b": 13, "validation/c": 0}
    tops = table["top_document"].fillna("").to_dict()
    assert tops == {"test/a": "train/4", "test/b": "train/5", "validation/c": ""}
    assert table["share"]["test/a"] == pytest.approx(338 / 1988) and table["book_id"].iloc[0] == "test/a"
    assert table["title"]["test/a"] == "Title of test/a" and table["split"]["validation/c"] == "validation"
    assert "2 share an n-gram of 13 words" in headline and "300 words in a row" in headline
    done, total, _, _ = context.progressed[-1]
    assert done == total


def test_case_punctuation_and_lines_do_not_hide_a_passage(planted: dict[str, list[str]], tmp_path: Path):
    rng = random.Random(5)

    def printed(text: list[str]) -> str:
        signs = (" ", ", ", "\n", ".\n\n", " -- ", "; “", "_ _")
        return "".join((word.upper() if rng.random() < 0.2 else word) + rng.choice(signs) for word in text)

    texts = {name: printed(text) for name, text in planted.items()}
    table, _, _ = certify(artifact(tmp_path / "in", texts), tmp_path / "out")
    assert table["contained"].to_dict() == slowly(planted)


def test_letters_of_any_script_are_words_however_they_are_composed(tmp_path: Path):
    russian = [
        "Все",
        "счастливые",
        "семьи",
        "похожи",
        "друг",
        "на",
        "друга",
        "каждая",
        "несчастливая",
        "семья",
        "несчастлива",
        "по",
        "своему",
        "всё",
    ]
    accented = [word + "é" for word in prose(8, 40)]
    texts = {"train/1": " ".join(w.upper() for w in russian), "train/2": " ".join(w[:-1] + "e\u0301" for w in accented)}
    texts |= {"test/r": " ".join(russian), "test/e": " ".join(accented), "test/z": "話說天下大勢分久必合合久必分也"}
    texts["train/3"] = "「話說，天下大勢，分久必合、合久必分也！」"
    table, _, _ = certify(artifact(tmp_path / "in", texts), tmp_path / "out")
    assert table["share"].to_dict() == {"test/r": 1.0, "test/e": 1.0, "test/z": 1.0}
    assert table["longest"].to_dict() == {"test/r": len(russian), "test/e": 40, "test/z": 15}


@pytest.mark.parametrize(
    "sign", ["\u200b", "\u200d", "\u00ad", "\u2060", "\ufeff", "\u3164", "\U000e0061", "\u00ad\n  "]
)
def test_what_is_not_seen_hides_no_passage(tmp_path: Path, sign: str):
    text = prose(9, 40)
    texts = {"train/1": " ".join(w[:2] + sign + w[2:] for w in text), "test/a": " ".join(text)}
    table, _, _ = certify(artifact(tmp_path / "in", texts), tmp_path / "out")
    assert table["share"]["test/a"] == 1.0 and table["longest"]["test/a"] == 40


def test_repeats_count_once_and_runs_do_not_join_two_documents(tmp_path: Path):
    a, b = prose(1, 200), prose(2, 200)
    train = a[:50] + b[50:100] + a[100:120] + a[:50]  # a's end and b's beginning stand side by side
    texts = {"train/1": " ".join(train), "test/a": " ".join(a), "test/b": " ".join(b), "test/b2": " ".join(b)}
    table, _, _ = certify(artifact(tmp_path / "in", texts), tmp_path / "out")
    assert table["contained"].to_dict() == {"test/a": 38 + 8, "test/b": 38, "test/b2": 38}
    assert table["longest"].to_dict() == {"test/a": 50, "test/b": 50, "test/b2": 50}


def test_a_row_of_the_same_word_is_no_long_passage(tmp_path: Path):
    texts = {"train/1": " ".join([*prose(1, 50), *["0"] * 300]), "test/a": " ".join([*prose(2, 50), *["0"] * 20])}
    table, _, _ = certify(artifact(tmp_path / "in", texts), tmp_path / "out")
    assert table["contained"].to_dict() == {"test/a": 1} and table["longest"].to_dict() == {"test/a": 13}


@pytest.mark.parametrize("size", [64, 1000])
def test_a_long_text_read_in_pieces_counts_the_same(
    planted: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
):
    texts = {name: "é".join([" ".join(text), " x"]) for name, text in planted.items()} | {"train/w": "word" * 500}
    documents = artifact(tmp_path / "in", texts)
    whole, _, _ = certify(documents, tmp_path / "whole")
    monkeypatch.setattr(count, "PIECE", size)
    pieces, _, _ = certify(documents, tmp_path / "pieces")
    pd.testing.assert_frame_equal(whole, pieces)


def test_shards_and_ray_change_nothing(
    planted: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
):
    texts = {name: " ".join(text) for name, text in planted.items()}
    whole, _, _ = certify(artifact(tmp_path / "in", texts), tmp_path / "whole")
    monkeypatch.setattr(documents_module, "PART_BYTES", 20_000)
    monkeypatch.setattr(count, "WORTH_TASKS", 0)
    shards = artifact(tmp_path / "shards", texts)
    assert len(document_files(shards.path("documents"))) > 3
    spread, context, _ = certify(shards, tmp_path / "spread")
    pd.testing.assert_frame_equal(whole, spread)
    assert len(context.progressed) == 2 * len(document_files(shards.path("documents")))


def test_what_the_audit_cut_is_gone_and_what_it_only_noted_is_counted(tmp_path: Path):
    """The detector that cleans keeps quotations and says so; this count has no such mercy."""
    texts = {f"train/{i}": prose(20 + i, 3000) for i in range(5)} | {
        "test/a": prose(1, 12_000),
        "test/b": prose(2, 4000),
    }
    texts["train/0"] += prose(30, 12_000) + texts["test/a"][1000:1300]  # cut
    texts["train/1"] = texts["test/b"]  # dropped
    texts["train/2"][300:300] = texts["test/a"][2000:2030]  # a quotation of 30 words
    raw = artifact(tmp_path / "in", {name: " ".join(text) for name, text in texts.items()})
    before, _, _ = certify(raw, tmp_path / "before")
    assert before["contained"].to_dict() == {"test/a": 288 + 18, "test/b": 3988}
    cleaned = tmp_path / "cleaned"
    cleaned.mkdir()
    rule = DecontaminateConfig(canaries={"count": 0})
    DECONTAMINATE.run(rule, {"documents": raw}, cleaned, LocalContext(str(tmp_path)))
    actions = pd.read_parquet(cleaned / "decisions.parquet").set_index("doc_id")["action"]
    assert (actions["train/0"], actions["train/1"], actions["train/2"]) == ("cut", "drop", "note")
    after, _, _ = certify(LocalArtifact(cleaned), tmp_path / "after")
    assert after["contained"].to_dict() == {"test/a": 18, "test/b": 0}
    assert after["longest"].to_dict() == {"test/a": 30, "test/b": 0} and after["top_document"]["test/a"] == "train/2"


def test_a_text_too_short_for_an_ngram_has_no_share_and_is_told(tmp_path: Path):
    texts = {"train/1": " ".join(prose(1, 100)), "test/a": "only five words stand here", "test/b": ""}
    table, context, _ = certify(artifact(tmp_path / "in", texts), tmp_path / "out")
    assert table["share"].isna().all() and (table["ngrams"] == 0).all()
    assert [line.split(":")[0] for line in context.warned] == ["test/a", "test/b"]


def test_without_evaluation_documents_there_is_nothing_to_certify(tmp_path: Path):
    with pytest.raises(StageError, match="no evaluation split"):
        certify(artifact(tmp_path / "in", {"train/1": "a b c"}), tmp_path / "out")
