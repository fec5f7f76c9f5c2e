"""Selective prediction by hand."""

import numpy as np
import pytest
from robustness.selective import risk_coverage


class TestRiskCoverage:
    def test_by_hand(self):
        found = risk_coverage(np.array([0.9, 0.6, 0.8, 0.7]), np.array([True, False, True, False]))
        assert found["risk"] == pytest.approx([0, 0, 1 / 3, 1 / 2])
        assert found["aurc"] == pytest.approx((1 / 3 + 1 / 2) / 4)
        assert found["accuracy"] == 0.5

    def test_leaves_out_at_least_the_share(self):
        correct = np.ones(21, bool)
        correct[[1, 2]] = False  # the second and third least certain
        found = risk_coverage(np.linspace(0.5, 1, 21), correct)
        assert found["accuracy_at_0.95_coverage"] == pytest.approx(18 / 19)  # 5 % of 21 is two
        assert found["accuracy_at_0.9_coverage"] == 1  # and 10 % three

    def test_a_useless_certainty_gains_nothing(self):
        correct = np.arange(100) % 10 > 0
        found = risk_coverage(np.full(100, 0.5), correct)
        assert found["aurc"] == pytest.approx(0.1)
        assert found["accuracy_at_0.9_coverage"] == pytest.approx(0.9)
