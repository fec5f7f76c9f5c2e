"""Predictions and what they are worth: the metrics of one configuration on each part."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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

from tumorlens.errors import DataError, RunError
from tumorlens.runs import Json, writing
from tumorlens.statistics import wilson

PARTS = ("train", "validation", "test")
BINS = 15  # of the reliability diagram, as in Guo et al. 2017
ROC_POINTS = 200  # at most, in metrics.json
_SUM_TOLERANCE = 1e-4  # a softmax of float32, written with 9 digits, stays far below
_EPS = float(np.finfo(np.float64).eps)
_COLUMNS = ("path", "label", "predicted", "split")

Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one configuration says about every image.

    Probabilities are rounded to 9 significant digits here, once, so that everything computed
    from them comes out the same from memory and from predictions.csv.

    Raises
    ------
    DataError
        Shapes, labels, parts or probabilities are wrong, or a path stands twice.
    """

    paths: tuple[str, ...]
    """Relative to the data set's root; each once."""
    labels: Labels
    """int64 [n], true class as index into `classes`."""
    probabilities: Probabilities
    """float64 [n, classes], each row sums to 1."""
    splits: tuple[str, ...]
    """`train`, `validation` or `test` for each image."""
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        labels, probabilities = _checked(self.labels, self.probabilities, self.classes)
        if not len(self.paths) == len(self.splits) == len(labels):
            raise DataError(
                f"{len(self.paths)} paths, {len(self.splits)} splits and {len(labels)} labels do not fit.",
                cure="Give one of each an image.",
            )
        if unknown := sorted(set(self.splits) - set(PARTS)):
            raise DataError(f"Split {unknown[0]!r} is unknown.", cure=f"Use one of {', '.join(PARTS)}.")
        if len(set(self.paths)) < len(self.paths):
            twice = next(path for i, path in enumerate(self.paths) if path in self.paths[:i])
            raise DataError(f"Image {twice!r} is predicted twice.", cure="Give each image once.")
        rounded = np.array([float(f"{p:.9g}") for p in probabilities.ravel()]).reshape(probabilities.shape)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "probabilities", rounded)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def predicted(self) -> Labels:
        """int64 [n], the most probable class; the first of equals."""
        return np.asarray(self.probabilities.argmax(1), np.int64)

    def part(self, split: str) -> Predictions:
        """The images of one part, in the same order."""
        rows = [i for i, name in enumerate(self.splits) if name == split]
        paths, splits = tuple(self.paths[i] for i in rows), (split,) * len(rows)
        return Predictions(paths, self.labels[rows], self.probabilities[rows], splits, self.classes)


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


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions.csv, which appears under its name only when complete.

    Raises
    ------
    RunError
        It cannot be written.
    """
    names = predictions.classes
    lines = [csv_line([*_COLUMNS, *(f"p_{name}" for name in names)])]
    for image, label, predicted, split, row in zip(
        predictions.paths, predictions.labels, predictions.predicted, predictions.splits,
        predictions.probabilities, strict=True,
    ):  # fmt: skip
        lines.append(csv_line([image, names[label], names[predicted], split, *(f"{p:.9g}" for p in row)]))
    with writing(path) as file:
        file.write("".join(lines).encode())


def csv_line(values: Sequence[str]) -> str:
    """One line of CSV that csv reads back, whatever the values hold."""
    # With "\n" as its terminator, csv leaves a lone "\r" in a name unquoted and cannot read it back.
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue().removesuffix("\r\n") + "\n"


def read_predictions(path: Path) -> Predictions:
    """Read predictions.csv as `write_predictions` left it, to its 9 significant digits.

    Raises
    ------
    RunError
        It is missing, unreadable or damaged; the message names the line.
    """
    cure = f"Write it anew: tumorlens evaluate {path.parent.parent}"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            classes = _classes_of(header)
            rows: dict[str, tuple[int, str, list[float]]] = {}
            for values in reader:
                if len(values) != len(header):
                    raise ValueError(f"{len(values)} values where the header has {len(header)}")
                image, row = _row_of(dict(zip(header, values, strict=True)), classes)
                if image in rows:
                    raise ValueError(f"image {image!r} stands twice")
                rows[image] = row
    except FileNotFoundError:
        raise RunError(f"{path} is missing.", cure=cure) from None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}).", cure="Check its permissions.") from None
    except (ValueError, csv.Error) as error:
        raise RunError(f"{path}, line {reader.line_num}: {error}.", cure=cure) from None
    if not rows:
        raise RunError(f"{path} has no rows.", cure=cure)
    labels, splits, probabilities_found = zip(*rows.values(), strict=True)
    return Predictions(tuple(rows), np.array(labels), np.array(probabilities_found), splits, classes)


def _classes_of(header: Sequence[str]) -> tuple[str, ...]:
    """Class names from the columns p_<class>; ValueError where a column is missing or doubled."""
    if missing := [name for name in _COLUMNS if name not in header]:
        raise ValueError(f"column {missing[0]!r} is missing")
    if len(set(header)) < len(header):
        raise ValueError("a column stands twice")
    classes = tuple(name[2:] for name in header if name.startswith("p_"))
    if len(classes) < 2:
        raise ValueError("there are fewer than two columns p_<class>")
    return classes


def _row_of(record: dict[str, str], classes: tuple[str, ...]) -> tuple[str, tuple[int, str, list[float]]]:
    """Path, and label, split and probabilities, of one line; ValueError says what is wrong with it."""
    for column in ("label", "predicted"):
        if record[column] not in classes:
            raise ValueError(f"{column} {record[column]!r} has no column of probabilities")
    if record["split"] not in PARTS:
        raise ValueError(f"split {record['split']!r} is none of {', '.join(PARTS)}")
    probabilities = []
    for name in classes:
        text = record[f"p_{name}"]
        try:
            probabilities.append(float(text))
        except ValueError:
            raise ValueError(f"p_{name} is {text!r}, which is no number") from None
    if not (all(p >= 0 for p in probabilities) and abs(sum(probabilities) - 1) <= _SUM_TOLERANCE):
        raise ValueError(f"the probabilities {probabilities} are not from 0 to 1 with sum 1")
    top = classes[probabilities.index(max(probabilities))]
    if record["predicted"] != top:
        raise ValueError(f"predicted is {record['predicted']!r}, but {top!r} is the most probable class")
    return record["path"], (classes.index(record["label"]), record["split"], probabilities)


def _checked(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, classes: Sequence[str]
) -> tuple[Labels, Probabilities]:
    """Labels int64 [n] and probabilities float64 [n, k], or a DataError."""
    y, p = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    k = len(classes)
    if k < 2 or len(set(classes)) < k:
        raise DataError(f"Classes {list(classes)} are not two or more different names.", cure="Name them.")
    if y.ndim != 1 or p.shape != (len(y), k):
        raise DataError(
            f"Labels {y.shape} and probabilities {p.shape} do not fit {k} classes.",
            cure=f"Pass labels [n] and probabilities [n, {k}].",
        )
    if not y.size:
        return np.zeros(0, np.int64), p
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= k:
        raise DataError(f"Labels are not whole numbers from 0 to {k - 1}.", cure="Pass indices of classes.")
    with np.errstate(all="ignore"):  # sums of infinities are refused, not warned of
        wrong = ~((p >= 0).all(1) & (np.abs(p.sum(1) - 1) <= _SUM_TOLERANCE))  # NaN fails both
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"Probabilities of image {row} are {p[row].tolist()}: not finite, negative, or their sum is not 1.",
            cure="Pass probabilities (softmax), not logits.",
        )
    return y.astype(np.int64), p


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
