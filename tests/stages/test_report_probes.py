"""What the report says of probes is what their tables hold."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from stages.verdict.claims.config import ClaimsConfig
from stages.verdict.report.probes import numbers
from tests.stages.synthetic import Synthetic

RULES = ClaimsConfig()


@pytest.fixture
def probed() -> Synthetic:
    """Every gate at a half costs 0.02 nats a token and every second passkey; an emptied memory 0.05 nats from the
    second window on."""
    study = Synthetic(Path(".")).ablate()
    for step, tables in study.tables.items():
        if not step.startswith("ablate/infini-delta/"):
            continue
        text, asked = (tables[f"{name}.parquet"].query("knockout == 'none'") for name in ("perplexity", "retrieval"))
        tables["probe_perplexity.parquet"] = text.assign(
            nll_sum=text["nll_sum"] + 0.02 * text["tokens"], knockout="gate_0.5"
        )
        missed = pd.Series(range(len(asked)), index=asked.index) % 2
        tables["probe_retrieval.parquet"] = asked.assign(correct=asked["correct"] * missed, knockout="gate_0.5")
        carried = pd.DataFrame(
            [
                (f"doc-{i:03}", "test", start, end, 3.0 * 100, 100)
                for i in range(6)
                for start, end in ((0, 128), (128, 512))
            ],
            columns=["doc_id", "split", "bucket_start", "bucket_end", "nll_sum", "tokens"],
        )
        emptied = carried.assign(nll_sum=carried["nll_sum"] + 5.0 * (carried["bucket_start"] > 0))
        tables["windows.parquet"] = pd.concat([carried.assign(memory="carried"), emptied.assign(memory="emptied")])
    return study


def test_probes_stand_with_what_they_cost(probed):
    found = {number.name: number for number in numbers(probed.evidence(RULES))}
    assert set(found) == {
        "probe.gate_0.5.infini-delta",
        "probe_passkey.gate_0.5.infini-delta",
        "window.infini-delta.0",
        "window.infini-delta.128",
    }
    text = found["probe.gate_0.5.infini-delta"]
    assert text.estimate == pytest.approx(math.expm1(0.02)) and text.label == "infini-delta, every gate at 0.5"
    assert {(source.step, source.table) for source in text.sources} == {
        (f"ablate/infini-delta/{seed}", "probe_perplexity.parquet") for seed in (0, 1, 2)
    }
    lost = found["probe_passkey.gate_0.5.infini-delta"]
    assert lost.estimate == pytest.approx(0.5, abs=0.02) and lost.unit == "accuracy lost"
    assert found["window.infini-delta.0"].estimate == 0
    assert found["window.infini-delta.128"].estimate == pytest.approx(math.expm1(0.05))


def test_without_probes_nothing_is_said_of_them():
    assert numbers(Synthetic(Path(".")).ablate().evidence(RULES)) == []
