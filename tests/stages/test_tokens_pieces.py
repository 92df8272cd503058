"""Documents cut into pieces give the tokens of the whole; shards, counts and statistics say what is in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from stages.data.corpus.documents import DocumentsWriter
from stages.data.tokens import pieces as cutting
from stages.data.tokens import units
from stages.data.tokens.config import TokenizeConfig, TokenizerConfig
from stages.data.tokens.load import document_tokens, token_meta
from stages.data.tokens.stage import TOKENIZE, TOKENIZER
from tests.support import LocalArtifact, LocalContext

WORDS = (
    "the",
    "Ünder",
    "cat's",
    "don't",
    "x_1",
    "42",
    "3rd",
    "—",
    "(so)",
    "日本",
    "да",
    "\t",
    "\n",
    "\n\n",
    "  ",
    "e\u0301",
)
TEXTS = st.lists(st.sampled_from(WORDS), max_size=60).flatmap(
    lambda words: st.lists(
        st.sampled_from([" ", " ", " ", "", "\n", "  "]), min_size=len(words), max_size=len(words)
    ).map(lambda gaps: "".join(word + gap for word, gap in zip(words, gaps, strict=True)))
)


def byte_pairs() -> Tokenizer:
    """Trained so that tokens reach over letters, spaces before words, and line ends."""
    from tokenizers import trainers

    from stages.data.tokens.tokenizer import EOS, PAD, byte_level

    made = byte_level()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[PAD, EOS],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    made.train_from_iterator([" ".join(WORDS) * 20, "\n\n  the cat's\n\n" * 50], trainer)
    return made


def unigram(split: bool) -> Tokenizer:
    vocabulary = [("<unk>", 0.0), ("▁", -3.0), ("▁the", -2.0), ("▁cat", -2.0), ("▁the▁cat", -1.0)]
    made = Tokenizer(models.Unigram([*vocabulary, *((c, -5.0) for c in "abcdefghijklmnopqrstuvwxyz'")], 0))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=split)
    return made


def word_pieces() -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate(["[UNK]", "the", "cat", "##s", "##x", "a", "b"])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"PIECE": 7, "LONGEST": 40, "WHOLE": 60, "_BLOCK": 5}.items():
        monkeypatch.setattr(cutting, name, value)
    yield


def test_which_tokenizers_split_between_words() -> None:
    assert cutting.splits_between_words(byte_pairs())
    assert cutting.splits_between_words(word_pieces())
    assert cutting.splits_between_words(unigram(split=True))
    assert not cutting.splits_between_words(unigram(split=False)), "the▁cat is one token"
    prefixed = byte_pairs()
    prefixed.normalizer = normalizers.Prepend("_")
    assert not cutting.splits_between_words(prefixed), "each piece would begin with the prefix"
    reaching = byte_pairs()
    reaching.add_tokens(["New York"])
    assert not cutting.splits_between_words(reaching)
    bare = byte_pairs()
    bare.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    assert not cutting.splits_between_words(bare)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, between_words=st.booleans())
def test_pieces_are_the_text_and_its_words(text: str, between_words: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PIECE": 7, "LONGEST": 40, "WHOLE": 60, "_BLOCK": 5}.items():
            patch.setattr(cutting, name, value)
        found = list(cutting.pieces(memoryview(text.encode()), between_words))
    assert "".join(piece for piece, _ in found) == text and all(piece for piece, _ in found)
    assert sum(len(piece.split()) - inside for piece, inside in found) == len(text.split())
    assert max((len(piece) for piece, _ in found), default=0) <= 60


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return byte_pairs()


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_pieces_between_words_have_the_tokens_of_the_whole(trained: Tokenizer, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PIECE": 7, "LONGEST": 10**6, "_BLOCK": 5}.items():
            patch.setattr(cutting, name, value)
        found = [piece for piece, _ in cutting.pieces(memoryview(text.encode()), True)]
    for tokenizer in (trained, word_pieces(), unigram(split=True)):
        ids = [i for e in tokenizer.encode_batch_fast(found, add_special_tokens=False) for i in e.ids]
        assert ids == tokenizer.encode(text, add_special_tokens=False).ids


def corpus(folder: Path, rows: list[tuple[str, str, str, str]]) -> LocalArtifact:
    writer = DocumentsWriter(folder / "documents")
    for doc_id, source, split, text in rows:
        empty = dict.fromkeys(("title", "author", "year"))
        writer.write({**empty, "doc_id": doc_id, "source": source, "split": split, "text": text, "sha256": "0" * 64})
    writer.close()
    return LocalArtifact(folder)


def tokenized(tmp_path: Path, documents: LocalArtifact, name: str = "tokens", **options: Any) -> LocalArtifact:
    for folder in ("tokenizer", name):
        (tmp_path / folder).mkdir(exist_ok=True)
    context = LocalContext(str(tmp_path / f"work-{name}"))
    TOKENIZER.run(TokenizerConfig(kind="bytes"), {"documents": documents}, tmp_path / "tokenizer", context)
    inputs = {"documents": documents, "tokenizer": LocalArtifact(tmp_path / "tokenizer")}
    config = TokenizeConfig(**{"sequence_length": 32, "segment_length": 8, **options})
    summary = TOKENIZE.run(config, inputs, tmp_path / name, context)
    for path in (*summary.tables.values(), *summary.figures):
        assert (tmp_path / name / path).stat().st_size
    return LocalArtifact(tmp_path / name, summary=summary.metrics)


ROWS = [
    ("a/1", "a", "train", "One two three four five six seven. " * 40),
    ("a/2", "a", "test", "Held out text, Ünïcode and all. " * 9),
    ("a/3", "a", "train", "short"),
    ("b/1", "b", "train", "Twelve letter" * 23),
    ("b/2", "b", "validation", "x"),
    ("b/3", "b", "train", "Twenty-one tokens so."),
]


def test_statistics_agree_with_the_documents(tmp_path: Path) -> None:
    made = tokenized(tmp_path, corpus(tmp_path / "c", ROWS))
    sources = {(r["source"], r["split"]): r for r in pq.read_table(made.path("sources.parquet")).to_pylist()}
    assert set(sources) == {(source, split) for _, source, split, _ in ROWS}
    for (source, split), row in sources.items():
        texts = [text for _, s, p, text in ROWS if (s, p) == (source, split)]
        sizes = [len(text.encode()) for text in texts]
        tokens = [size + 1 for size in sizes]  # a byte a token, and the end of the document
        assert (row["documents"], row["bytes"], row["tokens"]) == (len(texts), sum(sizes), sum(tokens))
        assert row["words"] == sum(len(text.split()) for text in texts)
        assert (row["shortest"], row["longest"]) == (min(tokens), max(tokens)) and row["median"] in tokens
        assert row["bytes_per_token"] == pytest.approx(sum(sizes) / sum(tokens))
    train = [row for (_, split), row in sources.items() if split == "train"]
    assert [row["dropped_documents"] for row in train] == [1, 0]  # "short" is no half of a sequence
    assert sum(row["sequences"] for row in train) == token_meta(made)["splits"]["train"]["sequences"]
    bins = pq.read_table(made.path("lengths.parquet")).to_pylist()
    assert sum(row["documents"] for row in bins) == len(ROWS)
    assert sum(row["tokens"] for row in bins) == sum(row["tokens"] for row in sources.values())
    assert made.summary["bytes_per_token_b"] == pytest.approx(sources["b", "train"]["bytes_per_token"])
    listed = pq.read_table(made.path("documents.parquet")).to_pylist()
    assert [row["doc_id"] for row in listed] == [row[0] for row in ROWS]


@pytest.mark.parametrize(("share", "rows"), [(0.0, {"b/3": 1, "a/3": 1}), (0.5, {"b/3": 1}), (1.0, {})])
def test_short_documents_are_padded_or_dropped_and_counted(tmp_path: Path, share: float, rows: dict[str, int]) -> None:
    documents = corpus(
        tmp_path / "c", [*ROWS[2:3], *ROWS[5:], ("b/2", "b", "test", "x"), ("z", "b", "train", "z" * 63)]
    )
    made = tokenized(tmp_path, documents, min_tail_share=share)
    counts = token_meta(made)["splits"]["train"]
    there = {doc_id: len(ids) for doc_id, ids in document_tokens(made, "train")}
    assert set(there) == {*rows, "z"} and there["z"] == 64
    assert counts["dropped_documents"] == 2 - len(rows)
    assert counts["tokens"] - counts["dropped_tail_tokens"] == sum(there.values())
    assert {doc_id: len(ids) for doc_id, ids in document_tokens(made, "test")} == {"b/2": 2}


@pytest.mark.parametrize("unit", [1, 50, 2**22])
def test_shards_are_cut_by_size_and_the_same_whatever_a_task_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_pieces: None, unit: int
) -> None:
    documents = corpus(tmp_path / "c", ROWS)
    whole = tokenized(tmp_path, documents, "whole")
    monkeypatch.setattr(units, "UNIT", unit)
    made = tokenized(tmp_path, documents, shard_bytes=32 * 5 * 4)
    shards = sorted(made.path("train").glob("data-*.arrow"))
    sizes = []
    for shard in shards:
        with pa.memory_map(str(shard)) as file:
            table = pa.ipc.open_stream(file).read_all()
        sizes.append(table.num_rows)
        for doc_id, offset in zip(table["doc_id"].to_pylist(), table["offset"].to_pylist(), strict=True):
            assert offset % 32 == 0 and doc_id
    assert set(sizes[:-1]) == {4} and 0 < sizes[-1] <= 4 and len(sizes) > 5
    for split in ("train", "validation", "test"):
        here, there = dict(document_tokens(made, split)), dict(document_tokens(whole, split))
        assert list(here) == list(there) and all((here[name] == there[name]).all() for name in here)
    names = ("documents.parquet", "sources.parquet", "lengths.parquet", "lengths.png")
    assert [made.path(name).read_bytes() for name in names] == [whole.path(name).read_bytes() for name in names]
    assert json.loads(made.path("meta.json").read_text()) == json.loads(whole.path("meta.json").read_text())
    assert np.concatenate(list(dict(document_tokens(made, "test")).values())).max() < 258
