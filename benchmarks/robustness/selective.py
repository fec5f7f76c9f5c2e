"""What is gained when the least certain images are left to a person."""

from __future__ import annotations

import numpy as np

from tumorlens.core.files import Json
from tumorlens.inference.uncertainty.arrays import Bools, Floats

POINTS = 200  # at most, of the curve kept


def risk_coverage(certainty: Floats, correct: Bools) -> Json:
    """The risk-coverage curve (El-Yaniv and Wiener, JMLR 11, 2010; Geifman and El-Yaniv, NeurIPS 2017).

    Images are answered from the most certain on. At each coverage (share answered) the risk is the share of
    wrong ones among those answered. Equally certain images are answered together in a random order, of which
    the expected risk is taken.

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
        `accuracy_at_0.95_coverage` and `accuracy_at_0.9_coverage`: 5 % and 10 % left out, rounded to whole
        images so that at least that share is left out; `accuracy`, of all.
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
