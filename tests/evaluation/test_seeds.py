"""Means and paired tests over seeds, against scipy, by hand and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from tumorlens.evaluation.seeds import paired_seeds, summarise_seeds


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
