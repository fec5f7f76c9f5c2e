"""Temperature scaling, and the scores of probabilistic predictions: calibration errors, Brier score, log loss.

The only definitions in the package; evaluation, export and benchmarks use these. Classifying needs none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from tumorlens.core.errors import DataError
from tumorlens.core.files import Json
from tumorlens.inference.uncertainty.arrays import Bools, Floats, Ints

BINS = 15  # of reliability diagrams and calibration errors, as in Guo et al. 2017
COOLEST, HOTTEST = 0.05, 20.0  # temperatures searched: beyond them softmax is one-hot or flat
_EPS = float(np.finfo(np.float64).eps)  # least probability of the true class in the log loss, as in scikit-learn


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The temperature T that minimises the negative log-likelihood of softmax(logits / T).

    Guo et al., ICML 2017, section 4.2. The negative log-likelihood is convex in 1 / T, so a bounded search (Brent's)
    finds its only minimum. A temperature never changes which class is most probable.

    Parameters
    ----------
    logits
        float [n, k], n ≥ 1, finite.
    labels
        int [n], 0 to k − 1.

    Returns
    -------
    float
        0.05 to 20; above 1 if the model is overconfident. 1 if every prediction is correct: the likelihood then
        grows without bound as T falls, which does not justify probabilities of 1.

    Raises
    ------
    DataError
        There are no images, shapes do not match, or values are out of range.
    """
    z, y = np.asarray(logits, np.float64), np.asarray(labels)
    k = z.shape[-1]
    if z.shape != (len(y), k) or not z.size or not np.isfinite(z).all() or not np.isin(y, np.arange(k)).all():
        raise DataError(
            f"Logits {z.shape} and labels {y.shape} do not match, are empty or out of range, or are not finite.",
            cure="Pass finite logits [n, k] and integer labels [n] from 0 to k - 1 of at least one image.",
        )
    if (z.argmax(1) == y).all():
        return 1.0
    margins = z - z[np.arange(len(y)), y][:, None]  # ≤ 0 for all other classes if the prediction is correct

    def loss(inverse: float) -> float:
        scaled = margins * inverse
        top = scaled.max(1)
        return float((top + np.log(np.exp(scaled - top[:, None]).sum(1))).mean())

    found = minimize_scalar(loss, bounds=(1 / HOTTEST, 1 / COOLEST), method="bounded", options={"xatol": 1e-9})
    return float(1 / found.x)


def reliability(confidence: Floats, correct: Bools) -> list[Json]:
    """The reliability diagram in 15 bins of equal width, (low, high], as in Guo et al., ICML 2017.

    Parameters
    ----------
    confidence
        float64 [n], n ≥ 1, probability of the predicted class, 0 to 1.
    correct
        bool [n].

    Returns
    -------
    list of dict
        The bins that hold images, from the least confident: `low` and `high` edges, `n`, mean `confidence`, and
        `accuracy`.
    """
    edges = np.linspace(0, 1, BINS + 1)
    bin_of = np.digitize(confidence, edges[1:-1], right=True)
    return [
        _bin(float(edges[i]), float(edges[i + 1]), confidence[bin_of == i], correct[bin_of == i])
        for i in np.unique(bin_of)
    ]


def reliability_equal_mass(confidence: Floats, correct: Bools, bins: int = BINS) -> list[Json]:
    """The reliability diagram in bins of n / bins images each, rounded either way.

    Parameters and result are those of `reliability`, but `low` and `high` are the least and the largest confidence
    in the bin. Images of equal confidence share their accuracy, so that their order does not matter.
    """
    order = np.argsort(confidence, kind="stable")
    ordered = confidence[order]
    _, value_of, counts = np.unique(ordered, return_inverse=True, return_counts=True)
    accuracy = (np.bincount(value_of, correct[order]) / counts)[value_of]
    edges = np.linspace(0, len(ordered), min(bins, len(ordered)) + 1).round().astype(int)
    slices = [slice(start, stop) for start, stop in pairwise(edges)]
    return [_bin(float(ordered[s][0]), float(ordered[s][-1]), ordered[s], accuracy[s]) for s in slices]


def _bin(low: float, high: float, confidence: Floats, correct: Bools | Floats) -> Json:
    return {
        "low": low,
        "high": high,
        "n": len(confidence),
        "confidence": float(confidence.mean()),
        "accuracy": float(correct.mean()),
    }


def expected_calibration_error(bins: Sequence[Json]) -> float:
    """Mean |accuracy − confidence| over the bins of a reliability diagram, weighted by images; 0 to 1.

    From `reliability` it is the expected calibration error of Guo et al. 2017, eq. 3, which we call `ece`. From
    `reliability_equal_mass` it is the adaptive one (Nguyen and O'Connor, EMNLP 2015), which we call `adaptive_ece`:
    bins of equal width hold nearly all images of an accurate model in one. With few images both are biased upwards
    (Roelofs et al., AISTATS 2022): even perfect probabilities do not give 0.
    """
    return float(sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / sum(b["n"] for b in bins))


def brier(probabilities: Floats, labels: Ints) -> float:
    """Mean squared distance between the probabilities [n, k] and the true class's unit vector, 0 to 2 (Brier 1950)."""
    k = probabilities.shape[1]
    return float(((probabilities - np.eye(k)[labels]) ** 2).sum(1).mean())


def log_loss(probabilities: Floats, labels: Ints) -> float:
    """Mean −ln p(true class) of probabilities [n, k], p at least 2.2e-16; natural logarithm."""
    # + 0.0 turns −0.0 into 0.0. scikit-learn's own warns of rows that sum to 1 only within float32's rounding.
    return float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], _EPS, 1)).mean()) + 0.0
