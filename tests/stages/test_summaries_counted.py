"""What is counted of a summary, and the summaries that no model wrote: by hand and against a slow reference."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest

from stages.evidence.summarize import baselines, items
from stages.evidence.summarize.lexical import SourceText, measured, names, numbers
from stages.evidence.summarize.rouge import rouge
from stages.evidence.summarize.stage import SummarizeConfig
from tests.stages.evaluation_inputs import build
from tests.stages.test_summarize import run

BOOK = "Mr. Gulliver sailed to Lilliput in 1699. There the king Golbasto received him with three hundred men of arms."


def test_of_several_references_the_best_counts_and_the_mean_is_geometric():
    one, two = rouge("a b c d", "a b x y"), rouge(["q r s t", "a b c d"], "a b x y")
    assert two == pytest.approx(one)
    assert one["rouge"] == pytest.approx((one["rouge1"] * one["rouge2"] * one["rougeL"]) ** (1 / 3))
    assert rouge("a b", "c d")["rouge"] == 0


def test_names_and_numbers_that_the_book_has_and_that_it_has_not():
    said = "Then came Gulliver to Lilliput and met Robinson there. He counted 300 men in the year 1699, and 41 ships."
    assert names(said) == {"Gulliver", "Lilliput", "Robinson"}
    assert numbers("In 1,699 there were three hundred") == {"1699", "3", "100"}
    found = measured(["It tells how Gulliver met Golbasto there."], said, SourceText.of(BOOK))
    assert found["names_true"] == pytest.approx(2 / 3) and found["names_kept"] == 0.5
    assert found["numbers_true"] == pytest.approx(1 / 3)  # 1699; 300 is not written so, 41 is invented
    nothing = measured(["A reference."], "", SourceText.of(BOOK))
    assert nothing["words"] == 0 and nothing["copied"] is None and nothing["names_true"] is None


def test_copied_new_and_repeated_shares():
    copied = measured(["x"], BOOK, SourceText.of(BOOK))
    assert copied["copied"] == 1 and copied["novel"] == 0 and copied["repeated"] == 0
    own = measured(["x"], "one two three one two three one two three", SourceText.of(BOOK))
    assert own["copied"] == 0 and own["novel"] == 1 and own["repeated"] == pytest.approx(4 / 7)


def slow_centrality(said: list[str]) -> np.ndarray:
    """The equation, with the whole matrix of cosines and an eigenvector."""
    vocabulary = sorted({w for s in said for w in s.lower().split()})
    counts = np.array([[s.lower().split().count(w) for w in vocabulary] for s in said], dtype=float)
    weighted = counts * (np.log(len(said) / (counts > 0).sum(0)) + 1)
    unit = weighted / np.linalg.norm(weighted, axis=1, keepdims=True)
    cosines = unit @ unit.T
    walk = baselines.DAMPING * (cosines / cosines.sum(1, keepdims=True)).T + (1 - baselines.DAMPING) / len(said)
    values, vectors = np.linalg.eig(walk)
    rank = np.abs(np.real(vectors[:, np.argmax(np.real(values))]))
    return rank / rank.sum()


def test_centrality_without_the_matrix_is_that_with_it():
    words = ["river", "wall", "bridge", "town", "asked", "went", "along"]
    said = [" ".join(random.Random(i).choices(words, k=9)) for i in range(25)]
    assert baselines.centrality(said) == pytest.approx(slow_centrality(said), abs=1e-8)
    assert baselines.centrality(["alone"]) == pytest.approx([1])


def test_lead_and_central_keep_whole_sentences_within_the_room():
    text = "The river ran by the town. A wall stood there. The river ran by the wall of the town. Nobody asked why."

    def fits(said: str) -> bool:
        return len(said.split()) <= 11

    assert baselines.lead(text, fits) == "The river ran by the town. A wall stood there."
    assert baselines.central(text, fits) == "The river ran by the wall of the town."
    assert baselines.lead("word " * 50, fits) == " ".join(["word"] * 11), "no sentence fits: as many words as do"
    assert baselines.central("", fits) == ""


def test_shuffled_references_are_of_other_books():
    made = [
        items.SummaryExample("condense", "chapter", f"{book}/{n}", book, "", "text", (f"of {book}{n}",))
        for book in "aab"
        for n in range(2)
    ]
    found = baselines.shuffled(made)
    assert all(text is not None and text[3] != example.book for text, example in zip(found, made, strict=True))
    assert baselines.shuffled(made[:4]) == [None] * 4, "one book only"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return build(tmp_path_factory.mktemp("inputs"))


def test_greedy_beside_sampling_and_further_lengths(inputs, tmp_path):
    from stages.data.tokens.load import load_tokenizer

    config = SummarizeConfig(
        documents=2,
        prompt_tokens=60,
        new_tokens=12,
        min_opening_words=8,
        decodings=("sample", "greedy"),
        further_lengths=(40, "whole"),
    )
    rows, summary, _ = run(config, inputs, load_tokenizer(inputs["tokenizer"]), tmp_path / "a")
    cells = {(r["task"], r["length"], r["decoding"]) for r in rows}
    assert cells == {("continue", "60", d) for d in ("sample", "greedy")} | {
        ("condense", length, d) for length in ("60", "40", "whole") for d in ("sample", "greedy")
    }
    whole = [r for r in rows if r["length"] == "whole" and r["doc_id"] == "test0"]
    assert whole[0]["prompt_tokens"] > 500 and {r["prompt_tokens"] for r in rows if r["length"] == "40"} == {40}
    written = {(r["task"], r["doc_id"], r["decoding"]): r["hypothesis"] for r in rows if r["length"] == "60"}
    assert any(written[t, d, "sample"] != written[t, d, "greedy"] for t, d, _ in written)
    assert "summaries.md" in summary.figures
    systems = pd.read_parquet(tmp_path / "a" / "items" / "baselines.parquet")
    assert set(systems["system"]) == {"lead", "central", "shuffled"} and (systems["rouge1"] >= 0).all()


def test_settings_without_effect_are_refused():
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="further_lengths has no effect"):
        SummarizeConfig(prompt_tokens=8, new_tokens=8, tasks=("continue",), further_lengths=(16,))
    with pytest.raises(ValidationError, match="prompt_tokens is asked already"):
        SummarizeConfig(prompt_tokens=8, new_tokens=8, further_lengths=(8,))
