"""Intervals and tests against other implementations, tables computed by hand, and simulations."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from evaluation_cases import correctness
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from tumorlens.evaluation.statistics import (
    delong,
    holm,
    mcnemar,
    newcombe,
    wilson,
)

counts = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


class TestWilson:
    def test_by_hand(self):
        # z = 1.959964, z² = 3.841459: centre (0.5 + 0.1920729) / 1.3841459 = 0.5 for 5 of 10,
        # half = 1.959964 / 1.3841459 * sqrt(0.025 + 0.009603647) = 0.263407
        low, high = wilson(5, 10)
        assert (low, high) == (pytest.approx(0.2365931, abs=1e-6), pytest.approx(0.7634069, abs=1e-6))

    def test_all_right_has_the_rule_of_z_squared(self):
        low, high = wilson(20, 20)
        assert low == pytest.approx(20 / (20 + 1.959963985**2))
        assert high == 1.0

    @given(counts, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
    def test_as_statsmodels(self, count, confidence):
        expected = proportion_confint(*count, alpha=1 - confidence, method="wilson")
        assert wilson(*count, confidence) == pytest.approx(expected, abs=1e-12)

    @given(counts)
    def test_holds_the_proportion_and_mirrors(self, count):
        correct, n = count
        low, high = wilson(correct, n)
        assert 0 <= low <= correct / n <= high <= 1
        assert wilson(n - correct, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)

    @pytest.mark.parametrize(("p", "n"), [(0.987, 1311), (0.9268, 300), (0.5, 40)])
    def test_covers_the_truth_at_its_nominal_rate(self, p, n):
        drawn = np.random.default_rng(0).binomial(n, p, size=4000)
        intervals = {int(correct): wilson(int(correct), n) for correct in np.unique(drawn)}
        covered = np.mean([intervals[int(c)][0] <= p <= intervals[int(c)][1] for c in drawn])
        assert 0.93 <= covered <= 0.97


class TestNewcombe:
    def test_published_example(self):
        # Newcombe 1998, table II, method 10, contrast (a): 56/70 − 48/80
        low, high = newcombe(56, 70, 48, 80)
        assert (low, high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))

    @given(counts, counts)
    def test_as_statsmodels_and_changes_sign_with_the_order(self, one, two):
        low, high = newcombe(*one, *two)
        expected = confint_proportions_2indep(*one, *two, method="newcomb", compare="diff")
        assert (low, high) == pytest.approx(expected, abs=1e-9)
        assert newcombe(*two, *one) == pytest.approx((-high, -low), abs=1e-12)


class TestMcnemar:
    def test_exact_by_hand(self):
        # 1 against 9: 2 * (C(10,0) + C(10,1)) / 2^10 = 22 / 1024
        found = mcnemar(*correctness(100, 1, 9, 5))
        assert found["p_value"] == pytest.approx(22 / 1024)
        assert found["statistic"] == 1
        assert found["method"] == "exact binomial"

    def test_chi_squared_by_hand(self):
        # 6 against 85: (|6 - 85| - 1)² / 91 = 6084 / 91
        found = mcnemar(*correctness(1209, 6, 85, 11))
        assert found["statistic"] == pytest.approx(6084 / 91)
        assert found["p_value"] == pytest.approx(math.erfc(math.sqrt(6084 / 91 / 2)), rel=1e-9)
        assert found["method"] == "chi-squared, continuity corrected"

    @pytest.mark.parametrize(("discordant", "method"), [(24, "exact"), (25, "chi-squared")])
    def test_where_the_method_changes(self, discordant, method):
        assert mcnemar(*correctness(3, 4, discordant - 4, 3))["method"].startswith(method)

    def test_no_discordant_pair(self):
        assert mcnemar(*correctness(7, 0, 0, 2))["p_value"] == 1

    @pytest.mark.parametrize("each", [1, 12, 13, 400])
    def test_balanced_pairs_are_no_evidence(self, each):
        assert mcnemar(*correctness(0, each, each, 0))["p_value"] == pytest.approx(1)

    @given(st.integers(0, 60), st.integers(0, 60))
    def test_as_statsmodels(self, only_first, only_second):
        found = mcnemar(*correctness(5, only_first, only_second, 5))
        exact = only_first + only_second < 25
        if not exact and only_first == only_second:
            return  # its correction overshoots equality there; ours is tested above
        expected = statsmodels_mcnemar([[5, only_first], [only_second, 5]], exact=exact, correction=True)
        assert found["p_value"] == pytest.approx(float(expected.pvalue), rel=1e-9)
        assert found["statistic"] == pytest.approx(float(expected.statistic))

    def test_rejects_at_its_level_where_models_are_equal(self):
        random = np.random.default_rng(1)
        only_first = random.binomial(60, 0.5, size=2000)
        p = {int(b): mcnemar(*correctness(0, int(b), 60 - int(b), 0))["p_value"] for b in np.unique(only_first)}
        assert 0.01 < np.mean([p[int(b)] < 0.05 for b in only_first]) < 0.06


def slow_delong(positive, first, second):
    """The paper's placement values, pair by pair: AUCs, difference and its variance."""
    v10, v01 = [], []
    for scores in (first, second):
        x, y = scores[positive][:, None], scores[~positive][None]
        psi = (x > y) + 0.5 * (x == y)
        v10.append(psi.mean(1))
        v01.append(psi.mean(0))
    s = np.cov(v10) / len(v10[0]) + np.cov(v01) / len(v01[0])
    contrast = np.array([-1, 1])
    return v10[0].mean(), v10[1].mean(), float(contrast @ s @ contrast)


def scored(random, n: int, ties: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two correlated scores of n images, a third of them positive."""
    positive = np.arange(n) % 3 == 0
    shared = random.normal(size=n) + positive
    first, second = shared + random.normal(size=n), shared + random.normal(size=n)
    return (positive, first.round(), second.round()) if ties else (positive, first, second)


class TestDelong:
    @pytest.mark.parametrize("ties", [False, True])
    @pytest.mark.parametrize("n", [7, 60, 400])
    def test_as_the_placement_values(self, n, ties):
        for seed in range(10):
            positive, first, second = scored(np.random.default_rng(seed), n, ties)
            auc1, auc2, variance = slow_delong(positive, first, second)
            found = delong(positive, first, second)
            assert (found["auc_first"], found["auc_second"]) == pytest.approx((auc1, auc2), abs=1e-12)
            assert found["auc_first"] == pytest.approx(roc_auc_score(positive, first), abs=1e-12)
            assert found["auc_second"] == pytest.approx(roc_auc_score(positive, second), abs=1e-12)
            assert found["difference"] == pytest.approx(auc2 - auc1, abs=1e-12)
            half = 1.959963985 * math.sqrt(variance)
            expected = [max(auc2 - auc1 - half, -1), min(auc2 - auc1 + half, 1)]
            assert found["interval"] == pytest.approx(expected, abs=1e-8)
            if variance > 1e-9:
                z = (auc2 - auc1) / math.sqrt(variance)
                assert found["statistic"] == pytest.approx(z, abs=1e-9)
                assert found["p_value"] == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=1e-9)

    def test_by_hand(self):
        # Positives 3 and 1 against negatives 2 and 0: V10 = 1, 1/2 and V01 = 1/2, 1. The second score
        # separates them: all 1. Variances of the differences: 1/8 each, so 1/8 / 2 + 1/8 / 2 = 1/8.
        found = delong([True, True, False, False], [3, 1, 2, 0], [3, 2, 1, 0])
        assert (found["auc_first"], found["auc_second"], found["difference"]) == (0.75, 1, 0.25)
        assert found["statistic"] == pytest.approx(0.25 / math.sqrt(1 / 8))

    def test_only_the_order_of_scores_counts(self):
        positive, first, second = scored(np.random.default_rng(0), 90)
        assert delong(positive, np.exp(first), 7 * second - 3) == delong(positive, first, second)

    def test_changes_sign_with_the_order(self):
        positive, first, second = scored(np.random.default_rng(1), 90)
        one, two = delong(positive, first, second), delong(positive, second, first)
        assert (one["difference"], one["p_value"]) == (-two["difference"], two["p_value"])
        assert one["interval"] == [-two["interval"][1], -two["interval"][0]]

    def test_same_order_is_no_difference(self):
        positive, first, _ = scored(np.random.default_rng(2), 60)
        found = delong(positive, first, 2 * first)
        assert (found["p_value"], found["statistic"], found["interval"]) == (1, 0, [0, 0])

    def test_a_difference_that_nothing_measures(self):
        found = delong([True, True, False, False], [0, 0, 1, 1], [1, 1, 0, 0])
        assert found["difference"] == 1
        assert (found["interval"], found["statistic"], found["p_value"]) == (None, None, None)

    def test_p_is_uniform_where_models_are_equal(self):
        random = np.random.default_rng(3)
        p = np.array([delong(*scored(random, 240))["p_value"] for _ in range(1000)])
        assert kstest(p, "uniform").pvalue > 0.01
        assert 0.035 <= np.mean(p < 0.05) <= 0.065  # 0.05 ± 2 standard errors

    def test_interval_covers_the_truth_at_its_nominal_rate(self):
        random = np.random.default_rng(4)
        # x + d against x is right with probability Φ(d / √2) at unit variance.
        truth = NormalDist().cdf(1.5 / math.sqrt(2)) - NormalDist().cdf(1 / math.sqrt(2))
        covered = 0
        for _ in range(800):
            positive = np.arange(200) < 80
            first, second = random.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], size=200).T
            low, high = delong(positive, first + positive, second + 1.5 * positive)["interval"]
            covered += low <= truth <= high
        assert 0.93 <= covered / 800 <= 0.97


class TestHolm:
    def test_by_hand(self):
        # Sorted: 0.01 * 3 = 0.03; 0.03 * 2 = 0.06; 0.04 * 1 may not be under 0.06.
        assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])

    def test_none_and_one(self):
        assert holm([]) == []
        assert holm([0.2]) == [0.2]

    @pytest.mark.parametrize("n", [1, 2, 3, 5, 12, 40])
    def test_as_statsmodels(self, n):
        random = np.random.default_rng(n)
        for values in (random.uniform(size=n), random.uniform(0, 0.05, size=n), random.integers(0, 5, size=n) / 40):
            expected = multipletests(values, method="holm")[1]  # 50 ms a call
            assert holm(values.tolist()) == pytest.approx(expected.tolist(), abs=1e-12)

    def test_the_family_wise_error_is_held(self):
        p = np.random.default_rng(5).uniform(size=(2000, 6))
        assert 0.035 <= np.mean([min(holm(row)) <= 0.05 for row in p]) <= 0.06
        assert np.mean(p.min(1) <= 0.05) > 0.2  # what happens without it
