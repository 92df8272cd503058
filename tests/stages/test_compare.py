"""Two sides compared: differences whose truth is known, the same items only, what has no partner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stages.stage import StageError
from stages.statistics.intervals import hierarchical
from stages.verdict.standalone.compare import compare, mcnemar, paired_proportions
from stages.verdict.standalone.page import write_comparison
from stages.verdict.standalone.sides import Run, Side
from tests.support import LocalArtifact

LENGTHS = (256, 512)


def run(
    folder: Path, scores: np.ndarray, arm: str = "a", seed: int = 0, *, answers: int = 0, prompts: object = None
) -> Run:
    """One run whose item i has ``scores[i]`` at both lengths; ``answers``: what its needles hold."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"task": "vt", "k": 4, "length": length, "item": f"vt/{length}/{i}", "answers": [str(i + answers)], "score": s}
        for length in LENGTHS
        for i, s in enumerate(scores)
    ]
    pd.DataFrame(rows).to_parquet(folder / "tasks.parquet")
    return Run(arm, seed, LocalArtifact(folder), prompts or {})


def side(name: str, *runs: Run) -> Side:
    return Side(name, runs)


def test_mcnemar_is_the_binomial_test_of_the_items_that_only_one_has_right() -> None:
    a, b = np.array([1, 1, 1, 1, 1, 1, 0, 0, 1, 0.0]), np.array([0, 0, 0, 0, 0, 0, 1, 0, 1, 0.0])
    p, only_a, only_b = mcnemar(a, b)
    assert (only_a, only_b) == (6, 1) and p == pytest.approx(16 / 128)  # 2 (C(7,0) + C(7,1)) / 2^7
    assert mcnemar(a, a) == (1.0, 0, 0)


def test_the_interval_of_paired_proportions_covers_and_does_not_vanish() -> None:
    low, high = paired_proportions(0, 0, 100, 0.95)
    assert -0.03 < low < 0 < high < 0.03
    assert paired_proportions(100, 0, 100, 0.95)[1] == 1
    rng = np.random.default_rng(5)
    for a_alone, b_alone in ((0.3, 0.1), (0.05, 0.05), (0.0, 0.02), (0.9, 0.02)):
        drawn = rng.multinomial(50, [a_alone, b_alone, 1 - a_alone - b_alone], size=1000)
        bounds = [paired_proportions(int(a), int(b), 50, 0.95) for a, b, _ in drawn]
        assert np.mean([low <= a_alone - b_alone <= high for low, high in bounds]) > 0.93


def test_one_model_each_is_paired_by_item_and_adjusted_over_the_grid(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = (rng.random(200) < 0.7).astype(float)
    b = np.where(rng.random(200) < 0.3, 0.0, a)
    found = compare(side("A", run(tmp_path / "a", a)), side("B", run(tmp_path / "b", b)))
    assert len(found.scores) == 2 and found.unpaired == 0 and found.texts == []
    first = found.scores[0]
    lost = int(((a == 1) & (b == 0)).sum())
    assert first.p == pytest.approx(stats.binomtest(lost, lost).pvalue) and first.method.startswith("McNemar")
    assert (first.a, first.b, first.items) == (a.mean(), b.mean(), 200)
    assert first.difference == pytest.approx((a - b).mean()) and first.low < first.difference < first.high
    assert first.low > 0 and first.q == pytest.approx(first.p)  # two equal p values


def test_seeds_are_paired_and_the_contrast_is_the_claims_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    tables = rng.random((2, 3, 40)) < np.array([0.8, 0.5])[:, None, None]
    sides = [
        side(name, *(run(tmp_path / f"{name}{seed}", table[seed].astype(float), seed=seed) for seed in range(3)))
        for name, table in zip("AB", tables, strict=True)
    ]
    found = compare(*sides).scores[0]
    exact = hierarchical(tables[0].astype(float) - tables[1])
    assert (found.seeds, found.p, found.low) == (3, exact.p(), exact.low) and "t with 2 and 39 df" in found.method


def test_no_difference_is_found_where_there_is_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    found = 0
    for _ in range(10):
        a, b = (rng.random(60) < 0.6, rng.random(60) < 0.6)
        pair = [side(name, run(tmp_path / name, x.astype(float))) for name, x in (("A", a), ("B", b))]
        found += any(one.q < 0.05 for one in compare(*pair).scores)
    assert found <= 2  # of 10, half a one expected; both lengths have the same answers


def test_only_the_same_items_are_paired_and_the_others_counted(tmp_path: Path) -> None:
    a = run(tmp_path / "a", np.ones(10))
    b = run(tmp_path / "b", np.zeros(6))
    found = compare(side("A", a), side("B", b))
    assert [(one.items, one.alone_a, one.alone_b) for one in found.scores] == [(6, 4, 0)] * 2 and found.unpaired == 8
    with pytest.raises(StageError, match="none of the items of A is an item of B"):
        compare(side("A", a), side("B", run(tmp_path / "c", np.ones(10), answers=100)))


def test_other_prompts_are_refused_and_other_text_is_said(tmp_path: Path) -> None:
    def one(name: str, **prompts) -> Side:
        return side(name, run(tmp_path / name, np.ones(5), prompts=prompts))

    known = {"seed": 0, "tokenizer": "t", "haystack": "h"}
    assert compare(one("A", **known), one("B", **known)).notes == []
    assert "the text around them is not" in compare(one("A", **known), one("B", **known | {"haystack": "x"})).notes[0]
    assert "is not recorded" in compare(one("A", **known), one("B")).notes[0]
    with pytest.raises(StageError, match="drawn from another seed"):
        compare(one("A", **known), one("B", **known | {"seed": 1}))
    with pytest.raises(StageError, match="= 'compact, published'"):  # as it is written today, whatever was recorded
        compare(one("A", format="landmark"), one("B", format="compact"))
    assert compare(one("A", format="landmark"), one("B", format="published")).scores


def test_arms_and_seeds_without_a_partner_are_named(tmp_path: Path) -> None:
    runs = {(arm, seed): run(tmp_path / f"{arm}{seed}", np.ones(4), arm, seed) for arm in "xyz" for seed in (0, 1)}
    a = side("A", runs["x", 0], runs["x", 1], runs["y", 0])
    b = side("B", runs["x", 1], runs["y", 0], runs["z", 0])
    found = compare(a, b)
    assert {one.label for one in found.scores} == {"x", "y"}
    assert found.alone == ["arm z: only in B", "x, seed 0: only in A"]
    with pytest.raises(StageError, match="no arm of A"):
        compare(side("A", runs["x", 0], runs["y", 0]), side("B", runs["z", 0]))
    assert compare(side("A", runs["x", 0]), side("B", runs["z", 1])).scores[0].label == "x against z"


@pytest.mark.parametrize("same", [True, False])
def test_texts_are_compared_per_token_or_per_byte(tmp_path: Path, same: bool) -> None:
    sides = []
    for name, nats, tokens in (("A", 2.0, 100), ("B", 2.5, 100 if same else 50)):
        (tmp_path / name).mkdir()
        rows = [
            {
                "doc_id": f"{i}",
                "bucket_start": start,
                "nll_sum": nats * 50 * (1 + i % 3),
                "tokens": tokens // 2,
                "bytes": 400,
            }
            for i in range(12)
            for start in (0, 64)
        ]
        pd.DataFrame(rows).to_parquet(tmp_path / name / "perplexity.parquet")
        sides.append(side(name, Run(name, 0, LocalArtifact(tmp_path / name))))
    (one,) = compare(*sides).texts
    assert one.unit == ("nats per token" if same else "bits per byte") and one.items == 12 and one.p < 0.01
    nats = -0.5 * 100 * np.mean([1, 2, 3])  # a document
    assert one.difference == pytest.approx(nats / (100 if same else 400 * np.log(2)))


def test_the_page_has_every_cell(tmp_path: Path) -> None:
    found = compare(side("A", run(tmp_path / "a", np.ones(9))), side("B", run(tmp_path / "b", np.zeros(7))))
    page = write_comparison(found, tmp_path / "out").read_text()
    assert "vt, k = 4, 512 tokens" in page and "Benjamini-Hochberg" in page and "+100.0" in page
    assert "Verdicts" not in page and "2 items of one side" not in page and "4 items" in page
