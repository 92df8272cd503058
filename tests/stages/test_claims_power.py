"""What a study could see before it is run: the numbers follow its size, and hold when such studies are simulated."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.cost import cost
from stages.evidence.ablate.config import AblateConfig
from stages.evidence.control.config import BaseRecipe, ControlSettings
from stages.evidence.evaluate.config import EvaluateSettings, PerplexityConfig
from stages.stage import StageError
from stages.statistics.intervals import accuracy_many, hierarchical_many
from stages.statistics.power import Pilot
from stages.training.pretrain.config import BaseConfig, PretrainConfig
from stages.verdict.claims.bracket import ceiling_bracket, cell_bracket
from stages.verdict.claims.config import ClaimsConfig, PilotConfig, Retrieval
from stages.verdict.claims.power import Sensitivity, jointly, sensitivities, training_flops
from stages.verdict.claims.powerceiling import Ceiling, expected
from stages.verdict.claims.size import Size
from tests.stages.synthetic import ARMS, ASKED, CONTROL_ARMS, KNOCKED, TRUNK, Synthetic

SCORED = PerplexityConfig(max_documents=40, max_tokens_per_document=512)
SIZE = Size(
    arms=ARMS,
    seeds=(0, 1, 2),
    rules=ClaimsConfig(),
    evaluate=EvaluateSettings(perplexity=SCORED, retrieval=ASKED),
    ablate=AblateConfig(perplexity=SCORED, retrieval=KNOCKED),
    control=ControlSettings(),
    control_arms=CONTROL_ARMS,
)


def rows(size: Size = SIZE, earlier: object = None) -> dict[str, Sensitivity]:
    return {row.claim: row for row in sensitivities(size, earlier)}


def of(claim: str, size: Size) -> Sensitivity:
    return next(row for row in sensitivities(size) if row.claim == claim)


@pytest.fixture(scope="module")
def plain() -> dict[str, Sensitivity]:
    return rows()


def test_every_claim_that_samples_has_its_seeds_items_and_smallest_effect(plain):
    assert list(plain) == ["C1", "C2", "C3", "C5a", "C5b", "C13"]
    assert all(row.seeds == 3 and row.pilot == "claims.pilot" for row in plain.values())
    assert plain["C2"].items == plain["C13"].items == 40
    assert plain["C3"].items == 140 and plain["C3"].unit == "prompts of 512 tokens"  # 7 of 8 segments of 160
    assert plain["C1"].items == round(60 * 7 / 8) + 2 * round(30 * 7 / 8)
    assert plain["C5a"].items == ControlSettings().trials
    assert 0.05 < plain["C1"].smallest < 1 and 0.9 < plain["C3"].smallest < 1 and 0.2 < plain["C3"].refutes < 0.9
    assert plain["C13"].smallest > plain["C2"].smallest > 0  # a margin to clear on top
    assert plain["C2"].shown == f"{1 - math.exp(-plain['C2'].smallest):.2%} lower perplexity"


def test_the_smallest_effect_is_found_as_often_as_it_says(plain):
    """Two memory arms, one of which has the effect: it must pass Holm's first step, half of alpha, one-sided."""
    plan = PilotConfig()
    rng = np.random.default_rng(5)
    shape = (4000, 3, 40)
    tables = plain["C2"].smallest + plan.loss_seed_sd * rng.standard_normal((*shape[:2], 1))
    tables = tables + plan.loss_item_sd * rng.standard_normal((shape[0], 1, shape[2]))
    tables = tables + plan.loss_residual_sd * rng.standard_normal(shape)
    found = hierarchical_many(tables, level=1 - 0.05 / 2)[0] > 0
    assert found.mean() == pytest.approx(0.8, abs=0.03)


def test_nothing_is_said_to_be_refuted_where_what_must_stand_in_front_of_it_is_missing(plain):
    """No control: nothing; no full attention: what asks for it. The other columns stay."""
    without = rows(replace(SIZE, control=None, control_arms=None))
    assert {row.refutes_shown for row in without.values()} == {"none: no positive control"}
    assert without["C3"].refutes == -math.inf and without["C2"].refutes == 0
    few = replace(SIZE, control=ControlSettings(pairs=(1, 2, 4), base=BaseRecipe(pairs=(2, 4), asked=(2, 4))))
    assert of("C2", few).refutes_shown == "none: no positive control"  # claims.positive_control.pairs has 8
    arms = {name: mixer for name, mixer in ARMS.items() if mixer.kind != "full"}
    none = {claim: row.refutes_shown for claim, row in rows(replace(SIZE, arms=arms)).items()}
    assert {claim for claim, said in none.items() if said == "none: no arm of kind full"} == {"C2", "C3", "C5b", "C13"}
    assert without["C2"].smallest == plain["C2"].smallest and without["C3"].smallest == plain["C3"].smallest


def test_a_failure_is_called_refuted_as_often_as_it_says(plain):
    """Both memory arms stay below 90%, full attention is ahead of each of them on the same prompts."""
    seen, rules = expected(PilotConfig()), ClaimsConfig()
    ways = [seen.tables(effect=plain["C3"].refutes, seeds=3, items=140, draws=2000, seed=n)[0] for n in (11, 12)]
    top, _ = seen.tables(effect=0.9, seeds=3, items=140, draws=2000, seed=13)
    below = [accuracy_many(arm)[1] < rules.retrieval.threshold for arm in ways]
    ahead = [hierarchical_many(top - arm)[0] > 0 for arm in ways]
    learned = accuracy_many(top)[0] >= rules.retrieval.learned
    assert np.logical_and.reduce([*below, *ahead, learned]).mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_the_ceiling_of_power_is_that_of_the_claims(tmp_path: Path, threshold: float | None):
    """The same tables, as rows, through the claims' own bracket."""
    rules = ClaimsConfig()
    evidence = Synthetic(tmp_path).evidence(rules)
    seen = Pilot(0.8, 0.1, 0.1, 0.4, binary=True)
    arms, _ = seen.tables(effect=0.65, seeds=3, items=40, draws=60, seed=1)
    tops, _ = seen.tables(effect=0.8, seeds=3, items=40, draws=30, seed=2)

    class Given(Pilot):
        def tables(self, **_: object):
            return tops, np.ones(40)

    given = Ceiling(Given(0.8, 0.1, 0.1, 0.4, binary=True))
    always = given.behind(lambda tables, _: np.ones(len(tables), bool), rules, 2, 0.5, threshold)
    found = always(arms, np.ones(40))
    outcome = []
    for number, table in enumerate(arms):
        told = {"infini-delta": table, "full": tops[number // 2], "local": np.zeros((3, 40))}
        frame = pd.DataFrame(
            {"arm": arm, "seed": seed, "item": f"p{item}", "correct": value}
            for arm, of_arm in told.items()
            for (seed, item), value in np.ndenumerate(of_arm)
        )
        learned = cell_bracket(evidence, frame, 0.5)
        outcome.append(bool(learned.passed and ceiling_bracket(evidence, frame, "infini-delta", threshold).passed))
    assert found.tolist() == outcome and 0 < found.mean() < 1


def test_more_seeds_see_smaller_effects_and_more_arms_need_larger_ones(plain):
    more = of("C2", replace(SIZE, seeds=(0, 1, 2, 3, 4)))
    assert more.smallest < 0.7 * plain["C2"].smallest and more.refutes > plain["C2"].refutes
    extra = {f"infini-{n}": ARMS["infini-linear"] for n in range(4)}
    assert of("C2", replace(SIZE, arms=ARMS | extra)).smallest > 1.2 * plain["C2"].smallest


def test_too_few_prompts_for_the_rule_can_support_nothing():
    row = of("C3", replace(SIZE, rules=ClaimsConfig(retrieval=Retrieval(minimum_trials=141))))
    assert row.smallest == math.inf and "minimum_trials = 141" in row.shown


def test_sections_that_are_left_out_leave_out_their_claims():
    asked = ASKED.model_copy(update={"binding_trials": 0})
    few = replace(SIZE, ablate=None, control=None, evaluate=EvaluateSettings(perplexity=SCORED, retrieval=asked))
    assert list(rows(few)) == ["C2", "C3", "C13"]


def test_an_earlier_run_gives_the_spreads(tmp_path: Path):
    study = Synthetic(tmp_path, seed_noise=0.004).evaluate().ablate().positive_control()
    found = rows(earlier=study.evidence(ClaimsConfig()))
    assert found["C2"].pilot == "earlier run: 3 seeds x 40 items, widest arm"
    noisy = Synthetic(tmp_path, seed_noise=0.05).evaluate(prompts=False)
    assert found["C3"].refutes_shown.endswith("full attention at 100%")  # of the run
    wide = rows(earlier=noisy.evidence(ClaimsConfig()))
    assert wide["C2"].smallest > 3 * found["C2"].smallest
    assert wide["C5b"].pilot == "claims.pilot"  # what the run does not have
    assert found["C3"].pilot == "claims.pilot"  # perfect arms show no spread to plan with


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"seeds": (7,)}, r"seeds = \[7\]: 1 seed, and the rules decide nothing below claims.minimum_seeds = 3"),
        ({"arms": {"local": ARMS["local"]}}, r"arms = \['local'\]: no arm has compressive memory.*kind 'infini'"),
        ({"arms": {"infini-delta": ARMS["infini-delta"]}}, r"no arm has local attention, the floor.*kind 'local'"),
        (
            {"evaluate": EvaluateSettings(retrieval=ASKED.model_copy(update={"lengths": (64,), "trials": 9}))},
            r"evaluate.retrieval.trials = 9: fewer than two passkey prompts at 64 tokens.*beyond a segment of 64",
        ),
    ],
)
def test_a_study_that_cannot_decide_is_one_clear_error(changed, message):
    with pytest.raises(StageError, match=message):
        list(sensitivities(replace(SIZE, **changed)))


def test_jointly_decides_for_all_tables_of_a_study_or_none():
    once = jointly(lambda tables, weights: tables[:, 0, 0] > 0, 2)
    tables = np.array([1, 1, 1, -1, -1, -1, 1.0])[:, None, None]
    assert once(tables, np.ones(1)).tolist() == [True, True, False, False, False, False, True]


def test_training_costs_its_tokens_times_the_formula():
    trunk = TrunkConfig(dim=64, layers=2, heads=2)
    mixer = MixerConfig(kind="infini", segment_length=64)
    arm = PretrainConfig(steps=10, batch_sequences=4, sequence_length=256, lr=1e-3, mixer=mixer, seed=0)
    each = cost(ModelConfig(trunk=trunk, mixer=mixer, vocab_size=300), 256).flops_per_token_training
    assert training_flops(arm, trunk, 300) == pytest.approx(10 * 4 * 256 * each)
    base = BaseConfig(steps=5, batch_tokens=512, sequence_length=64, lr=1e-3, trunk=trunk)
    full = ModelConfig(trunk=trunk, mixer=MixerConfig(kind="full", segment_length=64), vocab_size=300)
    assert training_flops(base, trunk, 300) == pytest.approx(5 * 512 * cost(full, 64).flops_per_token_training)
    control = ControlSettings()
    assert (
        training_flops(control.of_base(0), trunk, 300)
        > training_flops(control.of_arm(CONTROL_ARMS["local"], 0), TRUNK, 1)
        > 0
    )
    assert training_flops(SCORED, trunk, 300) == 0


def test_claims_that_a_study_is_too_small_for_are_named_before_it_runs() -> None:
    assert list(SIZE.shortfalls()) == []
    few = SIZE.evaluate.retrieval.model_copy(update={"trials": 113})  # 7 of 8 segments: 99
    evaluate = SIZE.evaluate.model_copy(update={"retrieval": few})
    (said,) = replace(SIZE, evaluate=evaluate).shortfalls()
    assert said == (
        "C3 may stay open: about 99 of the passkeys of 512 tokens lie beyond the last segment, "
        "claims.retrieval.minimum_trials = 100. Fix: evaluate.retrieval.trials = 114"
    )
    enough = few.model_copy(update={"trials": 114})
    assert not list(replace(SIZE, evaluate=evaluate.model_copy(update={"retrieval": enough})).shortfalls())
    inside = few.model_copy(update={"depths": (0.95,)})
    (said,) = replace(SIZE, evaluate=evaluate.model_copy(update={"retrieval": inside})).shortfalls()
    assert said.endswith("Fix: longer prompts")
    (said,) = replace(SIZE, seeds=(4, 5)).shortfalls()
    assert said.startswith("seeds = [4, 5]: ") and said.endswith("Fix: name at least 3 seeds")
    assert not list(replace(SIZE, arms={"local": ARMS["local"]}).shortfalls())


@pytest.mark.parametrize(
    "name",
    ["quickstart", "small", "pg19", "passkey-1m", "passkey-cpu", "paper-1b", "single-gpu", "smollm2", "schedules"],
)
def test_no_study_file_asks_less_than_its_claims_demand(name: str) -> None:
    runs = Path(__file__).parents[2] / "runs"
    text = yaml.safe_load((runs / f"{name}.yaml").read_text(encoding="utf-8"))
    arms = {
        arm: MixerConfig(segment_length=text["tokenize"]["segment_length"], kind=of["kind"])
        for arm, of in text["arms"].items()
    }
    evaluate, rules = EvaluateSettings(**text["evaluate"]), ClaimsConfig(**text.get("claims", {}))
    schedules = {name: of.get("arms", list(arms)) for name, of in text.get("schedules", {}).items()}
    size = Size(arms=arms, seeds=tuple(text["seeds"]), rules=rules, evaluate=evaluate, schedules=schedules)
    assert not list(size.shortfalls())
