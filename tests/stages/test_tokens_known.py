"""Chunks seen before give the tokens the library gives; a killed run goes on with the files it has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers

from stages.data.corpus import documents as table
from stages.data.tokens import known, units
from stages.data.tokens import lots as encoding
from stages.data.tokens import tokenize as running
from stages.data.tokens.config import TokenizeConfig, TokenizerConfig
from stages.data.tokens.known import LONGEST, KnownChunks
from stages.data.tokens.seams import PUNCTUATION, Seams, cut, find_seams
from stages.data.tokens.stage import TOKENIZE, TOKENIZER
from tests.stages.test_tokens_pieces import byte_pairs, unigram, word_pieces
from tests.support import LocalArtifact, LocalContext, documents_of, settled

# A pre-tokenizer that takes a mark along with the word after it, line ends with the marks before, three digits.
GREEDY = r"(?i:'s|'t|'ll)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def greedy() -> Tokenizer:
    made = byte_pairs()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GREEDY), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return made


@pytest.fixture(scope="module")
def made() -> dict[str, Tokenizer]:
    return {"bytes": byte_pairs(), "greedy": greedy(), "unigram": unigram(split=True), "words": word_pieces()}


@pytest.fixture(scope="module")
def seams_of(made: dict[str, Tokenizer]) -> dict[str, Seams]:
    found = {name: find_seams(tokenizer) for name, tokenizer in made.items()}
    return {name: seams for name, seams in found.items() if seams}


def test_which_seams_a_tokenizer_has(made: dict[str, Tokenizer]) -> None:
    specials = "".join(mark for mark in PUNCTUATION if mark not in "<>")
    assert find_seams(made["bytes"]) == Seams(True, True, specials), "all but those in <pad> and <eos>"
    assert find_seams(made["greedy"]) == Seams(True, False, specials), "a line end belongs to the mark before it"
    assert find_seams(made["unigram"]) == Seams(True), "the cat, and the\ncat, is one word"
    assert find_seams(made["words"]) == Seams(True, True, PUNCTUATION)
    assert find_seams(unigram(split=False)) is None
    reaching = byte_pairs()
    reaching.add_tokens([AddedToken("[x]", lstrip=True)])
    assert find_seams(reaching) is None
    dashed = byte_pairs()
    dashed.add_tokens(["a-b"])
    assert "-" not in (find_seams(dashed) or Seams()).punctuation
    split = byte_pairs()
    split.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+(\.\w+)*|\W"), "isolated")
    assert find_seams(split) == Seams(True, True), "a.b is one word here"
    assert find_seams(made["bytes"], ["cat"]) == find_seams(made["bytes"])


PARTS = (
    "the",
    "Ünder",
    "cat's",
    "'s",
    "'",
    "x_1",
    "42",
    "½",
    "—",
    "(so)",
    "“So",
    "日本",
    "да,",
    "\t",
    "\n",
    "\n\n",
    "  ",
    " ",
    "<eos>",
    "\u00a0",
    "\u3000",
    "e\u0301",
    "😀",
    "𝒳y",
    "\U00020000",
    "…",
    "--",
    "w" * 80,
    "é" * 40,
    "\x1c",
    "\x85",
)
TEXTS = st.lists(
    st.lists(st.sampled_from(PARTS), max_size=40).flatmap(
        lambda parts: st.lists(
            st.sampled_from([" ", " ", "", "\n", ", ", "."]), min_size=len(parts), max_size=len(parts)
        ).map(lambda gaps: "".join(part + gap for part, gap in zip(parts, gaps, strict=True)))
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(texts=TEXTS, which=st.sampled_from(["bytes", "greedy", "unigram", "words"]), size=st.sampled_from([2, 16, 256]))
def test_known_chunks_have_the_tokens_of_the_library(
    made: dict[str, Tokenizer], seams_of: dict[str, Seams], texts: list[str], which: str, size: int
) -> None:
    tokenizer, seams = made[which], seams_of[which]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "CHUNKS", size)
        chunks = KnownChunks(tokenizer, seams)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "CHUNKS", size)
        for _ in range(2):  # unknown, then known as far as they are kept
            tokens, lengths, words = chunks.encode(texts)
            whole = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            assert tokens.tolist() == [i for encoding in whole for i in encoding.ids]
            assert lengths == [len(encoding.ids) for encoding in whole]
            assert words == [len(text.split()) for text in texts]
    parts = [part for text in texts for part in cut(text, seams)]
    assert "".join(parts) == "".join(texts)
    kept = list(dict.fromkeys(part for part in parts if len(part.encode()) <= LONGEST))
    assert chunks.chunks() == kept[:size] or len(kept) > size * 3 // 4, "the kernel cuts as the plain loop does"


def test_text_of_which_little_is_known_is_not_learnt(
    made: dict[str, Tokenizer], seams_of: dict[str, Seams], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "LEARNT", 5)
    chunks = KnownChunks(made["bytes"], seams_of["bytes"])
    plain = ["the cat, and the other cat, and the tail of the other cat; " * 20]
    letters = "".join(chr(97 + byte % 26) for i in range(60) for byte in hashlib.sha256(bytes([i])).digest())
    strange = [" ".join(letters[i : i + 5] for i in range(0, len(letters), 5))]
    sizes = []
    for texts in (plain, strange, plain, strange, ["a new word"], strange + plain, plain):
        tokens, lengths, words = chunks.encode(texts)
        whole = made["bytes"].encode_batch_fast(texts, add_special_tokens=False)
        assert tokens.tolist() == [i for encoding in whole for i in encoding.ids]
        assert lengths == [len(encoding.ids) for encoding in whole]
        assert words == [len(text.split()) for text in texts]
        sizes.append(chunks.count)
    assert sizes[0] > 5 and set(sizes) == {sizes[0]}


def test_real_books_have_the_tokens_of_the_library(
    made: dict[str, Tokenizer], seams_of: dict[str, Seams], shared_data: Path
) -> None:
    book = min((shared_data / "pg19").rglob("*.txt"), key=lambda path: path.stat().st_size).read_text()[:200_000]
    for name, tokenizer in made.items():
        tokens, _, _ = KnownChunks(tokenizer, seams_of[name]).encode([book])
        assert tokens.tolist() == tokenizer.encode(book, add_special_tokens=False).ids


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalArtifact]:
    """Six files of documents, one of them empty."""
    monkeypatch.setattr(table, "PART_BYTES", 3000)
    monkeypatch.setattr(units, "UNIT", 700)
    monkeypatch.setattr(encoding, "LOT", 700)
    monkeypatch.setattr(running, "WORTH_KNOWING", 0)
    writer = table.DocumentsWriter(tmp_path / "c" / "documents")
    for i in range(30):
        text = f"Document {i}: the cat's — “tail”, and (again) the tail.\n" * (3 + 5 * i % 17)
        row = dict.fromkeys(("title", "author", "year")) | {"doc_id": f"d/{i}", "source": "d", "sha256": "0" * 64}
        writer.write({**row, "split": "train" if i % 5 else "test", "text": text})
    writer.close()
    files = table.document_files(tmp_path / "c" / "documents")
    assert len(files) > 4
    table.write_documents(table.SCHEMA.empty_table(), files[0].with_name(table.part_name(len(files))))
    (tmp_path / "tokenizer").mkdir()
    artifact = LocalArtifact(tmp_path / "c")
    config = TokenizerConfig(kind="bpe", vocab_size=300)
    TOKENIZER.run(config, {"documents": artifact}, tmp_path / "tokenizer", LocalContext(""))
    yield artifact


class Killed(Exception):
    pass


class Dying(LocalContext):
    """Ends the run at the ``at``-th part."""

    at = 0

    def progress(self, done: float, total: float, unit: str, **numbers: float) -> None:
        super().progress(done, total, unit, **numbers)
        if len(self.progressed) == self.at:
            raise Killed


def run(tmp_path: Path, documents: LocalArtifact, name: str, context: LocalContext) -> dict[str, str]:
    """Tokenize; a digest of each file."""
    output = tmp_path / name
    output.mkdir()
    inputs = {"documents": documents, "tokenizer": LocalArtifact(tmp_path / "tokenizer")}
    TOKENIZE.run(TokenizeConfig(sequence_length=32, segment_length=8, shard_bytes=2000), inputs, output, context)
    files = sorted(path for path in settled(output).rglob("*") if path.is_file())
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_shards_with_known_chunks_and_without(
    tmp_path: Path, corpus: LocalArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_known = run(tmp_path, corpus, "known", LocalContext(str(tmp_path / "w1")))
    monkeypatch.setattr(running, "WORTH_KNOWING", 2**62)
    assert run(tmp_path, corpus, "plain", LocalContext(str(tmp_path / "w2"))) == with_known


@pytest.mark.parametrize("storage", ["local", "memory"])
def test_a_killed_run_goes_on_with_the_parts_it_has(
    tmp_path: Path, corpus: LocalArtifact, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    clean = run(tmp_path, corpus, "clean", LocalContext(str(tmp_path / "elsewhere")))
    encoded: list[str] = []

    def encode(texts: list[str], *rest: Any) -> Any:
        encoded.extend(texts)
        return original(texts, *rest)

    original = encoding.encode
    monkeypatch.setattr(encoding, "encode", encode)
    work = str(tmp_path / "work") if storage == "local" else f"memory://{tmp_path.name}"
    everything = run(tmp_path, corpus, "counted", LocalContext(str(tmp_path / "other"))) and len(encoded)
    for name, at in (("first", 8), ("second", 18)):
        encoded.clear()
        context = Dying(work)
        context.at = at
        with pytest.raises(Killed):
            run(tmp_path, corpus, name, context)
    assert len(encoded) < everything
    encoded.clear()
    context = LocalContext(work)
    assert run(tmp_path, corpus, "third", context) == clean
    assert 0 < len(encoded) < everything / 2 and "were encoded by an earlier attempt" in context.logged[-1]
    done = [done for done, *_ in context.progressed]
    assert done == sorted(done)
    encoded.clear()
    changed = LocalArtifact(tmp_path / "c2")  # other texts under the same names: nothing is taken over
    writer = table.DocumentsWriter(tmp_path / "c2" / "documents")
    for row in documents_of(corpus.path("documents")):
        writer.write({**row, "text": row["text"].replace("cat", "dog")})
    writer.close()
    assert run(tmp_path, changed, "changed", LocalContext(work)) != clean and len(encoded) == everything


def test_the_folders_describe_themselves_as_datasets_does(tmp_path: Path, corpus: LocalArtifact) -> None:
    import datasets

    run(tmp_path, corpus, "out", LocalContext(str(tmp_path / "work")))
    value = datasets.Value
    features = datasets.Features(
        {
            "tokens": datasets.List(value("int32"), length=32),
            "loss_mask": datasets.List(value("uint8"), length=32),
            "doc_id": value("string"),
            "offset": value("int64"),
            "source": value("string"),
        }
    )
    (tmp_path / "theirs").mkdir()
    datasets.DatasetInfo(features=features).write_to_directory(str(tmp_path / "theirs"))
    ours, theirs = (json.loads((tmp_path / f / "dataset_info.json").read_text()) for f in ("out/train", "theirs"))
    assert ours == theirs
    with pa.memory_map(str(tmp_path / "out" / "train" / "data-00000.arrow")) as file:
        metadata = pa.ipc.open_stream(file).schema.metadata
    assert json.loads(metadata[b"huggingface"]) == json.loads(features.arrow_schema.metadata[b"huggingface"])
