"""Prediction sets that are measured but not used: adaptive ones (APS), and class-conditional (Mondrian) quantiles.

On an accurate model APS sets exceed the target coverage and hold most classes.
"""

from __future__ import annotations

import numpy as np

from tumorlens.inference.uncertainty.arrays import Floats, Ints
from tumorlens.inference.uncertainty.conformal import quantile, scores

SCORES = ("lac", "aps")


def nonconformity(probabilities: Floats, kind: str = "lac") -> Floats:
    """Nonconformity of every class, float64 [n, k] of probabilities [n, k], 0 to 1; high for unlikely classes.

    `lac` is the score in use. `aps` is the probability of all classes at least as probable, itself included (Romano,
    Sesia and Candès, NeurIPS 2020), not randomized: the same image always gets the same set.
    """
    if kind == "lac":
        return scores(probabilities)
    order = np.argsort(-probabilities, 1, kind="stable")
    summed = np.cumsum(np.take_along_axis(probabilities, order, 1), 1)
    found = np.empty_like(probabilities)
    np.put_along_axis(found, order, summed, 1)
    return found


def class_quantiles(calibration: Floats, labels: Ints, classes: int, coverage: float) -> Floats:
    """float64 [classes], the quantile of each class's validation scores; infinite if there are too few."""
    return np.array([quantile(calibration[labels == c], coverage) for c in range(classes)])
