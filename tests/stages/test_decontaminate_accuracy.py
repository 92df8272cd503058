"""Contamination planted on purpose: what copies is found, what quotes is left alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from bench.matching_accuracy import Result, measure
from stages.data.decontaminate.config import DecontaminateConfig
from tests.stages.test_decontaminate_match import prose


def check(results: Iterable[Result], lost: int) -> None:
    """No false alarm; at most ``lost`` of a kind slip through, of passages with many letters misread or short; of those
    that are both, a third at 8% and two thirds at 10%."""
    few = {"60 words, 8% of letters misread": 1 / 3, "60 words, 10% of letters misread": 2 / 3}
    for result in results:
        hard = result.kind.name.startswith(("60 words", "200 words, 5%", "200 words, 8%", "200 words, 10%"))
        if result.kind.wanted == "nothing":
            assert result.acted == 0, result
        slip = few.get(result.kind.name, 0) * result.planted or (lost if hard else 0)
        assert result.right >= result.planted - slip, result


def test_planted_contamination_in_synthetic_text() -> None:
    texts = [" ".join(prose(100 + n, 3000)) for n in range(15)]
    results, books, aside = measure(texts, DecontaminateConfig(), count=12)
    assert (books, aside) == (5, 0)
    check(results, lost=1)
    translated = next(result for result in results if result.kind.name.startswith("translated"))
    assert translated.found == 0


def test_planted_contamination_in_real_books(shared_data: Path) -> None:
    paths = sorted((shared_data / "pg19").glob("*/*.txt"))[::2]
    texts = (path.read_text(encoding="utf-8")[:150_000] for path in paths)
    results, _, _ = measure(texts, DecontaminateConfig(), count=20)
    check(results, lost=1)


def test_a_licence_in_every_document_would_be_found_were_it_not_filtered() -> None:
    """The licence is in all hosts: with n-grams of any number of works counted, clean documents would be touched."""
    texts = [" ".join(prose(200 + n, 2000)) for n in range(12)]
    with pytest.raises(SystemExit, match="every training text shares text"):
        measure(texts, DecontaminateConfig(max_books_per_ngram=100), count=1)
