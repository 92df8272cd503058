"""Tokenizers give text back; shards open with ``datasets`` and keep to the policy on tails and documents."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stages.data.tasks.needles import PASSKEY
from stages.data.tasks.prompts import PromptMaker, haystack_of
from stages.data.tokens.config import TokenizeConfig, TokenizerConfig
from stages.data.tokens.load import document_tokens, load_tokenizer, token_meta
from stages.data.tokens.pin import pin_tokenizer, vocabulary_size
from stages.data.tokens.preview import preview
from stages.data.tokens.stage import TOKENIZE, TOKENIZER
from stages.stage import StageError
from tests.support import LocalArtifact, LocalContext

TEXT = "The pass key is 40713. Ünïcödé — “quotes”, tabs\t and\n\n  spaces; 日本語 🙂.\n"


def corpus(folder: Path, sizes: dict[str, tuple[str, int]]) -> LocalArtifact:
    """A document table: id -> (split, characters)."""
    rows = []
    for doc_id, (split, size) in sorted(sizes.items()):
        text = (f"{doc_id}: {TEXT}" * (size // 20 + 1))[:size]
        rows.append({"doc_id": doc_id, "source": doc_id[0], "split": split, "text": text})
    (folder / "documents").mkdir(parents=True)
    schema = pa.schema([(n, pa.string()) for n in ("doc_id", "source", "split")] + [("text", pa.large_string())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "documents" / "part-0.parquet")
    return LocalArtifact(folder)


def make(tmp_path: Path, documents: LocalArtifact, tokenizer: TokenizerConfig, tokens: TokenizeConfig, name: str = "a"):
    context = LocalContext(str(tmp_path / f"work-{name}"))
    folders = [tmp_path / f"{name}-tokenizer", tmp_path / f"{name}-tokens"]
    for folder in folders:
        folder.mkdir()
    TOKENIZER.run(tokenizer, {"documents": documents}, folders[0], context)
    made = LocalArtifact(folders[0])
    TOKENIZE.run(tokens, {"documents": documents, "tokenizer": made}, folders[1], context)
    return made, LocalArtifact(folders[1])


@pytest.fixture
def documents(tmp_path: Path) -> LocalArtifact:
    sizes = {"a/long": ("train", 5000), "a/short": ("train", 15), "b/eval": ("test", 700), "b/val": ("validation", 90)}
    return corpus(tmp_path / "corpus", sizes)


@pytest.mark.parametrize(("digits", "vocab_size"), [(2, 480), (3, 2500)])
def test_every_number_of_so_many_digits_is_one_token(tmp_path, documents, digits, vocab_size):
    """However rare in the text: a passkey of two digits is then one token. Longer runs are cut from their left."""
    config = TokenizerConfig(kind="bpe", vocab_size=vocab_size, number_digits=digits)
    artifact, tokens = make(tmp_path, documents, config, TokenizeConfig(sequence_length=64, segment_length=16))
    tokenizer = load_tokenizer(artifact)
    assert tokenizer.vocab_size == vocab_size
    for number in range(10**digits):
        text = f"The pass key is {number:0{digits}}."
        pieces = [tokenizer.decode([i]) for i in tokenizer.encode(text)]
        assert "".join(pieces) == text and pieces[-2:] == [f" {number:0{digits}}", "."]
        assert len(tokenizer.encode(text[len("The pass key is ") : -1])) == 1  # and without the space
    assert [tokenizer.decode([i]) for i in tokenizer.encode("12345")] == [
        "12345"[start : start + digits] for start in range(0, 5, digits)
    ]
    text = "".join(tokenizer.decode(ids.tolist()) for _, ids in document_tokens(tokens, "test"))
    assert (
        "The pass key is 40713" in text
        and tokenizer.encode(text)[:40] == next(document_tokens(tokens, "test"))[1][:40].tolist()
    )


def test_a_vocabulary_has_room_for_its_numbers():
    with pytest.raises(ValidationError, match="vocab_size = 300: must be at least 468 with number_digits = 2"):
        TokenizerConfig(kind="bpe", vocab_size=300, number_digits=2)
    with pytest.raises(ValidationError, match="number_digits = 2 has no effect with kind bytes"):
        TokenizerConfig(kind="bytes", number_digits=2)


@pytest.mark.parametrize("config", [TokenizerConfig(kind="bytes"), TokenizerConfig(kind="bpe", vocab_size=300)])
def test_every_text_comes_back(tmp_path, documents, config):
    artifact, _ = make(tmp_path, documents, config, TokenizeConfig(sequence_length=64, segment_length=16))
    tokenizer = load_tokenizer(artifact)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.vocab_size == (258 if config.kind == "bytes" else 300)
    assert len({len(tokenizer.encode(f"{n:05d}")) for n in range(0, 99999, 997)}) == 1  # digits one by one
    assert max(tokenizer.encode(TEXT)) < tokenizer.vocab_size


def test_shards_open_with_datasets_and_hold_every_evaluation_token(tmp_path, documents):
    import datasets

    tokenizer, tokens = make(
        tmp_path, documents, TokenizerConfig(kind="bytes"), TokenizeConfig(sequence_length=64, segment_length=16)
    )
    opened = datasets.load_from_disk(str(tokens.path("train")))
    meta = token_meta(tokens)
    assert len(opened) == meta["splits"]["train"]["sequences"]
    assert set(map(len, opened["tokens"])) == {64}
    assert set(opened["doc_id"]) == {"a/long"}  # the short one fills less than half a sequence
    assert list(opened["offset"]) == list(range(0, 64 * len(opened), 64))
    texts = {r["doc_id"]: r["text"] for r in pq.read_table(documents.path("documents")).to_pylist()}
    for split, doc_id in (("test", "b/eval"), ("validation", "b/val")):
        ((found, ids),) = list(document_tokens(tokens, split))
        assert found == doc_id
        assert ids[-1] == meta["eos_id"] and load_tokenizer(tokenizer).decode(ids.tolist()) == texts[doc_id]
    assert meta["splits"]["train"]["dropped_tail_tokens"] > 0
    assert list(document_tokens(tokens, "nowhere")) == []


def test_a_long_enough_tail_is_padded_and_masked(tmp_path):
    documents = corpus(tmp_path / "c", {"t": ("train", 99), "v": ("test", 10)})
    config = TokenizeConfig(sequence_length=64, segment_length=64)
    n = len(pq.read_table(documents.path("documents"))["text"][0].as_py().encode()) + 1
    _, tokens = make(tmp_path, documents, TokenizerConfig(kind="bytes"), config)
    with pa.memory_map(str(tokens.path("train") / "data-00000.arrow")) as file:
        table = pa.ipc.open_stream(file).read_all()
    mask = np.array(table["loss_mask"].to_pylist())
    assert mask.shape[0] == -(-n // 64) and mask.sum() == n
    ids = np.array(table["tokens"].to_pylist())
    assert set(ids[mask == 0]) == {token_meta(tokens)["pad_id"]}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_bytes_with_and_without_ray(tmp_path, ray_session, monkeypatch):
    sizes = {f"d/{i:02d}": ("train" if i % 5 else "test", 500 + 37 * i) for i in range(20)}
    documents = corpus(tmp_path / "c", sizes)
    config = TokenizeConfig(sequence_length=64, segment_length=16, shard_bytes=2000)
    bpe = TokenizerConfig(kind="bpe", vocab_size=290)
    monkeypatch.setattr("stages.data.tokens.tokenize.WORTH_TASKS", 0)
    with_ray = make(tmp_path, documents, bpe, config, "ray")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    without = make(tmp_path, documents, bpe, config, "plain")
    assert [digests(a.directory) for a in with_ray] == [digests(a.directory) for a in without]
    assert len(list(with_ray[1].path("train").glob("*.arrow"))) > 2


def test_a_given_tokenizer_is_pinned_by_its_digest_and_checked(tmp_path, documents):
    made, _ = make(
        tmp_path,
        documents,
        TokenizerConfig(kind="bpe", vocab_size=300),
        TokenizeConfig(sequence_length=64, segment_length=16),
    )
    config = TokenizerConfig(kind="file", path="a-tokenizer/tokenizer.json", eos_token="<eos>", pad_token="<pad>")
    pinned = pin_tokenizer(config, tmp_path)
    assert pinned.pin is not None and "path" not in pinned.key_fields()
    again, _ = make(tmp_path, documents, pinned, TokenizeConfig(sequence_length=64, segment_length=16), "b")
    assert (
        json.loads(again.path("meta.json").read_text())["eos_id"]
        == json.loads(made.path("meta.json").read_text())["eos_id"]
    )
    tokenizer_file = tmp_path / "a-tokenizer" / "tokenizer.json"
    content = tokenizer_file.read_bytes()
    tokenizer_file.write_bytes(content + b"\n")
    with pytest.raises(StageError, match="the tokenizer changed after the plan was made"):
        make(tmp_path, documents, pinned, TokenizeConfig(sequence_length=64, segment_length=16), "changed")
    tokenizer_file.write_bytes(content)
    with pytest.raises(StageError, match=r"tokenizer.pin = 'sha256:0000.*now has the digest"):
        pin_tokenizer(config.model_copy(update={"pin": "sha256:" + "0" * 64}), tmp_path)
    with pytest.raises(StageError, match=r"tokenizer\.path"):
        pin_tokenizer(config.model_copy(update={"path": "nowhere.json"}), tmp_path)
    with pytest.raises(StageError, match=r"tokenizer.eos_token = '</s>': no such token \(allowed: <pad>, <eos>"):
        make(
            tmp_path,
            documents,
            pinned.model_copy(update={"eos_token": "</s>"}),
            TokenizeConfig(sequence_length=64, segment_length=16),
            "c",
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"sequence_length": 100, "segment_length": 16},
            r"sequence_length = 100: must be a multiple of segment_length = 16 \(nearest: 96 or 112\)",
        ),
        ({"sequence_length": 64, "segment_length": 0}, "segment_length"),
    ],
)
def test_lengths_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TokenizeConfig(**fields)


CONTROL = "Ends<|endoftext|> here </s> and <eos> and <pad> and <s>, <|begin_of_text|>! " * 6
OTHERS = "<|im_start|>user [INST] <<SYS>> a<unk>b <tool_call>x</tool_call> <|fim_prefix|> <start_of_turn> [/INST] "


def imported(folder: Path, kind: str) -> TokenizerConfig:
    """A tokenizer.json as others publish it: Llama's marks, an id gap, control tokens in the vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    if kind == "unigram":
        pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0)]
        pieces += [(chr(c), -4.0) for c in range(33, 127)] + [(c, -4.0) for c in "\n\tÜïöéñ—“”;日本語🙂ë"]
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    else:
        vocabulary = {token: i for i, token in enumerate([*letters, "<s>", "</s>"])}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(["<s>"])
        tokenizer.add_tokens([AddedToken("</s>", special=False), AddedToken("<|endoftext|>", special=True)])
        if kind == "chat":
            tokenizer.add_special_tokens(["<|im_start|>", "[INST]", "<unk>"])
            tokenizer.add_tokens(
                [AddedToken("<tool_call>", special=False), AddedToken("<|fim_prefix|>", special=False)]
            )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    body = json.loads(tokenizer.to_str())
    if kind == "gap":
        for token in body["added_tokens"]:
            token["id"] += 1000 * (token["content"] == "</s>")
        body["model"]["vocab"]["</s>"] += 1000
    (folder / f"{kind}.json").write_text(json.dumps(body))
    return pin_tokenizer(TokenizerConfig(kind="file", path=f"{kind}.json", eos_token="</s>"), folder)


@pytest.mark.parametrize("kind", ["bpe", "bytes", "file", "unigram"])
def test_strings_of_control_tokens_are_text_and_counted(tmp_path, kind):
    rows = [
        {"doc_id": f"a/{i}", "source": "a", "split": s, "text": text}
        for i, (s, text) in enumerate([("train", CONTROL), ("train", "Nothing of the kind. " * 30), ("test", CONTROL)])
    ]
    (tmp_path / "c" / "documents").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c" / "documents" / "part-0.parquet")
    config = {"bpe": TokenizerConfig(kind="bpe", vocab_size=270), "bytes": TokenizerConfig(kind="bytes")}.get(kind)
    config = config or imported(tmp_path, kind)
    sequences = TokenizeConfig(sequence_length=64, segment_length=16)
    made, tokens = make(tmp_path, LocalArtifact(tmp_path / "c"), config, sequences)
    tokenizer = load_tokenizer(made)
    ((_, ids),) = document_tokens(tokens, "test")
    inside = ids[len(tokenizer.begin) : -1].tolist()
    control = {i for i, t in tokenizer.backend.get_added_tokens_decoder().items() if t.content != "<unk>"}
    assert not set(inside) & control
    assert tokenizer.decode(inside).split() == CONTROL.split() and ids[-1] == tokenizer.eos_id
    assert tokenizer.encode("</s>")[-1] != tokenizer.eos_id
    assert token_meta(tokens)["control_strings"] == 6 * 6 * 2


@pytest.mark.parametrize("kind", ["bytes", "chat", "unigram"])
def test_marks_of_other_tokenizers_are_text_and_counted(tmp_path, kind):
    """Chat and infilling marks too, also where the tokenizer's file does not call them special."""
    documents = corpus(tmp_path / "c", {"t": ("train", 900), "v": ("test", 100)})
    table = pq.read_table(documents.path("documents")).to_pylist()
    table[1]["text"] = OTHERS * 40
    pq.write_table(pa.Table.from_pylist(table), documents.path("documents") / "part-0.parquet")
    config = TokenizerConfig(kind="bytes") if kind == "bytes" else imported(tmp_path, kind)
    made, tokens = make(tmp_path, documents, config, TokenizeConfig(sequence_length=64, segment_length=16))
    tokenizer = load_tokenizer(made)
    ids = next(iter(document_tokens(tokens, "test")))[1][len(tokenizer.begin) : -1].tolist()
    marks = {i for i, t in tokenizer.backend.get_added_tokens_decoder().items() if len(t.content) > 1}
    assert not set(ids) & marks - ({tokenizer.backend.token_to_id("<unk>")} if kind == "unigram" else set())
    assert tokenizer.decode(ids).split() == (OTHERS * 40).split()
    counted = {"bytes": 7, "chat": 8, "unigram": 7}[kind]  # that of the tokenizer's own is counted too
    assert token_meta(tokens)["control_strings"] == counted * 40


def test_control_strings_are_told_and_survive_a_resumed_run(tmp_path):
    documents = corpus(tmp_path / "c", {"t": ("train", 900), "v": ("test", 100)})
    table = pq.read_table(documents.path("documents")).to_pylist()
    table[0]["text"] = "A <eos> here. " * 40
    pq.write_table(pa.Table.from_pylist(table), documents.path("documents") / "part-0.parquet")
    pq.write_table(pa.Table.from_pylist(table[1:]), documents.path("documents") / "part-1.parquet")
    work = LocalContext(str(tmp_path / "work"))
    config = TokenizeConfig(sequence_length=64, segment_length=16)
    made, _ = make(tmp_path, documents, TokenizerConfig(kind="bytes"), config)
    for name in ("first", "again"):
        (tmp_path / name).mkdir()
        inputs = {"documents": documents, "tokenizer": made}
        summary = TOKENIZE.run(config, inputs, tmp_path / name, work)
        assert summary.metrics["control_strings"] == 40
    assert sum("40 string(s) that look like control tokens" in line and ": t" in line for line in work.warned) == 2


def test_documents_and_prompts_of_an_imported_llama_tokenizer_begin_with_its_mark(tmp_path, documents):
    config = imported(tmp_path, "file")
    sequences = TokenizeConfig(sequence_length=64, segment_length=16)
    made, tokens = make(tmp_path, documents, config, sequences)
    tokenizer = load_tokenizer(made)
    assert tokenizer.begin == [tokenizer.backend.token_to_id("<s>")]
    for split in ("train", "validation", "test"):
        for _, ids in document_tokens(tokens, split):
            assert ids[0] == tokenizer.bos_id and tokenizer.bos_id not in ids[1:].tolist()
    haystack = haystack_of(document_tokens(tokens, "test"), tokenizer.eos_id, tokenizer.bos_id)
    assert tokenizer.bos_id not in haystack.tolist()
    prompt = PromptMaker(tokenizer, haystack, "compact", 0, "evaluation").item(PASSKEY, 128, 1, 0).prompt
    assert prompt[0] == tokenizer.bos_id and len(prompt) < 128
    plain, _ = make(tmp_path, documents, config.model_copy(update={"bos_token": ""}), sequences, "plain")
    assert load_tokenizer(plain).begin == []
    with pytest.raises(StageError, match=r"tokenizer\.bos_token = '<x>': no such token"):
        make(tmp_path, documents, config.model_copy(update={"bos_token": "<x>"}), sequences, "none")


def test_a_gap_in_the_ids_leaves_room_in_the_embedding(tmp_path, documents):
    config = imported(tmp_path, "gap")
    made, tokens = make(tmp_path, documents, config, TokenizeConfig(sequence_length=64, segment_length=16))
    largest = max(load_tokenizer(made).backend.get_vocab().values())
    assert largest > load_tokenizer(made).backend.get_vocab_size()
    assert token_meta(tokens)["vocab_size"] == load_tokenizer(made).vocab_size == largest + 1
    assert vocabulary_size(config) == preview(config).vocab_size == largest + 1


def test_a_corpus_too_short_for_one_sequence_says_so(tmp_path, documents):
    with pytest.raises(StageError, match="sequence_length = 100000"):
        make(
            tmp_path,
            documents,
            TokenizerConfig(kind="bytes"),
            TokenizeConfig(sequence_length=100000, segment_length=100),
        )
