"""Work by shard: goes on where it was interrupted, takes documents of any size; exclusion lists and boilerplate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.data.corpus import documents
from stages.data.corpus.documents import DocumentsWriter
from stages.data.decontaminate import clean
from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.exclude import LISTS, excluded_hashes, hashes_of
from stages.data.decontaminate.pin import pin_exclusions
from stages.data.decontaminate.stage import STAGE
from stages.data.matching import shards
from stages.data.matching.boilerplate import body
from stages.data.matching.chain import Scanned, scan
from stages.data.matching.index import build, ngrams
from stages.data.matching.normalize import words
from stages.stage import StageError
from tests.stages.test_decontaminate_match import prose
from tests.support import LocalArtifact, LocalContext, settled

Corpus = Callable[..., LocalArtifact]
BOOK = prose(1, 3000)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    def write(texts: dict[str, str], folder: str = "in", part_bytes: int = 20_000) -> LocalArtifact:
        monkeypatch.setattr(documents, "PART_BYTES", part_bytes)
        writer = DocumentsWriter(tmp_path / folder / "documents")
        for name, text in sorted(texts.items()):
            about = {"doc_id": name, "source": "s", "title": None, "author": None, "year": None}
            digest = hashlib.sha256(text.encode()).hexdigest()
            writer.write({**about, "split": name.split("/")[0], "text": text, "sha256": digest})
        writer.close()
        return LocalArtifact(tmp_path / folder)

    return write


def ten_documents() -> dict[str, str]:
    texts = {f"train/{n}": " ".join(prose(10 + n, 4000)) for n in range(10)}
    texts["train/4"] += " " + " ".join(BOOK[500:700])
    return {"test/book": " ".join(BOOK), **texts}


def run(source: LocalArtifact, work: Path, output: Path, **options: object) -> LocalContext:
    output.mkdir()
    context = LocalContext(str(work))
    STAGE.run(DecontaminateConfig.model_validate(options), {"documents": source}, output, context)
    return context


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def failing(function: Callable[..., object], after: int) -> Callable[..., object]:
    """The function, until it has been called ``after`` times."""
    calls = []

    def call(*arguments: object) -> object:
        calls.append(1)
        if len(calls) > after:
            raise OSError("the power went")
        return function(*arguments)

    return call


@pytest.mark.parametrize(("module", "name", "after"), [(shards, "scan", 6), (clean, "write_documents", 3)])
def test_an_interrupted_run_goes_on_with_the_shards_that_are_not_done(
    module: object, name: str, after: int, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = corpus(ten_documents())
    scanned: list[int] = []

    def counted(text: bytes, *rest: int) -> Scanned:
        scanned.append(len(text))
        return scan(text, *rest)

    monkeypatch.setattr(shards, "scan", counted)
    run(source, tmp_path / "undisturbed", tmp_path / "expected")
    whole = len(scanned)
    with monkeypatch.context() as broken, pytest.raises(OSError, match="the power went"):
        broken.setattr(module, name, failing(getattr(module, name), after))
        run(source, tmp_path / "work", tmp_path / "lost")
    scanned.clear()
    run(source, tmp_path / "work", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert len(scanned) < whole - after + 2  # one call compiles the kernels, one is the one that failed


def test_a_work_folder_on_remote_storage_makes_no_difference(corpus: Corpus, tmp_path: Path) -> None:
    source = corpus(ten_documents())
    for out, work in (("local", str(tmp_path / "work")), ("remote", "memory://decontaminate-work")):
        (tmp_path / out).mkdir()
        STAGE.run(DecontaminateConfig(), {"documents": source}, tmp_path / out, LocalContext(work))
    assert contents(tmp_path / "local") == contents(settled(tmp_path / "remote"))


def test_results_of_other_texts_or_rules_are_not_taken_for_these(corpus: Corpus, tmp_path: Path) -> None:
    texts = ten_documents()
    run(corpus(texts), tmp_path / "work", tmp_path / "one")
    run(corpus({**texts, "train/5": "quite another text"}, "in2"), tmp_path / "work", tmp_path / "two")
    run(corpus(texts, "in3"), tmp_path / "work", tmp_path / "three", min_span_words=40)
    decisions = [pd.read_parquet(tmp_path / out / "decisions.parquet").set_index("doc_id") for out in ("one", "two")]
    assert decisions[1].loc["train/5", "bytes_in"] == len("quite another text")
    assert json.loads((tmp_path / "three" / "audit.json").read_text())["parameters"]["min_span_words"] == 40


def test_the_cut_of_the_shards_does_not_matter(corpus: Corpus, tmp_path: Path) -> None:
    for folder, size in (("fine", 1), ("coarse", 2**30)):
        run(corpus(ten_documents(), folder, size), tmp_path / "work", tmp_path / f"out-{folder}")
    for name in ("decisions", "pairs", "spans", "books", "canaries"):
        fine, coarse = (pd.read_parquet(tmp_path / f"out-{f}" / f"{name}.parquet") for f in ("fine", "coarse"))
        pd.testing.assert_frame_equal(fine, coarse)


def test_every_document_of_a_long_shard_is_decided_once(corpus: Corpus, tmp_path: Path) -> None:
    """Also beyond the first thousand, which are read at a time."""
    texts = {f"train/{n:04}": f"a short text, number {n}" for n in range(1100)}
    texts["train/1050"] = " ".join([*prose(10, 4000), *BOOK[500:700]])
    run(corpus({"test/book": " ".join(BOOK), **texts}, part_bytes=2**30), tmp_path / "work", tmp_path / "out")
    decisions = pd.read_parquet(tmp_path / "out" / "decisions.parquet").set_index("doc_id")
    assert sorted(decisions.index) == sorted(texts)
    assert list(decisions.index[decisions["action"] != "keep"]) == ["train/1050"]


def test_a_passage_is_found_wherever_it_stands_in_a_long_document() -> None:
    """Across the blocks that are read at a time, and with words read again far from the beginning."""
    index = build([("book", " ".join(BOOK).encode())], 5, 2)
    filler = prose(3, 30_000)
    for at in (0, 4000, 4096, 8190, 20_011, 30_000):
        text = " ".join([*filler[:at], *BOOK[1000:1100], *filler[at:]])
        (span,) = scan(text.encode(), index, 25, 25, 30).spans
        assert (span.doc_first, span.doc_last, span.book_first) == (at, at + 100, 1000)
        assert text.encode()[span.doc_start : span.doc_end].decode() == " ".join(BOOK[1000:1100])


def test_equal_words_far_beyond_the_seeds_belong_to_the_span() -> None:
    """A refrain of one word has no seed of its own beyond the few that are kept."""
    refrain = ["la"] * 2000
    index = build([("song", " ".join([*BOOK[:40], *refrain]).encode()), ("other", b"nothing of it")], 5, 2)
    (span,) = scan(" ".join([*prose(5, 50), *BOOK[:40], *refrain, "end"]).encode(), index, 25, 25, 30).spans
    assert span.matched == 2040


def test_the_rolled_hash_is_that_of_each_ngram_alone() -> None:
    hashes = words(" ".join(prose(7, 200)).encode()).hashes
    for n in (2, 5, 13):
        alone = [int(ngrams(hashes[i : i + n], n)[0]) for i in range(len(hashes) - n + 1)]
        assert ngrams(hashes, n).tolist() == alone


HEADER = "The Project Gutenberg EBook of A Tale\n\n*** START OF THIS PROJECT GUTENBERG EBOOK A TALE ***\n"
FOOTER = "\n*** END OF THIS PROJECT GUTENBERG EBOOK A TALE ***\nand a long licence\n"


def test_what_transcribers_put_around_a_book_is_left_out() -> None:
    text = f"{HEADER}It was so.{FOOTER}".encode()
    start, end = body(text)
    assert text[start:end].strip() == b"It was so."
    assert body(b"no marks") == (0, 8) and body(b"") == (0, 0)
    assert body(np.frombuffer(text, np.uint8)) == (start, end)
    licence = " ".join(prose(40, 300))
    index = build([(n, f"{HEADER}{' '.join(BOOK)}{FOOTER}{licence}".encode()) for n in ("one", "two")], 5, 2)
    other = f"{HEADER}{' '.join(prose(41, 3000))}{FOOTER}{licence}"
    assert scan(other.encode(), index, 25, 25, 30).spans == []
    (span, _) = scan((HEADER + " ".join(BOOK[:100]) + FOOTER).encode(), index, 25, 25, 30).spans
    assert (span.doc_first, span.doc_start) == (0, len(HEADER))


def test_publicly_quoted_texts_are_no_evidence(corpus: Corpus, tmp_path: Path) -> None:
    psalm = prose(50, 120)
    texts = {
        "test/book": " ".join([*BOOK, *psalm]),
        "train/quotes": " ".join([*prose(51, 3000), *psalm]),
        "train/copies": " ".join([*prose(52, 3000), *BOOK[:200]]),
        "train/clean": " ".join(prose(53, 3000)),
    }
    (tmp_path / "psalms.txt").write_text(" ".join(psalm))
    source = corpus(texts)
    plain = DecontaminateConfig.model_validate({"exclude": ["psalms.txt"]})
    config = pin_exclusions(plain, tmp_path)
    assert config.exclude[0].pin and config.exclude[0].url == str(tmp_path / "psalms.txt")
    for out, exclude in (("with", config.model_dump()["exclude"]), ("without", [])):
        run(source, tmp_path / "work", tmp_path / out, exclude=exclude)
    actions = [
        pd.read_parquet(tmp_path / out / "decisions.parquet").set_index("doc_id")["action"]
        for out in ("with", "without")
    ]
    assert actions[0].to_dict() == {"train/copies": "drop", "train/quotes": "keep", "train/clean": "keep"}
    assert actions[1]["train/quotes"] == "cut"
    assert json.loads((tmp_path / "with" / "audit.json").read_text())["excluded_ngrams"] == {"test/book": 116}

    assert pin_exclusions(config, Path("/elsewhere")).key_fields() == config.key_fields()
    (tmp_path / "psalms.txt").write_text("another psalm of more than five words")
    with pytest.raises(StageError, match="not the pinned one"):
        pin_exclusions(config, tmp_path)
    with pytest.raises(StageError, match=r"decontaminate\.exclude\.0"):
        pin_exclusions(DecontaminateConfig.model_validate({"exclude": ["missing.txt"]}), tmp_path)


def test_the_built_in_list_holds_licences_not_literature(shared_data: Path) -> None:
    listed = excluded_hashes(DecontaminateConfig())
    assert len(listed) == len(set(listed.tolist())) > 4000
    assert len(excluded_hashes(DecontaminateConfig(boilerplate="none"))) == 0
    licence = (
        b"Project Gutenberg-tm electronic works. Nearly all the individual works in the collection are in the public"
    )
    assert np.isin(hashes_of(licence), listed).mean() > 0.5
    books = [path.read_bytes() for path in sorted((shared_data / "pg19").glob("*/*.txt"))[::8]]
    assert max(np.isin(hashes_of(book[slice(*body(book))]), listed).sum() for book in books) < 50, (
        "of ten thousands of n-grams"
    )
    assert all(len(line) == 16 for line in (LISTS / "project-gutenberg-1.csv").read_text().splitlines()[1:])


def test_no_evaluation_document_is_one_clear_error(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no evaluation document"):
        run(corpus({"train/a": "only this"}), tmp_path / "work", tmp_path / "out")


def test_texts_without_words_pass_untouched(corpus: Corpus, tmp_path: Path) -> None:
    texts = {**ten_documents(), "train/dots": " ... --- ...\n", "train/one": "word", "validation/dots": "?!"}
    run(corpus(texts), tmp_path / "work", tmp_path / "out")
    decisions = pd.read_parquet(tmp_path / "out" / "decisions.parquet").set_index("doc_id")
    assert set(decisions.loc[["train/dots", "train/one"], "action"]) == {"keep"}
