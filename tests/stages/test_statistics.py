"""Intervals, tests and curves against known values, other implementations and simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.power import TTestPower
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


def test_ratio_bootstrap_equals_a_plain_loop_over_documents():
    rng = np.random.default_rng(0)
    tokens = rng.integers(50, 2000, 25).astype(float)
    nll = tokens * rng.normal(3, 0.4, 25)
    fast = intervals.bootstrap_ratio(nll, tokens, draws=4000, seed=1)
    slow = []
    for _ in range(4000):
        rows = rng.integers(0, 25, 25)
        slow.append(nll[rows].sum() / tokens[rows].sum())
    assert fast.estimate == nll.sum() / tokens.sum()
    assert (fast.low, fast.high) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.02)
    ppl = intervals.perplexity(nll, tokens, draws=4000, seed=1)
    assert (ppl.low, ppl.estimate, ppl.high) == pytest.approx(np.exp([fast.low, fast.estimate, fast.high]))
    assert intervals.bootstrap_ratio(nll, tokens, seed=1) == intervals.bootstrap_ratio(nll, tokens, seed=1)


def test_one_document_weighs_by_its_tokens_not_by_its_row():
    assert intervals.perplexity([100.0, 1.0], [100, 10]).estimate == pytest.approx(np.exp(101 / 110))
    assert intervals.bits_per_byte([np.log(2) * 8], [8]).estimate == pytest.approx(1.0)


def test_clustered_interval_is_wider_when_rows_of_a_book_agree():
    rng = np.random.default_rng(3)
    books = np.repeat(np.arange(12), 10)
    scores = rng.normal(0, 1, 12)[books] + rng.normal(0, 0.1, 120)
    clustered = intervals.clustered_mean(scores, [f"book{b}" for b in books])
    naive = intervals.bootstrap_mean(scores)
    assert clustered.n == 12 and naive.n == 120
    assert clustered.high - clustered.low > 2 * (naive.high - naive.low)
    assert clustered.estimate == pytest.approx(naive.estimate)


@pytest.mark.parametrize("seed_sd, item_sd", [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_hierarchical_interval_covers_the_truth_with_three_seeds(seed_sd, item_sd):
    """All seeds answer the same items: the item effect is shared, which resampling items per seed would miss."""
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(300):
        shared = rng.normal(0, item_sd, (1, 30)) + rng.normal(0, seed_sd, (3, 1))
        table = shared + rng.normal(0, 0.5, (3, 30))
        covered += not intervals.hierarchical(table, draws=200, seed=trial).excludes(0)
    assert covered / 300 > 0.91


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


def test_tost_agrees_with_statsmodels_and_needs_more_than_a_small_mean():
    values = [0.01, -0.02, 0.015, 0.0, 0.005]
    ours = tests.tost(values, 0.05)
    p, _, _ = DescrStatsW(values).ttost_mean(-0.05, 0.05)
    assert ours.p == pytest.approx(p) and ours.equivalent and ours.level == 0.9
    noisy = tests.tost([0.3, -0.3, 0.01], 0.05)
    assert not noisy.equivalent and noisy.smallest_margin > 0.3
    assert not tests.tost([0.0], 0.05).equivalent  # one seed proves nothing
    just = tests.tost(values, (ours.low - 1e-9, ours.high + 1e-9))
    assert just.equivalent and just.p == pytest.approx(0.05, abs=1e-3)


def test_equivalence_from_a_bootstrap_interval():
    inside = tests.equivalence(intervals.Estimate(0.0, -0.01, 0.02, 30, "bootstrap", 0.9), 0.03)
    assert inside.equivalent and inside.smallest_margin == 0.02
    assert not tests.equivalence(intervals.Estimate(0.0, -0.01, 0.04, 30, "bootstrap", 0.9), 0.03).equivalent
    with pytest.raises(ValueError, match="margin"):
        tests.tost([0.1, 0.2], -0.1)


def test_adjusted_p_values_known_by_hand():
    assert tests.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert tests.benjamini_hochberg([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert len(tests.holm([])) == 0


def test_minimum_detectable_effect_and_power():
    for n in (3, 5, 30):
        assert tests.minimum_detectable(2.0, n) == pytest.approx(
            2 * TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8), rel=1e-4
        )
    rng = np.random.default_rng(1)
    effect = tests.minimum_detectable(1.0, 3)
    found = stats.ttest_1samp(rng.normal(effect, 1, (4000, 3)), 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.03)
    assert tests.minimum_detectable(1.0, 1) == np.inf
    assert tests.power_paired_t(0.0, 1.0, 5) == pytest.approx(0.05)


def test_minimum_detectable_proportion_against_the_binomial():
    base, n = 0.25, 40
    accuracy = tests.minimum_detectable_proportion(base, n)
    needed = next(k for k in range(n + 1) if stats.binom.sf(k - 1, n, base) <= 0.05)
    assert stats.binom.sf(needed - 1, n, accuracy) == pytest.approx(0.8, abs=1e-6)
    assert tests.minimum_detectable_proportion(0.9, 2) == 1.0


def test_mcnemar_looks_at_discordant_prompts_only():
    a = [1] * 10 + [1] * 6 + [0] * 1
    b = [1] * 10 + [0] * 6 + [1] * 1
    result = tests.mcnemar(a, b)
    assert result.p == pytest.approx(stats.binomtest(6, 7).pvalue)
    assert result.estimate == pytest.approx(5 / 17)


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


def test_interpolated_crossing_by_hand():
    assert curves.interpolated_crossing([1, 2, 3, 4], [[1, 0.9, 0.4, 0.1]], 0.5).estimate == pytest.approx(2.8)
    assert curves.interpolated_crossing([1, 2], [[1, 0.9]], 0.5).estimate == np.inf
    assert curves.interpolated_crossing([1, 2], [[0.1, 0.9]], 0.5).estimate == 1


def test_effective_length_needs_the_lower_bound_not_the_mean():
    lengths = np.repeat([256, 512, 1024], 20)
    correct = np.concatenate([np.ones(20), np.ones(20), [1.0] * 18 + [0.0] * 2])  # 0.9 > 0.85, its bound is not
    result = curves.effective_length(lengths, correct, threshold=0.8)
    assert result.length == result.unbroken == 512 and result.longest_tested == 1024
    dip = curves.effective_length(lengths, np.concatenate([np.ones(20), np.zeros(20), np.ones(20)]), threshold=0.8)
    assert (dip.length, dip.unbroken) == (1024, 256)
    assert curves.effective_length(lengths, np.zeros(60), threshold=0.8).length is None


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="x: 1 distinct"):
        curves.accuracy_curve([1, 1], [0, 1])
    with pytest.raises(ValueError, match="p = 1"):
        curves.crossing([1, 2], [0, 1], 1)
