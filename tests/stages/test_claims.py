"""The verdicts find the truth that was put into the tables, and say so when they cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from stages.claims.config import Binding, ClaimsConfig, CleanData, Retrieval
from stages.claims.evidence import Evidence, paired
from stages.claims.table import CLAIMS, decide
from stages.claims.verdict import Verdict
from stages.stage import StageError
from tests.stages.synthetic import ARMS, TRUNK, K, Synthetic

RULES = ClaimsConfig(resamples=400)
NO_EFFECT = {"infini-linear": 0.01, "infini-delta": 0.01}  # what the baselines have too


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Synthetic]:
    return lambda **truth: Synthetic(tmp_path, **truth)


def evidence(study: Synthetic, rules: ClaimsConfig = RULES) -> Evidence:
    return Evidence(study.inputs, arms=ARMS, seeds=study.seeds, trunk=TRUNK, rules=rules)


def verdict(study: Synthetic, claim: str, rules: ClaimsConfig = RULES) -> Verdict:
    return decide(next(c for c in CLAIMS if c.id == claim), evidence(study, rules))


def test_a_study_without_artifacts_measures_nothing_but_the_formulas(study):
    empty = evidence(study())
    verdicts = [decide(claim, empty) for claim in CLAIMS]
    assert [v.claim for v in verdicts] == [f"C{i}" for i in range(1, 14)]
    assert all(v.decision == "not measured" and v.reason for v in verdicts if v.claim != "C9")
    assert verdicts[8].decision == "supported"  # C9 rests on shapes alone


@pytest.mark.parametrize("claim", ["C4", "C11", "C12"])
def test_claims_without_a_stage_are_not_measured_even_in_a_full_study(study, claim):
    assert verdict(study().evaluate().summarize(), claim).label == "not measured"


# --- C2, C13 --------------------------------------------------------------------------------------------------------
def test_a_true_perplexity_effect_is_supported_with_its_size(study):
    found = verdict(study().evaluate(), "C2")
    assert found.decision == "supported"
    assert -0.13 < found.low < found.estimate < found.high < -0.08  # 0.08 nats and more beyond the first segment
    assert {source.step for source in found.sources} >= {"evaluate/infini-linear/0", "evaluate/local/2"}


def test_no_perplexity_effect_is_refuted_only_behind_a_passed_positive_control(study):
    quiet = {"effect": NO_EFFECT, "seed_noise": 0.0005}
    assert verdict(study(**quiet).evaluate(), "C2").label == "inconclusive (no positive control)"
    assert verdict(study(**quiet).evaluate().positive_control(), "C2").decision == "refuted"
    failed = study(**quiet, control=dict.fromkeys(K, 1 / 64)).evaluate().positive_control()
    assert verdict(failed, "C2").label == "inconclusive (positive control failed)"


def test_a_noisy_null_is_underpowered_and_names_the_detectable_effect(study):
    found = verdict(study(effect=NO_EFFECT, seed_noise=0.03).evaluate().positive_control(), "C2")
    assert found.label == "inconclusive (underpowered)"
    assert "detectable at 80% power" in found.reason


def test_one_seed_decides_nothing_about_arms(study):
    only = study(seeds=(0,)).evaluate().ablate().positive_control()
    for claim in ("C1", "C2", "C3", "C5", "C13"):
        assert verdict(only, claim).label == "inconclusive (too few seeds)", claim


def test_a_worse_arm_refutes_without_needing_the_control(study):
    worse = study(effect={"infini-linear": 0.08, "infini-delta": 0.08}).evaluate()
    assert verdict(worse, "C2").decision == "refuted"


def test_one_of_two_memory_arms_is_enough_to_support(study):
    found = verdict(study(effect={"infini-linear": 0.01, "infini-delta": -0.08}).evaluate(), "C2")
    assert found.decision == "supported" and "infini-delta" in found.reason
    assert found.estimate < -0.08  # the headline is the supporting arm's


def test_an_arm_must_beat_every_primary_baseline(study):
    beaten = study(effect={"infini-linear": -0.08, "infini-delta": -0.08, "transformer-xl": -0.2}).evaluate()
    assert verdict(beaten, "C2").decision == "refuted"
    weak = RULES.model_copy(update={"perplexity_from_memory": RULES.perplexity_from_memory.model_copy(
        update={"baselines": ("local",)})})  # fmt: skip
    assert verdict(beaten, "C2", weak).decision == "supported"


def test_gap_is_compared_with_the_spread_between_seeds_and_every_seed_is_printed(study):
    found = verdict(study().evaluate(), "C13")
    assert found.decision == "supported" and "in favour of infini-linear" in found.reason
    assert all(f"{seed}: −" in found.reason for seed in (0, 1, 2))
    assert verdict(study(effect=NO_EFFECT, seed_noise=0.02).evaluate(), "C13").decision == "inconclusive"


def test_documents_left_contaminated_are_scored_by_no_claim(study):
    dirty = study(coverage_after=0.4).decontaminate().evaluate()
    assert "doc-001" not in set(evidence(dirty).perplexity["doc_id"])
    assert verdict(dirty, "C2").n == dirty.documents - 1


# --- C1 -------------------------------------------------------------------------------------------------------------
def test_a_knock_out_that_costs_retrieval_supports_use_of_the_memory(study):
    found = verdict(study().ablate(), "C1")
    assert found.decision == "supported" and found.low > 0.5


def test_a_costless_knock_out_refutes_only_where_there_was_something_to_lose(study):
    costless = {"passkey": 1.0, "binding": dict.fromkeys(K, 1.0), "knockout_accuracy": 1.0, "knockout_nats": 0.001}
    assert verdict(study(**costless).ablate().positive_control(), "C1").decision == "refuted"
    floor = {"passkey": 0.0, "binding": dict.fromkeys(K, 0.0), "knockout_accuracy": 0.0, "knockout_nats": 0.001}
    found = verdict(study(**floor).ablate().positive_control(), "C1")
    assert found.label == "inconclusive (underpowered)" and "too little" in found.reason


def test_a_knock_out_that_costs_perplexity_alone_is_no_proof_of_uselessness(study):
    truth = {"passkey": 1.0, "binding": dict.fromkeys(K, 1.0), "knockout_accuracy": 1.0, "knockout_nats": 0.2}
    assert verdict(study(**truth).ablate().positive_control(), "C1").decision == "inconclusive"


# --- C3, C5 ---------------------------------------------------------------------------------------------------------
def test_passkeys_found_everywhere_are_supported(study):
    assert verdict(study(passkey=1.0).evaluate(), "C3").decision == "supported"


def test_failure_beyond_the_window_counts_only_if_the_task_was_learned(study):
    learned = study(passkey=0.1).evaluate().positive_control()
    assert verdict(learned, "C3").decision == "refuted"
    unlearned = study(passkey=0.0, within=0.02).evaluate().positive_control()
    assert verdict(unlearned, "C3").label == "inconclusive (task not learned)"


def test_too_few_prompts_are_no_support(study):
    many = RULES.model_copy(update={"retrieval": Retrieval(minimum_trials=10_000)})
    assert verdict(study(passkey=1.0).evaluate(), "C3", many).label == "inconclusive (underpowered)"
    elsewhere = RULES.model_copy(update={"retrieval": Retrieval(length=4096)})
    assert verdict(study().evaluate(), "C3", elsewhere).decision == "not measured"


def test_set_without_binding_is_refuted_and_binding_is_supported(study):
    many = {"trials": 150}
    assert verdict(study(**many).evaluate().positive_control(), "C5").decision == "refuted"
    assert verdict(study(binding=dict.fromkeys(K, 0.97)).evaluate(), "C5").decision == "supported"


def test_binding_can_be_decided_by_the_control_models(study):
    rules = RULES.model_copy(update={"binding": Binding(evidence="control")})
    assert verdict(study().positive_control(), "C5", rules).decision == "refuted"
    bound = study(control=dict.fromkeys(K, 1.0)).positive_control()
    assert verdict(bound, "C5", rules).decision == "supported"
    assert verdict(study().evaluate(), "C5", rules).decision == "not measured"


# --- C6 to C10 ------------------------------------------------------------------------------------------------------
def test_capacity_below_at_and_above_the_rank_bound(study):
    below = verdict(study().capacity(middle=40), "C6")
    assert below.decision == "refuted" and 25 < below.estimate < 40
    assert verdict(study().capacity(middle=120), "C6").decision == "supported"
    assert verdict(study().capacity(middle=75), "C6").label == "inconclusive (rules differ)"


@pytest.mark.parametrize(("peak", "decision"), [(1.4, "supported"), (2.7, "refuted")])
def test_saturation_follows_the_worst_seed(study, peak, decision):
    assert verdict(study(lambda_max=peak).pretrain(), "C7").decision == decision


def test_clean_data_needs_an_audit_that_finds_its_canaries(study):
    assert verdict(study().decontaminate(), "C8").decision == "supported"
    assert verdict(study(canaries_acted=30).decontaminate(), "C8").label == "inconclusive (audit misses)"
    dirty = verdict(study(coverage_after=0.4).decontaminate(), "C8")
    assert dirty.decision == "refuted" and dirty.estimate == pytest.approx(0.4)
    lenient = RULES.model_copy(update={"clean_data": CleanData(coverage_limit=0.5)})
    assert verdict(study(coverage_after=0.4).decontaminate(), "C8", lenient).decision == "supported"


def test_the_published_ratio_and_the_honest_ones(study):
    found = verdict(study(), "C9")
    values = {number.name: number.estimate for number in found.numbers}
    assert found.estimate == pytest.approx(115.7, abs=0.1)
    assert values["compression.infini.live"] == pytest.approx(4.5, abs=0.05)
    assert values["compression.measured.paper"] == 128 * 129 * 8 * 12
    assert values["compression.measured.local"] == 0


def test_rouge_alone_never_decides(study):
    found = verdict(study().summarize(), "C10")
    assert found.label == "inconclusive (ROUGE only)" and found.estimate is not None


# --- evidence -------------------------------------------------------------------------------------------------------
def test_pairs_keep_only_items_that_every_seed_of_both_sides_has():
    a = pd.DataFrame({"seed": [0, 0, 1, 1], "item": ["x", "y", "x", "y"], "v": [1.0, 2.0, 3.0, 4.0]})
    b = pd.DataFrame({"seed": [0, 1, 1, 2], "item": ["x", "x", "y", "x"], "v": [0.5, 0.5, 0.5, 0.5]})
    pair = paired(a, b, "item", "v")
    assert pair is not None
    assert pair.items == ("x",) and pair.seeds == (0, 1)
    assert pair.differences.tolist() == [[0.5], [2.5]]


def test_a_damaged_table_is_named_with_its_step_and_the_fix(study):
    broken = study().evaluate()
    (broken.inputs["evaluate/local/0"].directory / "perplexity.parquet").write_bytes(b"not parquet")
    with pytest.raises(StageError, match="evaluate/local/0"):
        verdict(broken, "C2")


def test_every_rule_is_stated_from_its_settings():
    rules = ClaimsConfig(minimum_seeds=5)
    stated = {claim.id: claim.rule(rules) for claim in CLAIMS}
    assert "5 seeds" in stated["C2"] and "90%" in stated["C3"] and "gate_closed" in stated["C1"]
