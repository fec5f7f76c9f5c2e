"""The metrics of one configuration on each split."""

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
from tumorlens.evaluation.predictions import SPLITS, Predictions, Probabilities, checked_probabilities
from tumorlens.evaluation.statistics import wilson
from tumorlens.inference.uncertainty.calibration import (
    brier,
    expected_calibration_error,
    log_loss,
    reliability,
    reliability_equal_mass,
)

ROC_POINTS = 200  # at most, in metrics.json


def evaluate_predictions(predictions: Predictions, configuration_name: str) -> Json:
    """The content of metrics.json: `measure` of each split that has images; DataError if there are none."""
    found = {split: predictions.for_split(split) for split in SPLITS if split in predictions.splits}
    if not found:
        raise DataError(f"{configuration_name} has no predictions.", cure="Predict at least one image.")
    return {
        "configuration": configuration_name,
        "classes": list(predictions.classes),
        "parts": {split: measure(one.labels, one.probabilities, one.classes) for split, one in found.items()},
    }


def measure(labels: npt.ArrayLike, probabilities: npt.ArrayLike, classes: Sequence[str]) -> Json:
    """All metrics of one split.

    Parameters
    ----------
    labels
        int [n], true classes as indices into `classes`; n ≥ 1.
    probabilities
        float64 [n, k], k ≥ 2, each row sums to 1 within 1e-4. The most probable class is predicted.
    classes
        k distinct names.

    Returns
    -------
    dict
        As in metrics.json; fractions are from 0 to 1. What is not obvious:

        - `accuracy_interval`: Wilson's, 95 %.
        - `confusion`: rows are true classes, columns predicted ones.
        - `per_class`: a ratio with denominator 0 is 0, as in scikit-learn's report. `roc_auc` and
          `average_precision` are one-vs-rest, and None if all images or none are of the class.
        - `macro`: unweighted means over the classes that have images; those of `roc_auc` and
          `average_precision` over the classes that have one. `weighted`: means weighted by support.
        - `log_loss`, `brier`, `ece` (15 bins of equal width), `adaptive_ece` (15 bins of equal mass) and
          `reliability` (the bins behind `ece`): as `tumorlens.inference.uncertainty.calibration` defines them.
        - `roc`: for classes that have a `roc_auc`; thinned to at most 200 points, which moves the curve by at most
          0.01.
        - `text`: scikit-learn's classification report, whose macro average is over all classes.

    Raises
    ------
    DataError
        There are no images, a label is out of range, or a row is not a probability distribution.
    """
    y, p = checked_probabilities(labels, probabilities, classes)
    n, k = p.shape
    if not n:
        raise DataError("There are no images to measure.", cure="Pass at least one image.")
    predicted, confidence = p.argmax(1), p.max(1)
    right = predicted == y
    correct = int(np.sum(right))
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
    bins = reliability(confidence, right)
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
        "log_loss": log_loss(p, y),
        "brier": brier(p, y),
        "ece": expected_calibration_error(bins),
        "adaptive_ece": expected_calibration_error(reliability_equal_mass(confidence, right)),
        "reliability": bins,
        "roc": roc,
        "text": classification_report(
            y, predicted, labels=range(k), target_names=list(classes), digits=4, zero_division=0.0
        ),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


def _roc(positive: npt.NDArray[np.bool_], score: Probabilities) -> dict[str, Any]:
    """The ROC curve, thinned to points that lie about equally far apart along it."""
    fpr, tpr, _ = roc_curve(positive, score)
    if len(fpr) > ROC_POINTS:
        along = fpr + tpr  # from 0 to 2, never falling
        wanted = np.linspace(0, 2, ROC_POINTS)
        keep = np.unique(np.searchsorted(along, wanted).clip(0, len(along) - 1))
        fpr, tpr = fpr[keep], tpr[keep]
    return {"fpr": fpr.tolist(), "tpr": tpr.tolist()}
