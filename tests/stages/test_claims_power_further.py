"""Power of the claims on further tasks (C4), alignments (C11) and other schedules (C12).

What is not asked has no row, more asks more."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages.data.tasks.config import TaskSettings
from stages.statistics.intervals import hierarchical_many
from stages.verdict.claims import power, powerfurther
from stages.verdict.claims.config import Alignment, ClaimsConfig, Compositional, PilotConfig
from stages.verdict.claims.power import Sensitivity
from stages.verdict.claims.powerfurther import _aligned, _compositional, _schedule
from stages.verdict.claims.size import Size
from tests.stages.synthetic import ASKED, Synthetic
from tests.stages.test_claims_power import SIZE

TASKS = {
    "vt": TaskSettings(k=(1, 4), trials=120),
    "niah_multikey_2": TaskSettings(trials=120),
    "niah_multivalue": TaskSettings(trials=100),
}
SCHEDULES = {name: ("local", "infini-linear") for name in ("low", "high", "long")}


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (power, powerfurther):
        monkeypatch.setattr(module, "DRAWS", 200)


def asked(named: dict[str, TaskSettings], **rules: object) -> Size:
    retrieval = ASKED.model_copy(update={"tasks": named})
    return replace(
        SIZE,
        evaluate=SIZE.evaluate.model_copy(update={"retrieval": retrieval}),
        rules=ClaimsConfig(compositional=Compositional(**rules)),
    )


def c4(size: Size, earlier: object = None) -> Sensitivity:
    found = _compositional(size, earlier)
    assert found is not None
    return found


def c12(size: Size) -> Sensitivity:
    found = _schedule(size, None)
    assert found is not None
    return found


def c11(size: Size, earlier: object = None) -> Sensitivity:
    found = _aligned(size, earlier)
    assert found is not None
    return found


def test_what_a_study_does_not_ask_has_no_row():
    assert all(row(SIZE, None) is None for row in (_compositional, _aligned, _schedule))
    only_memory = replace(SIZE, schedules={"low": ("infini-linear",)})
    assert _schedule(only_memory, None) is None  # no other schedule of the baseline


def test_every_cell_must_clear_so_that_more_of_them_need_a_higher_score():
    size = asked(TASKS)
    assert [(cell.kind, cell.length, cell.prompts) for cell in size.cells()] == [
        ("hops", 512, 120),
        ("hops", 512, 120),
        ("keys", 512, 120),
        ("values", 512, 100),
    ]
    row = c4(size)
    assert row.items == 100 and row.unit == "prompts in each of 4 tasks" and row.pilot == "claims.pilot"
    assert 0.9 < row.smallest < 1 and 0.1 < row.refutes < 0.9
    assert row.refutes_shown.endswith("in one task is shown to stay below, full attention at 90%")
    more = c4(replace(asked(TASKS), seeds=tuple(range(6))))
    assert more.refutes > row.refutes
    arms = {name: mixer for name, mixer in SIZE.arms.items() if mixer.kind != "full"}
    alone = c4(replace(asked(TASKS), arms=arms))
    assert (alone.refutes, alone.refutes_shown) == (-math.inf, "none: no arm of kind full")
    assert alone.smallest == row.smallest
    fewer = c4(asked(TASKS, tasks=("niah_multivalue",), kinds=1))
    assert fewer.smallest < row.smallest


@pytest.mark.parametrize(
    ("tasks", "rules", "why"),
    [
        ({"vt": TaskSettings(), "niah_multikey_2": TaskSettings()}, {}, "none: 2 of 3 kinds of task"),
        (TASKS, {"minimum_trials": 101}, "none: 100 of claims.compositional.minimum_trials = 101 prompts"),
    ],
)
def test_what_the_rule_can_never_support_is_said(tasks, rules, why):
    row = c4(asked(tasks, **rules))
    assert row.shown == why and row.smallest == math.inf


def test_the_smallest_gap_to_every_schedule_is_found_as_often_as_it_says():
    """One arm with two schedules and one with one: Holm's first step over three; ahead of four schedules of local."""
    size = replace(SIZE, schedules=SCHEDULES)
    row = c12(size)
    assert row.unit == "documents, 4 schedules of local" and "schedules" in row.needs
    plan, rng = PilotConfig(), np.random.default_rng(3)
    candidates = 2 + 3  # two memory arms, one of them on three other schedules
    ahead = np.ones(3000, bool)
    for _ in range(4):
        tables = row.smallest + plan.loss_seed_sd * rng.standard_normal((3000, 3, 1))
        tables = tables + plan.loss_item_sd * rng.standard_normal((3000, 1, 40))
        tables = tables + plan.loss_residual_sd * rng.standard_normal((3000, 3, 40))
        ahead &= hierarchical_many(tables, level=1 - 0.05 / candidates)[0] > 0
    assert ahead.mean() == pytest.approx(0.8, abs=0.08)  # of 200 draws


def test_too_few_schedules_can_support_nothing():
    few = c12(replace(SIZE, schedules={"low": ("local",)}))
    assert few.shown == "none: 1 of 3 other schedules" and few.smallest == math.inf
    (said,) = replace(SIZE, schedules={"low": ("local",)}).shortfalls()
    assert said.startswith("C12 cannot be supported: local trains on 1 of claims.schedule.minimum = 3 other schedules")
    assert not list(replace(SIZE, schedules=SCHEDULES).shortfalls())
    assert not list(replace(SIZE, schedules={"low": ("infini-linear",)}).shortfalls())  # C12 is not measured then
    more = c12(replace(SIZE, schedules=SCHEDULES | {"text": ("local",)}))
    assert more.smallest > c12(replace(SIZE, schedules=SCHEDULES)).smallest


def test_an_earlier_run_gives_the_spread_of_the_cells(tmp_path: Path):
    size = asked({"vt": TaskSettings(lengths=(512,), k=(1,))}, kinds=1)
    study = Synthetic(tmp_path, asked=size.evaluate.retrieval).evaluate()
    found = c4(size, study.evidence(size.rules))
    assert found.pilot.startswith(("earlier run", "claims.pilot"))


def test_too_few_kinds_or_prompts_of_compositional_tasks_are_named() -> None:
    def said(tasks: dict[str, TaskSettings]) -> list[str]:
        return [text for text in asked(tasks).shortfalls() if text.startswith("C4 ")]

    few = {name: one.model_copy(update={"trials": 99}) for name, one in TASKS.items()}
    assert not said(TASKS) and not said({})
    assert [text.split(":")[1][:17] for text in said(few)] == [" of one task 99 p"]
    (kinds,) = said(dict(list(TASKS.items())[:1]))
    assert " 1 of claims.compositional.kinds = 3 kinds" in kinds


def test_the_loss_of_perplexity_that_alignment_is_found_to_cost():
    """Two memory arms and one alignment: four losses, the first Holm step over all of them."""
    size = replace(SIZE, alignments=("sft",))
    row, plan, rng = c11(size), PilotConfig(), np.random.default_rng(4)
    assert row.items == 40 and row.unit == "documents and 260 passkeys, 2 aligned arms" and row.pilot == "claims.pilot"
    tables = row.smallest + plan.loss_seed_sd * rng.standard_normal((3000, 3, 1))
    tables = tables + plan.loss_item_sd * rng.standard_normal((3000, 1, 40))
    tables = tables + plan.loss_residual_sd * rng.standard_normal((3000, 3, 40))
    refuted = hierarchical_many(tables, level=1 - 0.05 / 4)[0] > math.log1p(0.03)
    assert refuted.mean() == pytest.approx(0.8, abs=0.08)
    assert row.shown.endswith(f" points of passkeys or {math.expm1(row.smallest):.2%} perplexity lost")
    longer = c11(replace(size, rules=ClaimsConfig(alignment=Alignment(length=256))))
    assert longer.unit.startswith("documents and 120 passkeys")  # of 256 tokens alone, three quarters of 160


def test_nothing_lost_is_shown_more_often_with_more_seeds_and_fewer_alignments():
    plan = PilotConfig(accuracy_seed_sd=0.015, accuracy_residual_sd=0.1)
    size = replace(SIZE, alignments=("sft", "dpo"), rules=ClaimsConfig(pilot=plan))
    row = c11(size)
    assert 0 < row.refutes < 1 and row.refutes_shown == f"supported {row.refutes:.0%} if nothing is lost"
    assert c11(replace(size, seeds=(0, 1, 2, 3, 4))).refutes > row.refutes
    assert c11(replace(size, alignments=("sft",))).refutes > row.refutes


def test_an_earlier_run_gives_the_spread_of_what_alignment_costs(tmp_path: Path):
    size = replace(SIZE, alignments=("sft",))
    study = Synthetic(tmp_path).evaluate().align("sft")
    found = c11(size, study.evidence(size.rules))
    assert found.pilot == "earlier run: 3 seeds x 40 items, widest arm"
    assert found.refutes > c11(size).refutes  # nothing was lost, and seeds hardly differ
