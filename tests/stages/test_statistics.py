"""Intervals, tests and curves against values known by hand and other implementations."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from stages.statistics import curves, intervals, tests


def test_wilson_known_values():
    # Newcombe (1998), table I: 81 of 263 and 0 of 20
    known = intervals.wilson(81, 263)
    assert (round(known.low, 4), round(known.high, 4)) == (0.2553, 0.3662)
    none = intervals.wilson(0, 20)
    assert none.low == 0 and round(none.high, 4) == 0.1611
    for hits, trials, level in [(3, 7, 0.9), (200, 200, 0.95), (1, 500, 0.99)]:
        estimate = intervals.wilson(hits, trials, level)
        expected = proportion_confint(hits, trials, 1 - level, method="wilson")
        assert (estimate.low, estimate.high) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="trials = 0"):
        intervals.wilson(0, 0)


def test_clustered_mean_by_hand_and_wider_where_the_rows_of_a_book_agree():
    found = intervals.clustered_mean([1.0, 3.0, 8.0], ["a", "a", "b"])
    error = np.sqrt(1 / 2 * ((8 - 5) ** 2 + (2 - 5) ** 2))  # without a: 8, without b: 2
    assert found.estimate == 4 and found.n == 2
    assert found.high - 4 == pytest.approx(stats.t.ppf(0.975, 1) * error)
    even = np.random.default_rng(1).normal(size=9)
    known = stats.ttest_1samp(even, 0).confidence_interval()
    alone = intervals.clustered_mean(even, list(range(9)))
    assert (alone.low, alone.high) == pytest.approx(tuple(known))
    rng = np.random.default_rng(3)
    books = np.repeat(np.arange(12), 10)
    scores = rng.normal(0, 1, 12)[books] + rng.normal(0, 0.1, 120)
    clustered = intervals.clustered_mean(scores, [f"book{b}" for b in books])
    naive = intervals.clustered_mean(scores, list(range(120)))
    assert clustered.n == 12 and naive.n == 120
    assert clustered.high - clustered.low > 2 * (naive.high - naive.low)
    one = intervals.clustered_mean([1.0, 2.0], ["a", "a"])
    assert (one.low, one.high) == (-np.inf, np.inf)


def test_hierarchical_is_students_t_over_seeds_where_items_do_not_vary_and_over_items_where_seeds_do_not():
    by_seed = np.array([1.0, 2.0, 6.0])
    found = intervals.hierarchical(np.repeat(by_seed[:, None], 20, 1))
    known = tests.paired_t(by_seed)
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    assert found.p(0.0) == pytest.approx(known.p) and found.p(0.0, "greater") == pytest.approx(known.p / 2)
    by_item = np.random.default_rng(0).normal(0.3, 1, 20)
    found = intervals.hierarchical(np.repeat(by_item[None], 4, 0))
    known = stats.ttest_1samp(by_item, 0)
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval()))
    assert found.p(0.0) == pytest.approx(known.pvalue)


def test_a_contrast_excludes_exactly_what_its_p_value_rejects():
    rng = np.random.default_rng(1)
    tables = rng.normal(0.4, 1, (40, 3, 30)) + rng.normal(0, 0.2, (40, 3, 1))
    low, high = intervals.hierarchical_many(tables, level=0.9)
    p = intervals.hierarchical_p_many(tables)
    assert ((p < 0.1) == ((low > 0) | (high < 0))).all() and 0 < (p < 0.1).sum() < 40
    for table, one_low, one_p in zip(tables, low, p, strict=True):
        one = intervals.hierarchical(table)
        assert one.at(0.9).low == pytest.approx(one_low) and one.p() == pytest.approx(one_p)


def test_seeds_that_agree_by_chance_do_not_make_the_interval_vanish():
    table = np.zeros((3, 24))
    table[0, 0] = table[1, 1] = table[2, 2] = 1  # every seed has one hit, on prompts of their own
    found = intervals.hierarchical(table)
    assert found.high - found.low > 0.04
    assert intervals.hierarchical(np.ones((3, 24))).p(0.0) == 0


def test_accuracy_is_wilsons_over_prompts_for_one_seed_and_for_seeds_that_agree():
    answers = np.array([1.0] * 17 + [0.0] * 7)
    known = intervals.wilson(17, 24)
    for table in (answers[None], np.repeat(answers[None], 5, 0)):
        found = intervals.accuracy(table)
        assert (found.estimate, found.n) == (17 / 24, 24)
        assert (found.low, found.high) == pytest.approx((known.low, known.high))


@pytest.mark.parametrize("items", [24, 200])
def test_accuracy_of_all_right_is_wilsons_of_the_distinct_prompts_and_an_error_more_never_raises_it(items):
    table = np.ones((3, items))
    full = intervals.accuracy(table)
    assert (full.low, full.high) == pytest.approx((intervals.wilson(items, items).low, 1.0))
    rng = np.random.default_rng(0)
    for _ in range(items):
        table[rng.integers(3), rng.integers(items)] = 0
        assert intervals.accuracy(table).low <= full.low
    none = intervals.accuracy(np.zeros((3, items)))
    assert (none.low, none.high) == pytest.approx((0.0, 1 - full.low))


def test_accuracy_of_independent_answers_is_nearly_wilsons_over_all_of_them_and_wider_when_seeds_differ():
    rng = np.random.default_rng(4)
    same = (rng.random((5, 400)) < 0.7).astype(float)
    found, pooled = intervals.accuracy(same), intervals.wilson(int(same.sum()), same.size)
    assert found.high - found.low < 1.6 * (pooled.high - pooled.low)
    differ = (rng.random((5, 400)) < np.array([0.5, 0.6, 0.7, 0.8, 0.9])[:, None]).astype(float)
    found, pooled = intervals.accuracy(differ), intervals.wilson(int(differ.sum()), differ.size)
    assert found.high - found.low > 4 * (pooled.high - pooled.low)


def test_accuracy_of_fractions_is_narrower_than_that_of_answers_with_the_same_mean():
    rng = np.random.default_rng(5)
    fractions = rng.uniform(0.4, 0.6, (3, 100))
    answers = (rng.random((3, 100)) < 0.5).astype(float)
    wide, narrow = intervals.accuracy(answers), intervals.accuracy(fractions)
    assert narrow.high - narrow.low < 0.5 * (wide.high - wide.low)


def test_nested_accuracy_counts_fresh_trials_and_lets_seeds_differ():
    known = intervals.wilson(300, 300)
    assert intervals.nested_accuracy([100, 100, 100], [100] * 3).low == pytest.approx(known.low)
    one = intervals.nested_accuracy([70], [100])
    assert (one.low, one.high) == pytest.approx((intervals.wilson(70, 100).low, intervals.wilson(70, 100).high))
    apart = intervals.nested_accuracy([100, 100, 10], [100] * 3)
    assert apart.low < 0.2 and apart.high > 0.95 and apart.n == 300


def test_hierarchical_weights_documents_by_tokens():
    tokens = np.array([1000.0, 10.0])
    nll_a, nll_b = np.array([[3000.0, 10.0]] * 3), np.array([[2000.0, 90.0]] * 3)
    assert intervals.hierarchical(nll_a - nll_b, tokens).estimate == pytest.approx(920 / 1010)


def test_three_seeds_use_t_of_4_30():
    result = tests.paired_t([1.0, 2.0, 3.0])
    assert result.df == 2
    assert (result.high - result.estimate) / (1 / np.sqrt(3)) == pytest.approx(4.3027, abs=1e-4)
    reference = stats.ttest_1samp([1.0, 2.0, 3.0], 0)
    assert (result.statistic, result.p) == pytest.approx((reference.statistic, reference.pvalue))
    one = tests.paired_t([0.4])
    assert one.low == -np.inf and one.high == np.inf and np.isnan(one.p)


def test_both_sides_of_an_equivalence_test_agree_with_statsmodels():
    values = [0.01, -0.02, 0.015, 0.0, 0.005]
    p, (_, below, _), (_, above, _) = DescrStatsW(values).ttost_mean(-0.02, 0.05)
    assert tests.paired_t(values, null=-0.02, alternative="greater").p == pytest.approx(below)
    assert tests.paired_t(values, null=0.05, alternative="less").p == pytest.approx(above)
    table = np.repeat(np.array(values)[:, None], 7, 1)  # items that do not vary
    inside = intervals.hierarchical(table, level=0.9).within(-0.02, 0.05)
    assert inside == (p < 0.05) and inside
    assert not intervals.hierarchical(table, level=0.9).within(-0.02, intervals.hierarchical(table, level=0.9).high)


def test_adjusted_p_values_known_by_hand():
    assert tests.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert tests.benjamini_hochberg([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert len(tests.holm([])) == 0 and len(tests.benjamini_hochberg([])) == 0
    many = np.random.default_rng(0).random((5, 6)) ** 3
    for row, ours in zip(many, tests.holm(many), strict=True):
        assert ours == pytest.approx(multipletests(row, method="holm")[1])
        assert tests.benjamini_hochberg(row) == pytest.approx(multipletests(row, method="fdr_bh")[1])
    with pytest.raises(ValueError, match="p_values"):
        tests.holm([0.1, 1.2])


LENGTHS = [256.0, 512, 1024, 2048, 4096]


@pytest.fixture(scope="module")
def falling():
    """500 prompts whose accuracy falls with length: logit 3 - 1.2 (log2 L - 8), so 50% at L = 1448."""
    rng = np.random.default_rng(0)
    length = np.repeat([256, 512, 1024, 2048, 4096], 100)
    return length, (rng.random(500) < 1 / (1 + np.exp(-(3 - 1.2 * (np.log2(length) - 8))))).astype(float)


def test_curve_equals_an_ordinary_logistic_regression(falling):
    length, correct = falling
    ours = curves.accuracy_curve(length, correct, log=True, at=[256, 700, 4096])
    glm = sm.GLM(correct, sm.add_constant(np.log2(length)), family=sm.families.Binomial()).fit()
    design = sm.add_constant(np.log2([256.0, 700, 4096]))
    assert ours.estimate == pytest.approx(glm.predict(design), abs=0.002)
    wald = glm.get_prediction(design).conf_int()
    assert np.stack([ours.low, ours.high], 1) == pytest.approx(wald, abs=0.02)


def test_a_curve_counts_prompts_once_and_widens_when_seeds_differ(falling):
    length, correct = falling
    once = curves.accuracy_curve(length, correct, items=np.arange(500), at=LENGTHS, log=True)
    three = {"seeds": np.repeat([0, 1, 2], 500), "items": np.tile(np.arange(500), 3)}
    repeated = curves.accuracy_curve(np.tile(length, 3), np.tile(correct, 3), at=LENGTHS, log=True, **three)
    assert repeated.n == 500 and repeated.estimate == pytest.approx(once.estimate, abs=0.005)
    assert repeated.high - repeated.low == pytest.approx(once.high - once.low, rel=0.1)
    worse = np.concatenate([correct, correct * (np.arange(500) % 2), correct * (np.arange(500) % 4 == 0)])
    apart = curves.accuracy_curve(np.tile(length, 3), worse, at=LENGTHS, log=True, **three)
    assert (apart.high - apart.low)[0] > 4 * (once.high - once.low)[0]


def test_curve_of_prompts_all_wrong_or_all_right_keeps_a_band(falling):
    length, _ = falling
    wrong = curves.accuracy_curve(length, np.zeros(500), log=True)
    assert (wrong.estimate < 0.01).all() and (wrong.high > 0.003).all() and (wrong.low <= wrong.estimate).all()
    right = curves.accuracy_curve(length, np.ones(500), log=True)
    assert (right.estimate > 0.99).all() and (right.low < 0.997).all()


def test_spline_follows_a_sag_in_the_middle_that_a_line_cannot():
    rng = np.random.default_rng(2)
    depth = np.tile([0, 0.25, 0.5, 0.75, 1.0], 200)
    truth = {0: 0.9, 0.25: 0.5, 0.5: 0.3, 0.75: 0.5, 1.0: 0.9}
    correct = rng.random(1000) < np.array([truth[d] for d in depth])
    spline = curves.accuracy_curve(depth, correct, shape="spline", at=[0, 0.5, 1])
    assert spline.estimate == pytest.approx([0.9, 0.3, 0.9], abs=0.1)
    line = curves.accuracy_curve(depth, correct, at=[0, 0.5, 1])
    assert np.ptp(line.estimate) < 0.15


def test_crossing_finds_the_half_way_length_and_says_when_there_is_none(falling):
    length, correct = falling
    half = curves.crossing(length, correct, 0.5)
    assert half.low < 1448 < half.high or abs(half.estimate - 1448) < 300
    assert half.low < half.estimate < half.high < 2048
    assert curves.crossing(length, np.ones(500), 0.5).estimate == np.inf
    assert curves.crossing(length, np.zeros(500), 0.5).estimate == 0


def test_the_interval_of_a_crossing_is_where_the_drawn_band_holds_the_level(falling):
    length, correct = falling
    found = curves.crossing(length, correct, 0.5)
    band = curves.accuracy_curve(length, correct, at=[found.low, found.high], log=True)
    assert band.low[0] == pytest.approx(0.5, abs=0.002) and band.high[1] == pytest.approx(0.5, abs=0.002)


def test_interpolated_crossing_by_hand():
    assert curves.interpolated_crossing([1, 2, 3, 4], [[1, 0.9, 0.4, 0.1]], 0.5).estimate == pytest.approx(2.8)
    assert curves.interpolated_crossing([1, 2], [[1, 0.9]], 0.5).estimate == np.inf
    assert curves.interpolated_crossing([1, 2], [[0.1, 0.9]], 0.5).estimate == 1
    one = curves.interpolated_crossing([1, 2, 4], [[1, 0.4, 0.1]], 0.5)
    assert (one.low, one.high) == (1, np.inf)  # one seed says nothing of the others
    y = [[1, 0.9, 0.5, 0.1], [1, 0.8, 0.4, 0.0], [1, 1.0, 0.6, 0.2]]
    found = curves.interpolated_crossing([1, 2, 3, 4], y, 0.5)
    half = 4.3027 * 0.1 / np.sqrt(3)  # the seeds run parallel, 0.1 apart, with slope -0.4
    assert (found.low, found.high) == pytest.approx((3 - half / 0.4, 3 + half / 0.4), abs=0.03)


def test_effective_length_needs_the_lower_bound_not_the_mean():
    lengths = np.repeat([256, 512, 1024], 20)
    correct = np.concatenate([np.ones(20), np.ones(20), [1.0] * 18 + [0.0] * 2])  # 0.9 > 0.85, its bound is not
    result = curves.effective_length(lengths, correct, threshold=0.8)
    assert result.length == result.unbroken == 512 and result.longest_tested == 1024
    dip = curves.effective_length(lengths, np.concatenate([np.ones(20), np.zeros(20), np.ones(20)]), threshold=0.8)
    assert (dip.length, dip.unbroken) == (1024, 256)
    assert curves.effective_length(lengths, np.zeros(60), threshold=0.8).length is None
    thrice = {"seeds": np.repeat([0, 1, 2], 60), "items": np.tile(np.arange(60), 3)}
    same = curves.effective_length(np.tile(lengths, 3), np.tile(correct, 3), threshold=0.8, **thrice)
    assert same.length == 512  # the same prompts under three seeds are not three times as many
    assert dict(same.cells)[1024].n == 20
    with pytest.raises(ValueError, match="length 256 was answered by all 2 seeds"):
        curves.effective_length([256, 256], [1, 1], threshold=0.5, seeds=[0, 1], items=["a", "b"])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="x: 1 distinct"):
        curves.accuracy_curve([1, 1], [0, 1])
    with pytest.raises(ValueError, match="p = 1"):
        curves.crossing([1, 2], [0, 1], 1)
    with pytest.raises(ValueError, match="seeds: 1 labels for 2 answers"):
        curves.accuracy_curve([1, 2], [0, 1], seeds=[0])
    with pytest.raises(ValueError, match="scores from 0 to 1"):
        intervals.accuracy([[0, 2]])
    with pytest.raises(ValueError, match="allowed are 0 <= hits"):
        intervals.nested_accuracy([3], [2])
