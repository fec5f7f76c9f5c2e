"""Predictions and what they are worth: the metrics of one configuration on each part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    average_precision_score,
    classification_report,
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

from tumorlens.core.errors import DataError
from tumorlens.core.files import Json
from tumorlens.evaluation.predictions import PARTS, Predictions, Probabilities, _checked
from tumorlens.evaluation.statistics import wilson

BINS = 15  # of the reliability diagram, as in Guo et al. 2017
ROC_POINTS = 200  # at most, in metrics.json
_EPS = float(np.finfo(np.float64).eps)


def evaluate_predictions(predictions: Predictions, configuration_name: str) -> Json:
    """Everything that metrics.json holds, for the parts that have images; DataError where none has."""
    parts = {split: predictions.part(split) for split in PARTS if split in predictions.splits}
    if not parts:
        raise DataError(f"{configuration_name} has no predictions.", cure="Predict at least one image.")
    return {
        "configuration": configuration_name,
        "classes": list(predictions.classes),
        "parts": {name: measure(part.labels, part.probabilities, part.classes) for name, part in parts.items()},
    }


def measure(labels: npt.ArrayLike, probabilities: npt.ArrayLike, classes: Sequence[str]) -> Json:
    """All metrics of one part.

    Parameters
    ----------
    labels
        int [n], true classes as indices into `classes`; n ≥ 1.
    probabilities
        float64 [n, k], k ≥ 2, each row sums to 1 within 1e-4. The most probable class is predicted.
    classes
        k names.

    Returns
    -------
    dict
        As in metrics.json. Fractions are from 0 to 1. Where not obvious:

        - `accuracy_interval`: Wilson's, 95 %.
        - `confusion`: rows are true classes, columns predicted ones.
        - `per_class`: a ratio without a denominator is 0, as in scikit-learn's report. `roc_auc` and
          `average_precision` are one against the rest, and None where the part lacks images of the
          class or has no others.
        - `macro`: plain means over the classes that have images here; each mean of `roc_auc` and
          `average_precision` over those that have one. `weighted`: means by support.
        - `log_loss`: mean of −ln p(true class), p at least 2.2e-16; natural logarithm.
        - `brier`: mean over images of the squared distance between probabilities and the true class's
          unit vector, from 0 to 2 (Brier, Monthly Weather Review 78, 1950).
        - `ece`: expected calibration error of the top probability in 15 equal bins (Guo et al., ICML
          2017, eq. 3); `reliability` are its bins, (low, high].
        - `roc`: for classes that have a `roc_auc`; at most 200 points, which moves the curve by at most
          0.01.
        - `text`: scikit-learn's report, whose macro average is over all classes.

    Raises
    ------
    DataError
        No images, a label out of range, or no probabilities.
    """
    y, p = _checked(labels, probabilities, classes)
    n, k = p.shape
    if not n:
        raise DataError("There are no images to measure.", cure="Give the part at least one image.")
    predicted = p.argmax(1)
    correct = int(np.sum(predicted == y))
    confusion = confusion_matrix(y, predicted, labels=range(k))
    precision, recall, f1, support = precision_recall_fscore_support(y, predicted, labels=range(k), zero_division=0.0)
    per_class: Json = {}
    roc: Json = {}
    for i, name in enumerate(classes):
        has_curve = 0 < support[i] < n
        per_class[name] = {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "support": int(support[i]),
            "roc_auc": float(roc_auc_score(y == i, p[:, i])) if has_curve else None,
            "average_precision": float(average_precision_score(y == i, p[:, i])) if has_curve else None,
        }
        if has_curve:
            roc[name] = _roc(y == i, p[:, i])
    present = [row for row in per_class.values() if row["support"]]
    basic = ("precision", "recall", "f1")
    ece, reliability = calibration(p.max(1), predicted == y)
    return {
        "n": n,
        "correct": correct,
        "accuracy": correct / n,
        "accuracy_interval": list(wilson(correct, n)),
        "confusion": confusion.tolist(),
        "per_class": per_class,
        "macro": {key: _mean([row[key] for row in present]) for key in (*basic, "roc_auc", "average_precision")},
        "weighted": {
            key: float(np.average([row[key] for row in present], weights=[row["support"] for row in present]))
            for key in basic
        },
        "log_loss": float(-np.log(np.clip(p[np.arange(n), y], _EPS, 1)).mean()) + 0.0,
        "brier": float(((p - np.eye(k)[y]) ** 2).sum(1).mean()),
        "ece": ece,
        "reliability": reliability,
        "roc": roc,
        "text": classification_report(
            y, predicted, labels=range(k), target_names=list(classes), digits=4, zero_division=0.0
        ),
    }


def calibration(confidence: Probabilities, correct: npt.NDArray[np.bool_]) -> tuple[float, list[Json]]:
    """Expected calibration error, 0 to 1, and the bins behind it (Guo et al., ICML 2017, eq. 3).

    Of `confidence`, float64 [n], the probability of the predicted class, and `correct`, bool [n].
    A bin that has images tells low, high, n, and their mean confidence and accuracy.
    """
    edges = np.linspace(0, 1, BINS + 1)
    place = np.digitize(confidence, edges[1:-1], right=True)  # bin i is (edges[i], edges[i + 1]]
    bins: list[Json] = [
        {
            "low": float(edges[i]),
            "high": float(edges[i + 1]),
            "n": int(np.sum(place == i)),
            "confidence": float(confidence[place == i].mean()),
            "accuracy": float(correct[place == i].mean()),
        }
        for i in np.unique(place)
    ]
    return sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / len(confidence), bins


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


def _roc(positive: npt.NDArray[np.bool_], score: Probabilities) -> dict[str, Any]:
    """ROC curve, thinned to points about equally far apart along it."""
    fpr, tpr, _ = roc_curve(positive, score)
    if len(fpr) > ROC_POINTS:
        along = fpr + tpr  # from 0 to 2, never falling
        wanted = np.linspace(0, 2, ROC_POINTS)
        keep = np.unique(np.searchsorted(along, wanted).clip(0, len(along) - 1))
        fpr, tpr = fpr[keep], tpr[keep]
    return {"fpr": fpr.tolist(), "tpr": tpr.tolist()}
