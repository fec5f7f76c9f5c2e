"""Calibration errors with intervals, by simulation."""

import numpy as np
from evaluation_cases import draws
from robustness.evaluation import calibration_errors

from tumorlens.inference.uncertainty.arrays import softmax
from tumorlens.inference.uncertainty.calibration import (
    expected_calibration_error,
    fit_temperature,
    reliability,
    reliability_equal_mass,
)


def adaptive(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    return expected_calibration_error(reliability_equal_mass(confidence, correct, bins))


class TestCalibrationErrors:
    def test_each_name_has_its_bins(self):
        logits, labels = draws(500, temperature=2.0)
        p = softmax(logits)
        found = calibration_errors(p, labels, repeats=1)
        confidence, correct = p.max(1), p.argmax(1) == labels
        assert found["ece"] == expected_calibration_error(reliability(confidence, correct))
        assert found["adaptive_ece"] == adaptive(confidence, correct)
        assert abs(found["ece"] - found["adaptive_ece"]) > 1e-4

    def test_falls_to_near_0_with_the_right_temperature(self):
        logits, labels = draws(20_000, temperature=2.5)
        before = calibration_errors(softmax(logits), labels, repeats=50)
        after = calibration_errors(softmax(logits, fit_temperature(logits, labels)), labels, repeats=50)
        for key in ("ece", "adaptive_ece"):
            assert before[key] > 0.1
            assert after[key] < 0.02  # the bias of 20,000 images

    def test_interval_holds_the_error_in_most_draws(self):
        # Softmax at 1 of labels drawn at 2: an error that 200,000 images give exactly enough.
        logits, labels = draws(200_000, temperature=2.0, seed=99)
        truth = adaptive(softmax(logits).max(1), logits.argmax(1) == labels)
        held = 0
        for seed in range(50):
            logits, labels = draws(400, temperature=2.0, seed=seed)
            low, high = calibration_errors(softmax(logits), labels, repeats=100, seed=seed)["interval"]
            held += low <= truth <= high
        assert held >= 42  # 95 % of 50 is 47.5, and 42 its 0.5 % quantile

    def test_groups_widen_it(self):
        logits, labels = draws(300, temperature=3.0)
        logits, labels = logits.repeat(4, 0), labels.repeat(4)
        alone = calibration_errors(softmax(logits), labels, repeats=300)["interval"]
        grouped = calibration_errors(softmax(logits), labels, np.arange(300).repeat(4), repeats=300)["interval"]
        assert grouped[1] - grouped[0] > 1.5 * (alone[1] - alone[0])
