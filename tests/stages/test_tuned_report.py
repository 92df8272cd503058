"""What the report prints of a further training: the truth that was put into the tables, before and after."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from stages.training.tuning.data import LEFT_OUT
from stages.verdict.claims.config import ClaimsConfig
from stages.verdict.claims.perplexity import perplexity_from_memory, seeds
from stages.verdict.report import tuned
from stages.verdict.report.numbers import perplexities
from stages.verdict.report.recipe import further
from tests.stages.readers import inside, never, only_up_to, perfect
from tests.stages.synthetic import ARMS, MEMORY, SEGMENT, Synthetic

RULES = ClaimsConfig()


def named(numbers):
    found = {number.name: number for number in numbers}
    assert len(found) == len(numbers)
    return found


def test_what_alignment_changed_is_printed_by_length_position_head_and_knockout(tmp_path: Path):
    forgets = inside(SEGMENT, only_up_to(256, perfect))
    study = Synthetic(tmp_path, aligned={"infini-delta": forgets}, aligned_nats={"infini-delta": 0.1}).ablate().align()
    gates = study.tables["ablate/infini-delta/0"]["gates.parquet"]
    for seed in study.seeds:
        before = study.tables[f"ablate/infini-delta/{seed}"]
        moved = before["gates.parquet"].assign(gate=lambda table: table["gate"] + 0.02)
        study.add(f"ablate/infini-delta@sft/{seed}", before | {"gates.parquet": moved})
    numbers = named(tuned.alignment_numbers(study.evidence(RULES)))
    lost = {length: numbers[f"align.length.infini-delta.sft.{length}"].estimate for length in (256, 512)}
    assert lost[256] == 0 and lost[512] == 1
    assert numbers["align.retrieval_inside.infini-delta.sft"].estimate == 0
    assert numbers["align.perplexity.infini-delta.sft"].estimate == pytest.approx(math.expm1(0.1), abs=0.01)
    assert abs(numbers["align.position.infini-delta.sft.0"].estimate) < 0.01  # the first segment did not change
    assert numbers["align.gates_mean.infini-delta.sft"].estimate == pytest.approx(0.02)
    assert len(gates) * len(study.seeds) == numbers["align.gates_mean.infini-delta.sft"].n
    heads = {name: number for name, number in numbers.items() if name.startswith("align.gate.infini-delta.sft.")}
    assert len(heads) == len(gates) and all(n.estimate == pytest.approx(0.02) for n in heads.values())
    first = gates.iloc[0]
    was = pd.concat([study.tables[f"ablate/infini-delta/{seed}"]["gates.parquet"].iloc[[0]] for seed in study.seeds])[
        "gate"
    ].mean()
    one = heads[f"align.gate.infini-delta.sft.{first.layer:.0f}.{first['head']:.0f}"]
    assert one.note == f"{was:.3f} before, {was + 0.02:.3f} after" and one.n == len(study.seeds)
    assert numbers["align.knockout.infini-delta.sft.swap"].estimate > 0.5
    assert "% before" in numbers["align.knockout.infini-delta.sft.swap"].note
    assert abs(numbers["align.perplexity.local.sft"].estimate) < 0.01
    steps = {source.step for source in numbers["align.length.infini-delta.sft.512"].sources}
    assert steps == {f"evaluate/infini-delta{of}/{seed}" for of in ("", "@sft") for seed in study.seeds}


def test_what_alignment_taught_is_printed(tmp_path: Path):
    study = Synthetic(tmp_path).align("sft").align("dpo")
    for seed in study.seeds:
        answers = [5.0 + seed, 4.0, *[3.5] * 17, 3.0 + 2 * seed]
        sft = pd.DataFrame({"loss": [None] * 20, "answer_loss": answers})
        study.add(f"align/infini-delta@sft/{seed}", {"train_log.parquet": sft})
        dpo = pd.DataFrame({"loss": [0.693] * 2 + [0.5] * 18, "answer_loss": answers})
        study.add(f"align/infini-delta@dpo/{seed}", {"train_log.parquet": dpo})
    numbers = named(tuned.alignment_numbers(study.evidence(RULES)))
    answers, preferences = (numbers[f"align.learned.infini-delta.{variant}"] for variant in ("sft", "dpo"))
    assert answers.estimate == pytest.approx((3.5 + 5.0) / 2 - (6.0 + 4.0) / 2) and answers.n == 3
    half = 4.3027 * 0.5 / 3**0.5  # by seed -1.25, -0.75 and -0.25
    assert (answers.low, answers.high) == pytest.approx((-0.75 - half, -0.75 + half), abs=1e-4)
    assert answers.note == "5.000 at first, 4.250 in the end" and "answers" in answers.label
    assert preferences.estimate == pytest.approx(0.5 - 0.693) and "preferences" in preferences.label
    assert {source.step for source in answers.sources} == {f"align/infini-delta@sft/{seed}" for seed in study.seeds}
    assert "align.learned.local.sft" not in numbers  # no log


def test_gates_of_many_heads_are_printed_by_layer(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tuned, "LISTED_HEADS", 1)
    study = Synthetic(tmp_path, aligned={}, aligned_nats={}).ablate().align()
    for seed in study.seeds:
        study.add(f"ablate/infini-delta@sft/{seed}", dict(study.tables[f"ablate/infini-delta/{seed}"]))
    gates = study.tables["ablate/infini-delta/0"]["gates.parquet"]
    found = [n for n in tuned.alignment_numbers(study.evidence(RULES)) if n.name.startswith("align.gate.")]
    assert [n.name.rpartition(".")[2] for n in found] == [str(layer) for layer in sorted(set(gates["layer"]))]
    assert all(n.estimate == 0 and n.n == len(study.seeds) * (gates["layer"] == 0).sum() for n in found)


def test_the_cost_of_fine_tuning_is_printed_for_every_arm_and_the_base(tmp_path: Path):
    study = Synthetic(tmp_path).evaluate(prompts=False)
    for arm in (*ARMS, "base"):
        for seed in study.seeds:
            after = study.tables[f"evaluate/{arm}/{seed}"]["perplexity.parquet"]
            before = after.assign(nll_sum=after["nll_sum"] - 0.05 * after["tokens"])
            study.add(f"evaluate/{arm}@pretrained/{seed}", {"perplexity.parquet": before})
    numbers = named(tuned.finetune_costs(study.evidence(RULES)))
    against = {f"finetune.{arm}.local" for arm in MEMORY}
    assert set(numbers) == {f"finetune.{arm}" for arm in (*ARMS, "base")} | against
    assert all(n.estimate == pytest.approx(math.expm1(0.05)) for name, n in numbers.items() if name not in against)
    after = numbers["finetune.infini-linear.local"]
    assert after.estimate == pytest.approx(math.expm1(-0.08), abs=0.01) and "after fine-tuning" in after.label
    assert not any("@" in source.step for source in after.sources)


def test_language_modelling_is_judged_before_fine_tuning_on_tasks(tmp_path: Path):
    """Arms that read better with a memory, and whose fine-tuning on tasks costs the memory arms more than it gained."""
    study = Synthetic(tmp_path).evaluate(prompts=False).positive_control()
    alone = Synthetic(tmp_path).evaluate(prompts=False).positive_control().evidence(RULES)
    for arm in (*ARMS, "base"):
        for seed in study.seeds:
            before = study.tables[f"evaluate/{arm}/{seed}"]["perplexity.parquet"]
            cost = 0.2 if arm.startswith("infini") else 0.0
            after = before.assign(nll_sum=before["nll_sum"] + cost * before["tokens"])
            study.add(f"evaluate/{arm}@pretrained/{seed}", {"perplexity.parquet": before})
            study.add(f"evaluate/{arm}/{seed}", study.tables[f"evaluate/{arm}/{seed}"] | {"perplexity.parquet": after})
    tuned_study = study.evidence(RULES)
    for claim in (perplexity_from_memory, seeds):
        without, found = claim(alone), claim(tuned_study)
        assert found.decision == without.decision == "supported"
        assert found.headline is not None and without.headline is not None
        assert found.headline.estimate == without.headline.estimate < 0
        read = {source.step.split("/")[1] for source in found.headline.sources}
        assert len(read) == 2 and all(arm.endswith("@pretrained") for arm in read)
        assert "before fine-tuning" in found.reason and "before fine-tuning" not in without.reason
    levels = named(perplexities(tuned_study))
    assert levels["perplexity.infini-delta"].estimate == named(perplexities(alone))["perplexity.infini-delta"].estimate
    assert levels["perplexity.infini-delta"].label.endswith("before fine-tuning")
    assert named(tuned.finetune_costs(tuned_study))["finetune.infini-delta"].estimate == pytest.approx(math.expm1(0.2))


def test_a_gain_in_text_that_fine_tuning_alone_brought_supports_nothing(tmp_path: Path):
    """Arms that read alike before it, of which the memory arms read better after it."""
    study = Synthetic(tmp_path, effect=dict.fromkeys(MEMORY, 0.0) | {"full": -0.1}).evaluate(prompts=False)
    study.positive_control()
    for arm in (*ARMS, "base"):
        for seed in study.seeds:
            before = study.tables[f"evaluate/{arm}/{seed}"]["perplexity.parquet"]
            gain = 0.2 if arm in MEMORY else 0.0
            after = before.assign(nll_sum=before["nll_sum"] - gain * before["tokens"])
            study.add(f"evaluate/{arm}@pretrained/{seed}", {"perplexity.parquet": before})
            study.add(f"evaluate/{arm}/{seed}", {"perplexity.parquet": after})
    for claim in (perplexity_from_memory, seeds):
        assert claim(study.evidence(RULES)).decision != "supported"
    assert named(tuned.finetune_costs(study.evidence(RULES)))["finetune.infini-delta.local"].estimate < -0.15


def test_a_study_without_further_training_has_none_of_these(tmp_path: Path):
    study = Synthetic(tmp_path, reader=never).evaluate(prompts=False)
    assert tuned.alignment_numbers(study.evidence(RULES)) == [] == tuned.finetune_costs(study.evidence(RULES))
    assert further({"base": {}, "pretrain": {}}, study.evidence(RULES)) == []
    assert isinstance(study.evidence(RULES).variant("sft", "evaluate", "retrieval.parquet"), pd.DataFrame)


def test_the_recipe_says_what_was_trained_on(tmp_path: Path):
    study = Synthetic(tmp_path).evaluate()
    for step, count in (("finetune/{}@summaries/{}", 1200), ("align/{}@sft/{}", 2), ("align/{}@dpo/{}", 3)):
        for arm, seed in study.runs():
            study.add(step.format(arm, seed), {}, {"data.json": {"skipped": {LEFT_OUT: count, "no text": 7}}})
    pace = {"steps": 60, "batch_sequences": 4, "lr": 1e-3}
    phases = [{"until": 0.5, "length": 1280}, {"until": 1.0, "length": 5120}]
    tasks = {"tasks": {"passkey": 2, "vt": 1}, "phases": phases, "text_share": 0.25}
    rows = further(
        {
            "finetune": pace | {"tasks": tasks},
            "finetune_summaries": pace | {"pairs": {"max_tokens": 32768}},
            "align": {
                "variants": {
                    "sft": pace | {"method": "sft", "length": 64, "data": {}},
                    "dpo": pace | {"method": "dpo", "after": "sft", "length": 96},
                }
            },
        },
        study.evidence(RULES),
    )
    assert [row["arms"] for row in rows] == [
        "passkey and vt (1,280 tokens until 50%, 5,120 tokens until 100%, 25% text); "
        "60 steps of 4, peak learning rate 0.001",
        "pairs of text and summary, up to 32,768 tokens, without 1,200 rows that hold text of what is asked; "
        "60 steps of 4, peak learning rate 0.001",
        "SFT, given rows of up to 64 tokens, without 2 rows that hold text of what is asked; "
        "60 steps of 4, peak learning rate 0.001",
        "DPO, after sft, rows made from the training text of up to 96 tokens; 60 steps of 4, peak learning rate 0.001",
    ]
    assert [bool(row["base"]) for row in rows] == [True, False, False, False]
