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


@pytest.fixture
def inside(probed) -> Synthetic:
    """Gates that reach .8 and stay there; item 1 of 2 is lost after 4 segments; layer 1 carries all."""
    probed.pretrain()
    for step, tables in probed.tables.items():
        if step.startswith("pretrain/infini-delta/") or step.startswith("ablate/infini-delta/"):
            gates = [(s, layer, 0, min(0.8, 0.5 + s / 100)) for s in (0, 10, 20, 30, 40) for layer in (0, 1)]
            if step.startswith("pretrain/"):
                tables["gates.parquet"] = pd.DataFrame(gates, columns=["step", "layer", "head", "gate"])
                continue
            tables["recall.parquet"] = pd.DataFrame(
                [
                    (f"i{asked}{count}{n}", 2, asked, count, int(asked == 1 or count == 1), 0.1, n)
                    for asked in (0, 1)
                    for count in (1, 4)
                    for n in range(8)
                ],
                columns=["item", "items", "asked", "segments", "correct", "answer_nll", "distance"],
            )
            tables["layers.parquet"] = pd.DataFrame(
                [(layer, "swap", "passkey", f"p{n}", int(layer == 0), 1) for layer in (0, 1) for n in range(8)],
                columns=["layer", "knockout", "task", "item", "correct", "intact"],
            )
            tables["spectrum.parquet"] = pd.DataFrame(
                [("a", n, 8 * (n + 1), 0, 0, float(n + 1), [2.0, 1.0, 1.0]) for n in range(4)],
                columns=["doc_id", "segment", "tokens", "layer", "head", "z_norm", "singular_values"],
            )
    return probed


def test_what_is_inside_is_said_and_drawn(inside, tmp_path):
    from stages.verdict.report.figures import probes
    from stages.verdict.report.figures.style import finish, settings

    evidence = inside.evidence(RULES)
    found = {number.name: number for number in numbers(evidence)}
    shares = {(a, j): found[f"recall.infini-delta.2.{a}.{j}"].estimate for a in (0, 1) for j in (1, 4)}
    assert shares == {(0, 1): 1, (0, 4): 0, (1, 1): 1, (1, 4): 1}
    assert found["recall.infini-delta.2.0.4"].label == "infini-delta, item 1 of 2 after 4 segments"
    assert found["layer.swap.0.infini-delta"].estimate == 0 and found["layer.swap.1.infini-delta"].estimate == 1
    assert found["gates.moved.infini-delta"].estimate == 0  # settled since step 30
    with settings():
        for draw in (probes.gates_over_training, probes.recall, probes.spectrum, probes.windows):
            drawing = draw(evidence, found)
            assert drawing is not None and drawing.data
            finish(drawing, tmp_path)
    spectrum = probes.spectrum(evidence, found)
    assert {(row["of_0.5"], row["of_0.9"]) for row in spectrum.data} == {(1.0, 3.0)}
    assert len(probes.gates_over_training(evidence, found).data) == 3 * 10


def test_without_probes_nothing_is_said_of_them():
    assert numbers(Synthetic(Path(".")).ablate().evidence(RULES)) == []
