"""A real NLI model by path, end to end: trained here on sentence pairs of own templates, saved, read by ``rate``.

It shows that the path works, and that what is entailed is told from what is not. It says nothing of books.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from stages.evidence.rate.config import RateConfig, pin_models
from stages.evidence.rate.nli import classifier
from stages.evidence.rate.stage import STAGE
from stages.evidence.summarize.items import Example
from tests.stages.summary_inputs import artifacts
from tests.support import LocalContext

transformers = pytest.importorskip("transformers")
WHO = ("anna", "boris", "clara", "david", "edith", "frank", "greta", "henry")
DID = ("sold", "lost", "found", "painted", "broke", "hid")
WHAT = ("horse", "boat", "letter", "house", "clock", "lamp", "sword", "coat")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", ".", *WHO, *DID, *WHAT)
ENTAILMENT = 1


def told(rng: random.Random) -> str:
    return f"{rng.choice(WHO).capitalize()} {rng.choice(DID)} the {rng.choice(WHAT)}."


def pair(rng: random.Random) -> tuple[str, str, int]:
    """(two sentences, one of them or one of another story, does it follow?)."""
    said = [told(rng) for _ in range(2)]
    follows = rng.random() < 0.5
    asked = rng.choice(said) if follows else next(s for s in iter(lambda: told(rng), None) if s not in said)
    return " ".join(said), asked, ENTAILMENT if follows else 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nli") / "model"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=32)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        id2label={0: "not_entailment", ENTAILMENT: "entailment"},
        label2id={"not_entailment": 0, "entailment": ENTAILMENT},
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for batch in batches(0, 500):
        first, second, truth = zip(*batch, strict=True)
        read = tokenizer(list(first), list(second), padding=True, return_tensors="pt")
        optimizer.zero_grad()
        model(**read, labels=torch.tensor(truth)).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def batches(seed: int, count: int) -> Iterator[list[tuple[str, str, int]]]:
    rng = random.Random(seed)
    for _ in range(count):
        yield [pair(rng) for _ in range(48)]


def test_it_tells_what_follows_from_what_does_not_on_pairs_it_has_not_seen(trained):
    rows = next(batches(1, 1)) * 1
    p = classifier(str(trained), "cpu")([(premise, hypothesis) for premise, hypothesis, _ in rows])
    right = sum((one > 0.5) == bool(truth) for one, (*_, truth) in zip(p, rows, strict=True))
    assert right >= 0.85 * len(rows), right


def test_rate_by_it_prefers_what_the_text_says(trained, tmp_path):
    """Its probabilities stand in ratings.parquet; the text's own reference is above another book's."""
    rng = random.Random(5)
    items = []
    for book in range(6):
        said = [told(rng) for _ in range(8)]
        items.append(
            Example(
                "condense",
                "chapter",
                f"b{book}",
                f"b{book}",
                "",
                " ".join(said),
                (f"{said[1]} {said[5]}",),
                rows=(book + 1,),
            )
        )
    inputs = artifacts(tmp_path / "in", items)
    config = pin_models(
        RateConfig.model_validate({"nli": {"path": str(trained), "window_words": 12, "windows": 4}}), tmp_path
    )
    (tmp_path / "out").mkdir()
    summary = STAGE.run(config, inputs, tmp_path / "out", LocalContext(str(tmp_path)))
    table = pd.read_parquet(tmp_path / "out" / "ratings.parquet").groupby("system")["nli_faithful"].mean()
    assert table["reference"] > 0.8 and table["lead"] > 0.8, "said in the text"
    assert table["shuffled"] < table["reference"] - 0.3, "said in another"
    assert json.loads((trained / "config.json").read_text())["id2label"]["1"] == "entailment"
    assert summary.metrics["lead.nli"] > summary.metrics["shuffled.nli"], "C10 asks this before entailment may decide"
