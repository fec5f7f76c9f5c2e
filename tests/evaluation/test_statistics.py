"""Intervals and tests against other implementations, tables computed by hand, and simulations."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, ttest_rel
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from tumorlens.core.errors import DataError
from tumorlens.evaluation.seeds import paired_seeds, summarise_seeds
from tumorlens.evaluation.statistics import (
    delong,
    holm,
    mcnemar,
    newcombe,
    wilson,
)


def answers(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong of two models with these four counts."""
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return np.array(first), np.array(second)


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
    def test_covers_the_truth_about_as_often_as_it_says(self, p, n):
        drawn = np.random.default_rng(0).binomial(n, p, size=4000)
        intervals = {int(correct): wilson(int(correct), n) for correct in np.unique(drawn)}
        covered = np.mean([intervals[int(c)][0] <= p <= intervals[int(c)][1] for c in drawn])
        assert 0.93 <= covered <= 0.97

    @pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 5)])
    def test_refuses_impossible_counts(self, correct, n):
        with pytest.raises(DataError, match=f"{correct} of {n}"):
            wilson(correct, n)


class TestNewcombe:
    def test_published_example(self):
        # Newcombe 1998, table II, method 10, contrast (a): 56/70 − 48/80
        low, high = newcombe(56, 70, 48, 80)
        assert (low, high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))

    @given(counts, counts)
    def test_as_statsmodels_and_turns_with_the_order(self, one, two):
        low, high = newcombe(*one, *two)
        expected = confint_proportions_2indep(*one, *two, method="newcomb", compare="diff")
        assert (low, high) == pytest.approx(expected, abs=1e-9)
        assert newcombe(*two, *one) == pytest.approx((-high, -low), abs=1e-12)


class TestMcnemar:
    def test_exact_by_hand(self):
        # 1 against 9: 2 * (C(10,0) + C(10,1)) / 2^10 = 22 / 1024
        found = mcnemar(*answers(100, 1, 9, 5))
        assert found["p_value"] == pytest.approx(22 / 1024)
        assert found["statistic"] == 1
        assert found["method"] == "exact binomial"

    def test_chi_squared_by_hand(self):
        # 6 against 85: (|6 - 85| - 1)² / 91 = 6084 / 91
        found = mcnemar(*answers(1209, 6, 85, 11))
        assert found["statistic"] == pytest.approx(6084 / 91)
        assert found["p_value"] == pytest.approx(math.erfc(math.sqrt(6084 / 91 / 2)), rel=1e-9)
        assert found["method"] == "chi-squared, continuity corrected"

    @pytest.mark.parametrize(("discordant", "method"), [(24, "exact"), (25, "chi-squared")])
    def test_where_the_method_changes(self, discordant, method):
        assert mcnemar(*answers(3, 4, discordant - 4, 3))["method"].startswith(method)

    def test_no_discordant_pair(self):
        assert mcnemar(*answers(7, 0, 0, 2))["p_value"] == 1

    @pytest.mark.parametrize("each", [1, 12, 13, 400])
    def test_balanced_pairs_are_no_evidence(self, each):
        assert mcnemar(*answers(0, each, each, 0))["p_value"] == pytest.approx(1)

    @given(st.integers(0, 60), st.integers(0, 60))
    def test_as_statsmodels(self, only_first, only_second):
        found = mcnemar(*answers(5, only_first, only_second, 5))
        exact = only_first + only_second < 25
        if not exact and only_first == only_second:
            return  # its correction overshoots equality there; ours is tested above
        expected = statsmodels_mcnemar([[5, only_first], [only_second, 5]], exact=exact, correction=True)
        assert found["p_value"] == pytest.approx(float(expected.pvalue), rel=1e-9)
        assert found["statistic"] == pytest.approx(float(expected.statistic))

    def test_rejects_at_its_level_where_models_are_equal(self):
        random = np.random.default_rng(1)
        only_first = random.binomial(60, 0.5, size=2000)
        p = {int(b): mcnemar(*answers(0, int(b), 60 - int(b), 0))["p_value"] for b in np.unique(only_first)}
        assert 0.01 < np.mean([p[int(b)] < 0.05 for b in only_first]) < 0.06

    @pytest.mark.parametrize(("first", "second"), [([], []), ([True], [True, False]), ([2], [1]), ([[True]], [[True]])])
    def test_refuses_what_is_not_paired(self, first, second):
        with pytest.raises(DataError):
            mcnemar(first, second)


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

    def test_turns_with_the_order(self):
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

    def test_interval_covers_the_truth_about_as_often_as_it_says(self):
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

    @pytest.mark.parametrize(
        ("positive", "first", "second"),
        [
            ([True, True, True], [1, 2, 3], [1, 2, 3]),
            ([False, False, False], [1, 2, 3], [1, 2, 3]),
            ([True, False, False], [1, 2, 3], [1, 2, 3]),
            ([True, True, False, False], [1, 2, 3, math.nan], [1, 2, 3, 4]),
            ([True, True, False, False], [1, 2, 3, 4], [1, 2, 3, math.inf]),
            ([True, True, False, False], [1, 2, 3], [1, 2, 3, 4]),
            ([], [], []),
            ([2, 0, 1, 0], [1, 2, 3, 4], [1, 2, 3, 4]),
        ],
    )
    def test_refuses(self, positive, first, second):
        with pytest.raises(DataError):
            delong(positive, first, second)


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

    def test_a_false_rejection_is_as_rare_as_it_says(self):
        p = np.random.default_rng(5).uniform(size=(2000, 6))
        assert 0.035 <= np.mean([min(holm(row)) <= 0.05 for row in p]) <= 0.06
        assert np.mean(p.min(1) <= 0.05) > 0.2  # what happens without it

    @pytest.mark.parametrize("p_values", [[0.5, 1.1], [-0.1], [math.nan]])
    def test_refuses_what_is_no_probability(self, p_values):
        with pytest.raises(DataError, match="from 0 to 1"):
            holm(p_values)


class TestPairedSeeds:
    @given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12))
    def test_as_scipy(self, pairs):
        first, second = np.array(pairs).T
        found = paired_seeds(first.tolist(), second.tolist())
        assert found["n"] == len(pairs)
        assert found["mean_difference"] == pytest.approx(float(np.mean(second - first)), abs=1e-12)
        if np.std(second - first) < 1e-9:
            return  # scipy warns of it; ours is tested below
        expected = ttest_rel(second, first)
        assert found["statistic"] == pytest.approx(expected.statistic, rel=1e-9, abs=1e-12)
        assert found["p_value"] == pytest.approx(expected.pvalue, rel=1e-9)
        assert found["interval"] == pytest.approx(list(expected.confidence_interval(0.95)), abs=1e-9)

    def test_by_hand(self):
        # Differences 1, 2, 3: mean 2, sd 1, t = 2 √3, and t(0.975, 2) = 4.302653.
        found = paired_seeds([0, 0, 0], [1, 2, 3])
        assert (found["n"], found["mean_difference"], found["sd"]) == (3, 2, 1)
        assert found["statistic"] == pytest.approx(2 * math.sqrt(3))
        assert found["interval"] == pytest.approx([2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)])

    def test_one_seed_has_no_test(self):
        assert paired_seeds([0.9], [0.95]) == {
            "n": 1,
            "mean_difference": pytest.approx(0.05),
            "sd": None,
            "interval": None,
            "statistic": None,
            "p_value": None,
        }

    def test_same_numbers_are_no_difference(self):
        found = paired_seeds([0.3, 0.7, 0.1], [0.1 + 0.2, 0.7, 0.1])  # 0.1 + 0.2 is 0.3 up to rounding
        assert (found["mean_difference"], found["sd"], found["p_value"], found["interval"]) == (0, 0, 1, [0, 0])

    def test_a_difference_that_repeats_itself_proves_nothing(self):
        found = paired_seeds([0.985, 0.987, 0.989], [0.986, 0.988, 0.990])
        assert (found["mean_difference"], found["sd"]) == (pytest.approx(0.001), 0)
        assert (found["interval"], found["statistic"], found["p_value"]) == (None, None, None)

    def test_rejects_at_its_level_where_configurations_are_equal(self):
        draws = np.random.default_rng(6).normal(size=(1000, 2, 5))
        p = [paired_seeds(*draw)["p_value"] for draw in draws]
        assert 0.035 <= np.mean(np.array(p) < 0.05) <= 0.065

    @pytest.mark.parametrize(("first", "second"), [([], []), ([0.9], [0.9, 0.8]), ([0.9, math.nan], [0.9, 0.8])])
    def test_refuses_what_cannot_be_paired(self, first, second):
        with pytest.raises(DataError, match="Cannot pair"):
            paired_seeds(first, second)


class TestSeeds:
    def test_by_hand(self):
        found = summarise_seeds([0.985, 0.987, 0.989])
        assert found == {
            "n": 3,
            "mean": pytest.approx(0.987),
            "sd": pytest.approx(0.002),
            "min": 0.985,
            "max": 0.989,
            "values": [0.985, 0.987, 0.989],
        }

    def test_one_seed_has_no_spread(self):
        assert summarise_seeds([0.9])["sd"] is None

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
    def test_mean_lies_in_the_range(self, values):
        found = summarise_seeds(values)
        assert found["min"] <= found["mean"] <= found["max"]

    @pytest.mark.parametrize("values", [[], [0.9, float("nan")]])
    def test_refuses_nothing_and_nan(self, values):
        with pytest.raises(DataError, match="Cannot summarise"):
            summarise_seeds(values)
