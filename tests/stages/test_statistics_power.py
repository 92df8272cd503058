"""Power by simulation: against closed forms, and the sample it asks for against fresh simulated studies."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from stages.statistics import intervals, power, tests


def above(null=0.0, alpha=0.05):
    """One-sided contrast test of many tables."""
    return lambda tables, weights: intervals.hierarchical_many(tables, weights, level=1 - 2 * alpha)[0] > null


@pytest.mark.parametrize("seeds, effect", [(3, 1.0), (5, 0.8), (10, 0.6)])
def test_power_equals_the_closed_form_where_only_seeds_vary(seeds, effect):
    seen = power.Pilot(0.0, 1.0, 0.0, 0.0)
    both = power.one_by_one(lambda table, _: tests.paired_t(table.mean(1)).p < 0.05)
    known = TTestPower().power(effect, seeds, 0.05)
    assert power.power_of(both, seen, effect=effect, seeds=seeds, items=4, draws=2000) == pytest.approx(known, abs=0.03)


def test_power_equals_the_closed_form_where_only_items_vary_and_many_items_are_drawn_as_groups():
    seen = power.Pilot(0.0, 0.0, 1.0, 0.0)
    for items, effect in ((30, 0.4), (2000, 0.06)):
        known = TTestPower().power(effect, items, 0.05, alternative="larger")
        assert power.power_of(above(), seen, effect=effect, seeds=3, items=items, draws=8000) == pytest.approx(
            known, abs=0.02
        )


def test_a_pilot_recovers_the_variances_of_the_tables_it_draws():
    truth = power.Pilot(0.2, 0.3, 0.5, 0.8, weights=tuple(np.random.default_rng(0).uniform(500, 2000, 50)))
    tables, weights = truth.tables(effect=0.2, seeds=6, items=200, draws=300)
    found = [power.pilot(table, weights) for table in tables]
    for name in ("estimate", "seed_sd", "item_sd", "residual_sd"):
        values = np.array([getattr(one, name) for one in found])
        typical = values.mean() if name == "estimate" else np.sqrt((values**2).mean())
        assert typical == pytest.approx(getattr(truth, name), rel=0.08), name


def test_a_binary_pilot_draws_answers_that_agree_as_often_as_its_own():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, (1, 400))
    table = (rng.normal(0, 1, (4, 400)) + hard + np.array([-0.3, 0, 0.1, 0.4])[:, None] < 0.8).astype(float)
    seen = power.pilot(table)
    assert seen.binary
    tables, _ = seen.tables(effect=seen.estimate, seeds=4, items=400, draws=200)
    assert set(np.unique(tables)) == {0.0, 1.0}
    again = [power.pilot(one) for one in tables]
    for name in ("estimate", "seed_sd", "item_sd", "residual_sd"):
        typical = np.sqrt(np.mean([getattr(one, name) ** 2 for one in again]))
        assert typical == pytest.approx(getattr(seen, name), rel=0.1), name
    high, _ = seen.tables(effect=0.97, seeds=4, items=400, draws=500)
    assert high.mean() == pytest.approx(0.97, abs=0.01)
    assert high.mean(2).std() < 0.5 * tables.mean(2).std()  # less room next to 1


def test_the_smallest_effect_is_found_as_often_as_asked_and_a_family_needs_a_larger_one():
    seen = power.Pilot(0.0, 0.02, 0.1, 0.3)
    alone = power.smallest_effect(above(), seen, seeds=3, items=200)
    holm = power.smallest_effect(above(alpha=0.05 / 4), seen, seeds=3, items=200)
    assert holm > 1.3 * alone
    for effect, alpha in ((alone, 0.05), (holm, 0.05 / 4)):
        fresh = power.power_of(above(alpha=alpha), seen, effect=effect, seeds=3, items=200, draws=4000, seed=99)
        assert fresh == pytest.approx(0.8, abs=0.03)


def test_the_smallest_effect_can_lie_below_the_null_and_can_be_out_of_reach():
    seen = power.pilot((np.random.default_rng(1).random((3, 60)) < 0.7).astype(float))
    below = lambda tables, _: intervals.accuracy_many(tables)[1] < 0.9  # noqa: E731
    effect = power.smallest_effect(below, seen, seeds=3, items=60, null=0.9, largest=0.0)
    assert 0.6 < effect < 0.9
    clears = lambda tables, _: intervals.accuracy_many(tables)[0] > 0.99  # noqa: E731
    assert power.smallest_effect(clears, seen, seeds=3, items=60, null=0.9) == np.inf


@pytest.mark.parametrize(
    "grow, seen",
    [
        ("items", power.Pilot(0.05, 0.0, 0.1, 0.4)),
        ("seeds", power.Pilot(0.05, 0.06, 0.1, 0.4)),
        ("items", power.Pilot(0.05, 0.01, 0.3, 0.3, weights=(100.0, 300.0, 1000.0))),
    ],
)
def test_the_deciding_sample_has_the_power_that_was_asked_for(grow, seen):
    def rule(seeds, items):
        return above()

    needed = power.deciding_sample(rule, seen, effect=0.05, seeds=3, items=50, grow=grow, limit=5000)
    assert needed is not None and (needed.items > 50 if grow == "items" else needed.seeds > 3)
    fresh = power.power_of(above(), seen, effect=0.05, seeds=needed.seeds, items=needed.items, draws=6000, seed=77)
    if grow == "items":  # a number of seeds is a coarser step than 3 points of power
        assert fresh == pytest.approx(0.8, abs=0.03)
    else:
        one_less = power.power_of(
            above(), seen, effect=0.05, seeds=needed.seeds - 1, items=needed.items, draws=6000, seed=77
        )
        assert one_less < 0.83 and fresh > 0.77


def test_no_number_of_items_outvotes_seeds_that_differ():
    seen = power.Pilot(0.05, 0.1, 0.1, 0.3)
    assert (
        power.deciding_sample(lambda s, i: above(), seen, effect=0.05, seeds=3, items=50, grow="items", limit=10**6)
        is None
    )
    known = TTestPower().solve_power(0.5, power=0.8, alpha=0.05, alternative="larger")
    needed = power.deciding_sample(
        lambda s, i: above(), power.Pilot(0.05, 0.1, 0.0, 0.0), effect=0.05, seeds=3, items=50, grow="seeds", limit=200
    )
    assert needed is not None and abs(needed.seeds - known) <= 2


def test_a_minimum_written_into_the_rule_counts():
    seen = power.Pilot(1.0, 0.01, 0.1, 0.1)

    def rule(seeds, items):
        return lambda tables, weights: above()(tables, weights) & (items >= 120)

    needed = power.deciding_sample(rule, seen, effect=1.0, seeds=3, items=50, grow="items", limit=1000)
    assert needed is not None and 120 <= needed.items <= 123 and needed.power == 1


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"shape \(1, 5\); allowed is a finite table of at least 2 seeds"):
        power.pilot(np.zeros((1, 5)))
    with pytest.raises(ValueError, match="grow = 'both': allowed are 'items' and 'seeds'"):
        power.deciding_sample(
            lambda s, i: above(), power.Pilot(0, 1, 1, 1), effect=1, seeds=3, items=5, grow="both", limit=9
        )
    with pytest.raises(ValueError, match="draws = 0"):
        power.power_of(above(), power.Pilot(0, 1, 1, 1), effect=1, seeds=3, items=5, draws=0)
    with pytest.raises(ValueError, match=r"effect = 1.2: an accuracy"):
        power.Pilot(0.5, 0, 0, 0.5, binary=True).tables(effect=1.2, seeds=2, items=2, draws=1)
