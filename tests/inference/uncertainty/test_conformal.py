"""Prediction sets against crepes, and their coverage by simulation."""

import numpy as np
import pytest
from crepes import ConformalClassifier
from hypothesis import given
from hypothesis import strategies as st
from robustness.conformal import class_quantiles, nonconformity
from robustness.evaluation import COVERAGES, coverage_interval, measure_sets

from tumorlens.core.errors import ConfigError
from tumorlens.inference.uncertainty.arrays import softmax
from tumorlens.inference.uncertainty.conformal import prediction_sets, quantile, scores


def draws(n: int, seed: int, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n, k], miscalibrated on purpose, and labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, k))
    labels = (softmax(logits).cumsum(1) < rng.random((n, 1))).sum(1).clip(0, k - 1)
    return softmax(logits, 0.5), labels


@pytest.mark.parametrize("kind", ["lac", "aps"])
@pytest.mark.parametrize("coverage", COVERAGES)
class TestAgainstCrepes:
    # (n + 1) * coverage is no whole number for 500: crepes keeps p = 1 − coverage, we do not
    def test_marginal(self, kind, coverage):
        p, y = draws(500, 0)
        known, found = nonconformity(p, kind), nonconformity(draws(200, 1)[0], kind)
        own = known[np.arange(500), y]
        theirs = ConformalClassifier().fit(own).predict_set(found, confidence=coverage, smoothing=False)
        assert ((found <= quantile(own, coverage)) == theirs).all()

    def test_class_conditional(self, kind, coverage):
        p, y = draws(500, 0)
        known, found = nonconformity(p, kind), nonconformity(draws(200, 1)[0], kind)
        own = known[np.arange(500), y]
        ours = found <= class_quantiles(own, y, 4, coverage)
        for c in range(4):
            classifier = ConformalClassifier().fit(own[y == c])
            theirs = classifier.predict_set(found[:, [c]], confidence=coverage, smoothing=False)
            assert (ours[:, [c]] == theirs).all()

    def test_covers_as_often_as_it_says(self, kind, coverage):
        covered, inside = [], 0
        for seed in range(100):
            p, y = draws(300, 2 * seed)
            q, z = draws(300, 2 * seed + 1)
            level = quantile(nonconformity(p, kind)[np.arange(300), y], coverage)
            sets = nonconformity(q, kind) <= level
            covered.append(sets[np.arange(300), z].mean())
            low, high = coverage_interval(300, 300, coverage)
            inside += low <= covered[-1] <= high
        assert np.mean(covered) == pytest.approx(coverage, abs=0.006)
        assert inside >= 89


class TestScores:
    def test_by_hand(self):
        p = np.array([[0.2, 0.5, 0.3]])
        assert scores(p)[0] == pytest.approx([0.8, 0.5, 0.7])
        assert nonconformity(p, "aps")[0] == pytest.approx([1.0, 0.5, 0.8])

    @given(st.integers(0, 30), st.sampled_from(["lac", "aps"]))
    def test_a_more_probable_class_never_fits_worse(self, seed, kind):
        p = draws(5, seed)[0]
        order = np.argsort(-p, 1)
        assert (np.diff(np.take_along_axis(nonconformity(p, kind), order, 1)) >= 0).all()


class TestQuantile:
    def test_by_hand(self):
        # ⌈10 × 0.9⌉ = 9 of 9: the largest; one more image is needed for more
        assert quantile(np.arange(9.0), 0.9) == 8
        assert quantile(np.arange(9.0), 0.91) == np.inf

    @pytest.mark.parametrize("coverage", [0, 1, 1.5, float("nan")])
    def test_bad_coverage(self, coverage):
        with pytest.raises(ConfigError, match="coverage"):
            quantile(np.arange(9.0), coverage)


def test_empty_sets_get_the_best_class():
    found = np.array([[0.4, 0.6], [0.1, 0.9]])
    assert prediction_sets(found, 0.2).tolist() == [[True, False], [True, False]]


def test_measured_sets_report_their_coverage():
    found = measure_sets(*draws(400, 0), *draws(400, 1))
    for kind in ("lac", "aps"):
        for coverage in COVERAGES:
            row = found[kind]["marginal"][str(coverage)]
            low, high = row["expected"]
            assert low <= row["coverage_unfilled"] <= high
            assert row["coverage_unfilled"] <= row["coverage"] <= row["coverage_unfilled"] + row["empty"]
            assert 1 <= row["mean_set_size"] <= 4
    by_class = found["lac"]["class_conditional"]["0.9"]["by_class"]
    assert min(by_class) > 0.8
