"""Temperature, calibration errors, Brier score and log loss against scikit-learn, by hand, and by simulation."""

import numpy as np
import pytest
from evaluation_cases import draws
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as sklearn_log_loss

from tumorlens.core.errors import DataError
from tumorlens.inference.uncertainty.arrays import softmax
from tumorlens.inference.uncertainty.calibration import (
    brier,
    expected_calibration_error,
    fit_temperature,
    log_loss,
    reliability,
    reliability_equal_mass,
)


class Logits(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose features are its logits."""

    def fit(self, x, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, x):
        return x

    def predict(self, x):
        return self.classes_[x.argmax(1)]


class TestTemperature:
    @pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
    def test_as_scikit_learn(self, true):
        logits, labels = draws(800, temperature=true)
        theirs = CalibratedClassifierCV(FrozenEstimator(Logits().fit(logits, labels)), method="temperature", cv=2)
        theirs.fit(logits, labels)
        ours = softmax(logits, fit_temperature(logits, labels))
        assert ours == pytest.approx(theirs.predict_proba(logits), abs=2e-4)

    @pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
    def test_finds_the_temperature_that_drew_the_labels(self, true):
        assert fit_temperature(*draws(20_000, temperature=true)) == pytest.approx(true, rel=0.04)

    def test_no_other_temperature_is_better(self):
        logits, labels = draws(300, temperature=1.7)
        best = fit_temperature(logits, labels)
        losses = [log_loss(softmax(logits, best * factor), labels) for factor in (0.9, 0.999, 1.001, 1.1)]
        assert min(losses) >= log_loss(softmax(logits, best), labels)

    def test_stays_1_where_every_image_is_right(self):
        assert fit_temperature([[2.0, 0.0], [0.0, 1.0]], [0, 1]) == 1.0

    @given(st.integers(0, 50))
    def test_never_changes_the_most_probable_class(self, seed):
        logits, labels = draws(30, temperature=2.0, seed=seed)
        assert (softmax(logits, fit_temperature(logits, labels)).argmax(1) == logits.argmax(1)).all()

    @pytest.mark.parametrize(
        ("logits", "labels"),
        [(np.zeros((0, 2)), np.zeros(0, int)), ([[1.0, np.nan]], [0]), ([[1.0, 2.0]], [2]), ([[1.0, 2.0]], [0.5])],
    )
    def test_bad_input(self, logits, labels):
        with pytest.raises(DataError) as caught:
            fit_temperature(logits, labels)
        assert caught.value.cure


class TestEqualWidth:
    """`ece`: Guo et al. 2017."""

    def test_bins_of_several_images(self):
        bins = reliability(np.array([0.95, 0.97, 0.99, 0.55]), np.array([True, True, False, True]))
        assert [(b["n"], pytest.approx(b["confidence"]), b["accuracy"]) for b in bins] == [
            (1, 0.55, 1.0),
            (3, 0.97, 2 / 3),
        ]
        assert expected_calibration_error(bins) == pytest.approx((3 * abs(2 / 3 - 0.97) + 0.45) / 4)

    def test_upper_edge_belongs_to_its_bin(self):
        bins = reliability(np.array([1 / 3, 0.4, np.nextafter(0.4, 1), 1.0]), np.ones(4, bool))
        assert [(pytest.approx(b["low"] * 15), pytest.approx(b["high"] * 15)) for b in bins] == [
            (4, 5), (5, 6), (6, 7), (14, 15)
        ]  # fmt: skip

    def test_perfect_and_worst(self):
        assert expected_calibration_error(reliability(np.ones(5), np.ones(5, bool))) == 0
        assert expected_calibration_error(reliability(np.ones(5), np.zeros(5, bool))) == 1


def adaptive(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    return expected_calibration_error(reliability_equal_mass(confidence, correct, bins))


class TestEqualMass:
    """`adaptive_ece`: Nguyen and O'Connor 2015."""

    def test_by_hand(self):
        confidence, correct = np.array([0.6, 0.9, 0.7, 1.0]), np.array([True, True, False, True])
        bins = reliability_equal_mass(confidence, correct, bins=2)
        assert [(b["n"], b["accuracy"]) for b in bins] == [(2, 0.5), (2, 1.0)]
        assert [(b["low"], b["high"]) for b in bins] == [(0.6, 0.7), (0.9, 1.0)]
        assert [b["confidence"] for b in bins] == pytest.approx([0.65, 0.95])
        assert adaptive(confidence, correct, bins=2) == pytest.approx((0.15 + 0.05) / 2)

    def test_bins_hold_equally_many(self):
        logits, labels = draws(1000)
        p = softmax(logits)
        assert {b["n"] for b in reliability_equal_mass(p.max(1), p.argmax(1) == labels)} <= {66, 67}

    def test_the_order_of_equally_confident_images_does_not_matter(self):
        confidence, correct = np.full(100, 0.9), np.arange(100) < 50
        assert adaptive(confidence, correct) == pytest.approx(0.4)
        assert adaptive(confidence, correct[::-1]) == pytest.approx(0.4)


def test_brier_score_and_log_loss_as_scikit_learn():
    logits, labels = draws(500)
    p = softmax(logits)
    expected = brier_score_loss(labels, p, labels=range(4), scale_by_half=False)
    assert brier(p, labels) == pytest.approx(expected)
    assert log_loss(p, labels) == pytest.approx(sklearn_log_loss(labels, p, labels=range(4)))
