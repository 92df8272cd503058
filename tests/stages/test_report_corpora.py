"""Documents of several sources are told apart in the report: each source's truth is found by itself."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from stages.verdict.claims.config import ClaimsConfig
from stages.verdict.report.numbers import by_corpus, collect
from tests.stages.synthetic import Synthetic

RULES = ClaimsConfig()


def two_sources(study: Synthetic, gain: float) -> Synthetic:
    """Every other document is mathematics, where infini-delta is better by ``gain`` nats a token more."""
    for step, tables in study.tables.items():
        for name in ("perplexity.parquet",):
            if name not in tables:
                continue
            table = tables[name]
            odd = table["doc_id"].str[-1].astype(int) % 2 == 1
            source = odd.map({True: "math/", False: "books/"})
            nats = table["nll_sum"] - (odd & step.startswith("evaluate/infini-delta/")) * gain * table["tokens"]
            tables[name] = table.assign(doc_id=source + table["doc_id"], nll_sum=nats)
    return study


def off_starts(found):
    name = "corpus.math.memory_off.infini-delta."
    starts = sorted(int(one.removeprefix(name)) for one in found if one.startswith(name))
    return starts[0], starts[-1]


def test_each_source_has_its_own_numbers():
    plain = Synthetic(Path(".")).evaluate().ablate()
    assert by_corpus(plain.evidence(RULES)) == []
    evidence = two_sources(Synthetic(Path(".")).evaluate().ablate(), 0.5).evidence(RULES)
    assert evidence.corpora == ["books", "math"]
    found = {number.name: number for number in by_corpus(evidence)}
    gap = {c: math.log1p(found[f"corpus.{c}.difference.infini-delta.local"].estimate) for c in ("books", "math")}
    assert gap["math"] - gap["books"] == pytest.approx(-0.5, abs=0.02)
    for unit in ("perplexity", "word_perplexity", "bits_per_byte"):
        assert {f"corpus.{c}.{unit}.infini-delta" for c in ("books", "math")} <= set(found)
    assert found["corpus.math.knockout.infini-delta.swap"].estimate == pytest.approx(math.expm1(0.07), abs=0.02)
    assert any(name.startswith("corpus.math.position_gap.infini-delta.") for name in found)
    first, last = (found[f"corpus.math.memory_off.infini-delta.{start}"] for start in off_starts(found))
    assert first.estimate == pytest.approx(0, abs=1e-9)  # nothing to read yet
    assert last.estimate == pytest.approx(math.expm1(0.07), abs=0.02) and last.unit.startswith("relative")
    (rows,) = {source.filter for source in found["corpus.math.perplexity.local"].sources}
    assert rows == "doc_id >= 'math/' and doc_id < 'math0'"
    assert "perplexity by corpus" in collect(evidence, []).sections


def test_the_filter_selects_the_rows_of_the_source():
    import pyarrow as pa

    from pipeline.cli.where import select
    from stages.verdict.claims.evidence import corpus_filter

    table = pa.table({"doc_id": ["math/a", "math/b/2", "math-b/a", "mathx/a", "books/1"]})
    assert select(table, corpus_filter("math"))["doc_id"].to_pylist() == ["math/a", "math/b/2"]
