"""Are probabilities what they say? One temperature to correct them, and how far off they are.

For the study; classifying needs none of it.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from tumorlens.core.errors import DataError
from tumorlens.core.files import Json
from tumorlens.inference.uncertainty.arrays import (
    Bools,
    Floats,
    Ints,
    softmax,
)

BINS = 15  # of equal mass
COOLEST, HOTTEST = 0.05, 20.0  # temperatures searched: beyond them softmax is one-hot or flat


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The temperature T under which softmax(logits / T) has the least negative log-likelihood.

    Guo et al., ICML 2017, section 4.2. The likelihood is convex in 1 / T, so a bounded search (Brent's)
    finds the one minimum. It never changes which class is most probable.

    Parameters
    ----------
    logits
        float [n, k], n ≥ 1, finite.
    labels
        int [n], 0 to k − 1.

    Returns
    -------
    float
        0.05 to 20; above 1 where the model is too sure. 1 where every image is right: the likelihood would
        then grow forever as T falls, which proves no probability of 1.

    Raises
    ------
    DataError
        No images, other shapes, or values out of range.
    """
    z, y = np.asarray(logits, np.float64), np.asarray(labels)
    check_labels(z, y)
    if (z.argmax(1) == y).all():
        return 1.0
    margins = z - z[np.arange(len(y)), y][:, None]  # ≤ 0 for all other classes where the image is right

    def loss(inverse: float) -> float:
        scaled = margins * inverse
        top = scaled.max(1)
        return float((top + np.log(np.exp(scaled - top[:, None]).sum(1))).mean())

    found = minimize_scalar(loss, bounds=(1 / HOTTEST, 1 / COOLEST), method="bounded", options={"xatol": 1e-9})
    return float(1 / found.x)


def check_labels(values: Floats, labels: npt.NDArray[np.generic]) -> None:
    """DataError unless `values` is finite [n, k] and `labels` holds n whole numbers from 0 to k − 1."""
    if values.ndim != 2 or not len(values) or labels.shape != values.shape[:1] or not np.isfinite(values).all():
        raise DataError(
            f"Values {values.shape} and labels {labels.shape} do not fit, are none, or are not finite.",
            cure="Give finite values [n, classes] and labels [n] of at least one image.",
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= values.shape[1]:
        raise DataError(
            f"Labels are not whole numbers from 0 to {values.shape[1] - 1}.", cure="Pass indices of classes."
        )


def reliability(confidence: Floats, correct: Bools, bins: int = BINS) -> list[Json]:
    """The reliability diagram in bins of equal mass.

    Parameters
    ----------
    confidence
        float64 [n], probability of the predicted class, 0 to 1.
    correct
        bool [n].
    bins
        At most; each holds n / bins images, rounded either way.

    Returns
    -------
    list of dict
        From the least sure bin: n, mean `confidence`, `accuracy`, and the `low` and `high` confidence.
    """
    order = np.argsort(confidence, kind="stable")
    sure = confidence[order]
    # Equal confidences share their accuracy, so that the order of images does not move the bins' contents.
    _, of, counts = np.unique(sure, return_inverse=True, return_counts=True)
    right = (np.bincount(of, correct[order]) / counts)[of]
    edges = np.linspace(0, len(sure), min(bins, len(sure)) + 1).round().astype(int)
    return [
        {
            "low": float(sure[start]),
            "high": float(sure[stop - 1]),
            "n": int(stop - start),
            "confidence": float(sure[start:stop].mean()),
            "accuracy": float(right[start:stop].mean()),
        }
        for start, stop in pairwise(edges)
    ]


def expected_calibration_error(confidence: Floats, correct: Bools, bins: int = BINS) -> float:
    """Mean |accuracy − confidence| over bins of equal mass, weighted by images; 0 to 1.

    Guo et al. 2017, eq. 3, with the bins of Nguyen and O'Connor, EMNLP 2015: bins of equal width would leave
    nearly all images of an accurate model in one. With few images it is biased upwards (Roelofs et al.,
    AISTATS 2022): even perfect probabilities do not give 0.
    """
    found = reliability(confidence, correct, bins)
    return float(sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in found) / len(confidence))


def calibration_error(
    probabilities: Floats, labels: Ints, groups: npt.ArrayLike | None = None, repeats: int = 1000, seed: int = 0
) -> Json:
    """Calibration error of the predicted class, with a percentile bootstrap interval (95 %).

    Parameters
    ----------
    probabilities
        float64 [n, k], n ≥ 1; rows sum to 1.
    labels
        int [n].
    groups
        Group of each image [n], such as patients or twins: whole groups are resampled.
    repeats, seed
        Of the bootstrap.

    Returns
    -------
    dict
        `ece`, `interval` and `n`. Resampled images repeat, which biases the interval further upwards: read
        its upper end as cautious.
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    ids = np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    members = np.split(np.argsort(ids, kind="stable"), np.cumsum(np.bincount(ids))[:-1])
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(repeats):
        drawn = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        values.append(expected_calibration_error(confidence[drawn], correct[drawn]))
    low, high = np.percentile(values, [2.5, 97.5])
    ece = expected_calibration_error(confidence, correct)
    return {"ece": ece, "interval": [float(low), float(high)], "n": len(labels)}


def brier(probabilities: Floats, labels: Ints) -> float:
    """Mean squared distance between probabilities and the true class's unit vector, 0 to 2 (Brier 1950)."""
    k = probabilities.shape[1]
    return float(((probabilities - np.eye(k)[labels]) ** 2).sum(1).mean())


def log_loss(logits: npt.ArrayLike, labels: Ints, temperature: float = 1.0) -> float:
    """Mean −ln p(true class) under a temperature; natural logarithm."""
    p = softmax(logits, temperature)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(p, np.finfo(np.float64).tiny)).mean())
