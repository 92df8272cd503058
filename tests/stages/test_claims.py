"""The verdicts find the truth that was put into the tables, and say so when they cannot."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from stages.data.tasks.config import RetrievalConfig
from stages.stage import StageError
from stages.verdict.claims.config import ClaimsConfig, CleanData, Retrieval
from stages.verdict.claims.effects import effect
from stages.verdict.claims.evidence import Evidence, crossed, paired
from stages.verdict.claims.table import CLAIMS, decide
from stages.verdict.claims.verdict import Verdict
from tests.stages.readers import complete, only_up_to
from tests.stages.synthetic import ARMS, CONTROL_ARMS, EFFECT, MEMORY, TRUNK, K, Synthetic

RULES = ClaimsConfig()
COMPOSED = RetrievalConfig(
    format="compact",
    lengths=(256,),
    trials=1,
    binding_trials=0,
    control_trials=0,
    tasks={
        name: {"lengths": (256, 512), "trials": 60, "k": (k,)}
        for name, k in (("vt", 2), ("niah_multikey_1", 2), ("niah_multiquery", 2), ("qa_2", 1))
    },
)


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Synthetic]:
    return lambda **truth: Synthetic(tmp_path, **truth)


def evidence(study: Synthetic, rules: ClaimsConfig = RULES) -> Evidence:
    return study.evidence(rules)


def verdict(study: Synthetic, claim: str, rules: ClaimsConfig = RULES) -> Verdict:
    return decide(next(c for c in CLAIMS if c.id == claim), evidence(study, rules))


def test_a_study_without_artifacts_measures_nothing_but_the_formulas(study):
    empty = evidence(study())
    verdicts = [decide(claim, empty) for claim in CLAIMS]
    assert len({v.claim for v in verdicts}) == 17
    assert all(v.decision == "not measured" and v.reason for v in verdicts if not v.claim.startswith("C9"))


@pytest.mark.parametrize("claim", ["C11", "C12"])
def test_claims_without_a_stage_are_not_measured_even_in_a_full_study(study, claim):
    assert verdict(study().evaluate().summarize(), claim).label == "not measured"


def test_compositional_tasks_are_not_measured_where_none_was_asked(study):
    found = verdict(study().evaluate(), "C4")
    assert found.label == "not measured" and "no compositional task was asked" in found.reason


def test_compositional_tasks_have_their_lengths_and_gains_beside_the_verdict(study):
    numbers = {
        n.name: n for n in verdict(study(asked=COMPOSED, composed=only_up_to(300, complete)).evaluate(), "C4").numbers
    }
    assert numbers["composed.infini-delta.vt.k2.512"].estimate == 0
    assert numbers["task_effective.vt.k2.infini-delta"].estimate == 256
    assert numbers["task_effective.vt.k2.full"].estimate == 512 and numbers["task_effective.vt.k2.local"].estimate == 0
    gain = numbers["task_gain.vt.k2.256.infini-delta.local"]
    assert gain.estimate == 1 and gain.note.endswith("over 32 cells") and len(gain.sources) == 6
    assert "task_gain.vt.k2.256.infini-delta.sliding-window" in numbers


# --- what the oracle's table of verdicts does not say -----------------------------------------------------------
def test_a_true_perplexity_effect_is_supported_with_its_size_and_rows(study):
    found = verdict(study().evaluate(), "C2")
    assert found.decision == "supported"
    assert -0.11 < found.low < found.estimate < found.high < -0.05  # 0.08 nats beyond the first segment
    assert {source.step for source in found.sources} >= {"evaluate/infini-linear/0", "evaluate/local/2"}


def test_competitors_and_the_base_are_printed_beside_without_a_verdict(study):
    found = verdict(study().evaluate(), "C2")
    beside = {number.name: number for number in found.numbers if number.decision is None}
    assert "perplexity.infini-linear.sliding-window" in beside and "perplexity.infini-delta.full" in beside
    assert beside["perplexity.local.base"].high < 0


def test_an_open_verdict_says_what_would_decide_it(study):
    found = verdict(study(effect=EFFECT | dict.fromkeys(MEMORY, -0.008), seed_noise=0.01).evaluate(), "C2")
    assert found.label == "inconclusive (underpowered)"
    assert "seeds" in found.summary and any(character.isdigit() for character in found.summary)


@pytest.mark.parametrize(("nats", "decision"), [(0.1, "refuted"), (0.03, "inconclusive")])
def test_alignment_that_costs_text_is_shown_by_what_it_costs(study, nats, decision):
    """Not by the passkeys, of which none is lost."""
    found = verdict(study(aligned_nats={"infini-delta": nats}).align(), "C11")
    assert found.decision == decision and found.estimate == pytest.approx(np.expm1(nats), abs=0.01)
    assert found.unit == "relative perplexity added" and "perplexity beyond the first segment" in found.summary
    named = [number.name for number in found.numbers]
    assert len(named) == len(set(named)) == 4  # both numbers of both arms


def test_one_seed_decides_nothing_about_arms(study):
    only = study(seeds=(0,)).evaluate().ablate().positive_control()
    for claim in ("C1", "C2", "C3", "C5a", "C5b", "C13"):
        assert verdict(only, claim).label == "inconclusive (too few seeds)", claim
    for claim in ("C5a", "C7", "C13"):  # drawn over seeds alone: one has no interval
        assert (found := verdict(only, claim)).low is None and found.high is None, claim
        assert not any(abs(end) > 1e100 for number in found.numbers for end in (number.low, number.high) if end)


def test_one_seed_with_one_document_has_no_interval(study):
    one = paired(*(pd.DataFrame({"seed": [0], "item": ["a"], "x": [x]}) for x in (2.0, 1.9)), "item", "x")
    number = effect(one, RULES).saved("name", "label", "relative perplexity")
    assert number.low is None and number.high is None and number.estimate < 0


def test_every_seed_is_printed_and_the_direction_is_in_words(study):
    found = verdict(study().evaluate(), "C13")
    assert all(f"{seed}: −" in found.reason for seed in (0, 1, 2)) and "infini-linear has the lower" in found.reason
    worse = study(effect=EFFECT | dict.fromkeys(MEMORY, 0.08)).evaluate().positive_control()
    assert "local has the lower perplexity" in verdict(worse, "C13").summary


@pytest.mark.parametrize(("bound", "row", "expected"), [(True, 0.1, "supported"), (False, 1.0, "refuted")])
def test_a_feature_map_of_the_control_is_a_row_and_moves_no_verdict(study, bound, row, expected):
    with_row = study(
        control={k: 1.0 if bound else 1 / k for k in K}, control_rows={"infini-linear-relu": row}
    ).positive_control()
    arms = CONTROL_ARMS | {"infini-linear-relu": replace(CONTROL_ARMS["infini-linear"], feature_map="relu")}
    claim = next(c for c in CLAIMS if c.id == "C5a")
    found, without = decide(claim, with_row.evidence(RULES, control_arms=arms)), verdict(with_row, "C5a")
    assert (found.decision, found.estimate, found.low) == (without.decision, without.estimate, without.low)
    assert found.decision == expected
    shown = {n.name: n.estimate for n in found.numbers}
    assert shown["control.infini-linear-relu.k8"] == pytest.approx(row, abs=0.05)
    own = with_row.evidence(RULES, control_arms=arms, arms={**ARMS, "infini-linear-relu": arms["infini-linear-relu"]})
    assert decide(claim, own).decision == "supported"  # one arm of the study that binds is enough


def test_a_loss_that_is_not_shown_to_fall_is_said_with_its_interval(study):
    found = verdict(study(base=0.0, seed_noise=0.02).evaluate(), "C2")
    interval = r"[+−][\d.]+% \[−[\d.]+%, \+[\d.]+%\]"
    said = rf"the held-out loss of \S+ is not shown to lie below its base's \({interval} perplexity\)"
    assert found.decision == "inconclusive" and re.search(said, found.summary + found.reason)


def test_a_shared_base_is_said(study):
    shared = study().evaluate()
    for seed in (1, 2):
        shared.tables.pop(f"evaluate/base/{seed}")
    assert evidence(shared).shared_base and "one base" in verdict(shared, "C13").reason
    assert not evidence(study().evaluate()).shared_base


def test_documents_left_contaminated_are_scored_by_no_claim(study):
    dirty = study(coverage_after=0.4).decontaminate().evaluate()
    assert "doc-001" not in set(evidence(dirty).perplexity["doc_id"])
    assert verdict(dirty, "C2").n == dirty.documents - 1


def test_single_heads_are_counted(study):
    numbers = {number.name: number for number in verdict(study().ablate(), "C1").numbers}
    assert numbers["heads.infini-linear.swap"].estimate == pytest.approx(1 / 9)


def test_the_length_that_is_reached_is_printed(study):
    numbers = {number.name: number for number in verdict(study().evaluate(), "C3").numbers}
    assert numbers["passkey_effective.infini-linear"].estimate == 512


def test_a_length_that_was_not_asked_decides_nothing(study):
    elsewhere = RULES.model_copy(update={"retrieval": Retrieval(length=4096)})
    assert verdict(study().evaluate(), "C3", elsewhere).decision == "not measured"


def test_too_few_prompts_are_no_support(study):
    many = RULES.model_copy(update={"retrieval": Retrieval(minimum_trials=10_000)})
    assert verdict(study().evaluate(), "C3", many).label == "inconclusive (underpowered)"


@pytest.mark.parametrize(
    ("exact", "learned", "a", "b"), [(58, 400, "refuted", "supported"), (200, 40, "supported", "refuted")]
)
def test_exact_readout_and_recall_are_judged_apart_and_on_the_best_keys(study, exact, learned, a, b):
    made = study().capacity(exact=exact, learned=learned)
    assert (verdict(made, "C6a").decision, verdict(made, "C6b").decision) == (a, b)
    random = [n for n in verdict(made, "C6b").numbers if n.name.startswith("capacity.accuracy.random.linear")]
    assert random and all(n.decision is None for n in random)


def test_trained_keys_have_a_row_of_their_own(study):
    assert verdict(study().ablate(), "C6c").decision == "refuted"  # 20 of 32


def test_a_lenient_limit_is_the_studys_own(study):
    lenient = RULES.model_copy(update={"clean_data": CleanData(coverage_limit=0.5)})
    assert verdict(study(coverage_after=0.4).decontaminate(), "C8", lenient).decision == "supported"


@pytest.mark.parametrize("logged", [0, 5])
def test_what_an_imported_base_was_trained_on_is_not_called_clean(study, logged):
    made = study().decontaminate()
    assert verdict(made, "C8").decision == "supported"
    made.add("base", {"train_log.parquet": pd.DataFrame({"step": range(logged)})}, {"cost.json": {"wall_s": logged}})
    found = verdict(made, "C8")
    assert found.label == ("supported" if logged else "inconclusive (base not audited)")
    audited = RULES.model_copy(update={"clean_data": CleanData(base_audited=True)})
    assert verdict(made, "C8", audited).decision == "supported"
    dirty = study(coverage_after=0.4).decontaminate()
    dirty.add("base", {"train_log.parquet": pd.DataFrame({"step": []})}, {"cost.json": {"wall_s": 0}})
    assert verdict(dirty, "C8").decision == "refuted"


def test_the_published_ratio_and_the_honest_one_are_two_verdicts(study):
    found, honest = verdict(study(), "C9a"), verdict(study(), "C9b")
    values = {number.name: number.estimate for number in found.numbers}
    assert found.decision == "supported" and found.estimate == pytest.approx(115.7, abs=0.1)
    assert honest.decision == "refuted" and honest.estimate == pytest.approx(4.5, abs=0.05)
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


@pytest.mark.parametrize("mean", [False, True])
def test_crossed_rows_are_the_pivot_table_of_the_items_that_every_seed_has(mean):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"seed": rng.integers(0, 3, 400), "item": rng.integers(0, 60, 400).astype(str)})
    rows["v"] = np.where(rng.random(400) < 0.05, np.nan, rng.normal(size=400))
    kept = rows[rows["v"].notna()]
    slow = kept.pivot_table(index="seed", columns="item", values="v", aggfunc="mean" if mean else "sum").dropna(axis=1)
    seeds, items, table = crossed(rows, "item", "v", mean=mean)
    assert 0 < len(items) < 60 and seeds == list(slow.index) and items.tolist() == list(slow.columns)
    np.testing.assert_allclose(table, slow.to_numpy(), rtol=1e-12)


def test_a_damaged_table_is_named_with_its_step_and_the_fix(study):
    inputs = study().evaluate().inputs
    (inputs["evaluate/local/0"].directory / "perplexity.parquet").write_bytes(b"not parquet")
    seen = Evidence(inputs, arms=ARMS, seeds=(0, 1, 2), trunk=TRUNK, rules=RULES, control_arms=CONTROL_ARMS)
    with pytest.raises(StageError, match="evaluate/local/0"):
        decide(next(c for c in CLAIMS if c.id == "C2"), seen)


def test_every_rule_is_stated_from_its_settings():
    rules = ClaimsConfig(minimum_seeds=5)
    stated = {claim.id: claim.rule(rules) for claim in CLAIMS}
    assert "5 seeds" in stated["C2"] and "90%" in stated["C3"] and "swap and zero_read" in stated["C1"]


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("memory_is_used", {"margin": 0}),
        ("memory_is_used", {"knockouts": ["gate_closed", "reset"]}),
        ("memory_is_used", {"knockouts": ["swap"]}),
        ("binding", {"margin": -0.1}),
        ("retrieval", {"threshold": 1.2}),
        ("seeds", {"margin": 0}),
        ("minimum_seeds", 1),
        ("alpha", 0),
    ],
)
def test_a_rule_that_cannot_be_met_is_refused(section, value):
    with pytest.raises(ValidationError, match=section if not isinstance(value, dict) else next(iter(value))):
        ClaimsConfig.model_validate({section: value})
