"""Selective prediction: the accuracy if the least certain images are deferred to a person."""

from __future__ import annotations

import numpy as np

from tumorlens.core.files import Json
from tumorlens.inference.uncertainty.arrays import Bools, Floats

POINTS = 200  # at most, of the curve kept


def risk_coverage(certainty: Floats, correct: Bools) -> Json:
    """The risk-coverage curve (El-Yaniv and Wiener, JMLR 11, 2010; Geifman and El-Yaniv, NeurIPS 2017).

    Images are accepted in order of falling certainty. At each coverage (share accepted) the risk is the error rate
    among those accepted. Equally certain images are accepted together, with the expected risk of a random order.

    Parameters
    ----------
    certainty
        float [n], n ≥ 1: the calibrated probability of the predicted class.
    correct
        bool [n].

    Returns
    -------
    dict
        `aurc`, the mean risk over the n coverages; `coverage` and `risk`, at most 200 points of the curve;
        `accuracy_at_0.95_coverage` and `accuracy_at_0.9_coverage`: 5 % and 10 % deferred, rounded to whole
        images so that at least that share is deferred; `accuracy`, of all.
    """
    order = np.argsort(-certainty, kind="stable")
    _, of, counts = np.unique(-certainty[order], return_inverse=True, return_counts=True)
    wrong = (np.bincount(of, ~correct[order]) / counts)[of]
    n = len(wrong)
    risk = np.cumsum(wrong) / np.arange(1, n + 1)
    keep = np.unique(np.linspace(0, n - 1, min(n, POINTS)).round().astype(int))
    left = {
        f"accuracy_at_{coverage}_coverage": float(1 - risk[max(int(n * coverage + 1e-9), 1) - 1])
        for coverage in (0.95, 0.9)
    }
    return {
        "aurc": float(risk.mean()),
        "coverage": ((keep + 1) / n).tolist(),
        "risk": risk[keep].tolist(),
        "accuracy": float(1 - risk[-1]),
        **left,
    }
