"""Intervals and tests against other implementations, tables computed by hand, and simulations."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from tumorlens.errors import DataError
from tumorlens.statistics import bootstrap_difference, mcnemar, newcombe, summarise_seeds, wilson


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


class TestBootstrap:
    def test_repeatable_and_turns_with_the_order(self):
        first, second = answers(200, 10, 30, 60)
        low, high = bootstrap_difference(first, second)
        assert bootstrap_difference(first, second) == (low, high)
        assert low < 20 / 300 < high
        back = bootstrap_difference(second, first)
        assert back == pytest.approx((-high, -low), abs=0.01)

    def test_same_answers_have_no_width(self):
        assert bootstrap_difference(*answers(5, 0, 0, 5)) == (0, 0)

    def test_as_the_normal_approximation(self):
        low, high = bootstrap_difference(*answers(800, 40, 100, 60), repeats=20_000)
        se = math.sqrt((140 / 1000 - 0.06**2) / 1000)
        assert (low, high) == (pytest.approx(0.06 - 1.96 * se, abs=0.002), pytest.approx(0.06 + 1.96 * se, abs=0.002))

    def test_groups_of_one_are_images(self):
        first, second = answers(800, 40, 100, 60)
        alone = bootstrap_difference(first, second, repeats=8000)
        grouped = bootstrap_difference(first, second, groups=np.arange(1000), repeats=8000)
        assert grouped == pytest.approx(alone, abs=0.004)

    def test_copies_widen_only_the_grouped_interval(self):
        first, second = (np.repeat(a, 9) for a in answers(80, 4, 10, 6))
        groups = np.repeat([f"patient {i}" for i in range(100)], 9)
        alone = np.diff(bootstrap_difference(first, second))[0]
        grouped = np.diff(bootstrap_difference(first, second, groups))[0]
        single = np.diff(bootstrap_difference(*answers(80, 4, 10, 6)))[0]
        assert grouped == pytest.approx(3 * alone, rel=0.15)
        assert grouped == pytest.approx(single, rel=0.15)

    def test_covers_the_truth_about_as_often_as_it_says(self):
        random = np.random.default_rng(2)
        truth = 0.10 - 0.04
        covered = 0
        for i in range(400):
            kinds = random.choice(4, p=[0.80, 0.04, 0.10, 0.06], size=400)
            low, high = bootstrap_difference(np.isin(kinds, (0, 1)), np.isin(kinds, (0, 2)), repeats=500, seed=i)
            covered += low <= truth <= high
        assert 0.92 <= covered / 400 <= 0.98

    def test_covers_with_groups_of_unequal_size(self):
        random = np.random.default_rng(3)
        truth, covered = 0.06, 0
        for i in range(300):
            sizes = random.integers(1, 12, size=80)
            # Slices of one patient share their fate: the hardest case for an interval by image.
            kinds = np.repeat(random.choice(4, p=[0.80, 0.04, 0.10, 0.06], size=80), sizes)
            groups = np.repeat(np.arange(80), sizes)
            low, high = bootstrap_difference(
                np.isin(kinds, (0, 1)), np.isin(kinds, (0, 2)), groups, repeats=400, seed=i
            )
            covered += low <= truth <= high
        assert 0.89 <= covered / 300 <= 0.98

    def test_unequal_groups_by_hand(self):
        # Group a (one image, corrected) and b (three, unchanged): drawn aa 1, ab 1/4, bb 0.
        first, second = [False, True, True, True], [True, True, True, True]
        assert bootstrap_difference(first, second, ["a", "b", "b", "b"]) == (0, 1)

    @pytest.mark.parametrize("groups", [[1, 1, 1], [1, 2]])
    def test_refuses_groups_that_cannot_be_drawn(self, groups):
        with pytest.raises(DataError, match="group"):
            bootstrap_difference([True, False, True], [True, True, True], groups)

    def test_refuses_no_repeats(self):
        with pytest.raises(DataError, match="repeats = 0"):
            bootstrap_difference([True], [False], repeats=0)


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
