"""Predictions of one configuration: probabilities per image, and predictions.csv, the file that holds them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tumorlens.core.errors import DataError, RunError
from tumorlens.core.files import csv_line, writing

SPLITS = ("train", "validation", "test")
_SUM_TOLERANCE = 1e-4  # a softmax of float32, written with 9 digits, stays far below
_COLUMNS = ("path", "label", "predicted", "split")
Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of one configuration for n images.

    Probabilities are rounded to 9 significant digits here, once, so that everything computed from them is the same
    from memory and from predictions.csv.

    Raises
    ------
    DataError
        Shapes, labels, splits or probabilities are invalid, or a path appears twice.
    """

    paths: tuple[str, ...]
    """Relative to the data set's root, without duplicates."""
    labels: Labels
    """int64 [n], true class as index into `classes`."""
    probabilities: Probabilities
    """float64 [n, classes], each row sums to 1."""
    splits: tuple[str, ...]
    """`train`, `validation` or `test` for each image."""
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        labels, probabilities = checked_probabilities(self.labels, self.probabilities, self.classes)
        if not len(self.paths) == len(self.splits) == len(labels):
            raise DataError(
                f"{len(self.paths)} paths, {len(self.splits)} splits and {len(labels)} labels do not match.",
                cure="Pass one of each per image.",
            )
        if unknown := sorted(set(self.splits) - set(SPLITS)):
            raise DataError(f"Split {unknown[0]!r} is unknown.", cure=f"Use one of {', '.join(SPLITS)}.")
        if len(set(self.paths)) < len(self.paths):
            twice = next(path for i, path in enumerate(self.paths) if path in self.paths[:i])
            raise DataError(f"Image {twice!r} is predicted twice.", cure="Pass each image once.")
        rounded = np.array([float(f"{p:.9g}") for p in probabilities.ravel()]).reshape(probabilities.shape)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "probabilities", rounded)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def predicted(self) -> Labels:
        """int64 [n], the most probable class; the first of equally probable ones."""
        return np.asarray(self.probabilities.argmax(1), np.int64)

    def for_split(self, split: str) -> Predictions:
        """The images of one split, in the same order."""
        return self.take([i for i, name in enumerate(self.splits) if name == split])

    def take(self, rows: Sequence[int]) -> Predictions:
        """The images at these places, in this order."""
        paths, splits = (tuple(values[i] for i in rows) for values in (self.paths, self.splits))
        return Predictions(paths, self.labels[rows], self.probabilities[rows], splits, self.classes)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions.csv, which appears under its name only when complete.

    Raises
    ------
    RunError
        The file cannot be written.
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


def read_predictions(path: Path) -> Predictions:
    """Read predictions.csv as `write_predictions` wrote it, to its 9 significant digits.

    Raises
    ------
    RunError
        The file is missing, cannot be read or is damaged; the message names the line.
    """
    cure = f"Write it again: tumorlens evaluate {path.parent.parent}"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            classes = _classes_of(header)
            rows: dict[str, tuple[int, str, list[float]]] = {}
            for values in reader:
                if len(values) != len(header):
                    raise ValueError(f"{len(values)} values, but the header has {len(header)}")
                record = dict(zip(header, values, strict=True))
                if record["path"] in rows:
                    raise ValueError(f"image {record['path']!r} appears twice")
                rows[record["path"]] = _parsed(record, classes)
    except FileNotFoundError:
        raise RunError(f"{path} is missing.", cure=cure) from None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}).", cure="Check its permissions.") from None
    except (ValueError, csv.Error) as error:
        raise RunError(f"{path}, line {reader.line_num}: {error}.", cure=cure) from None
    if not rows:
        raise RunError(f"{path} has no rows.", cure=cure)
    labels, splits, probabilities = zip(*rows.values(), strict=True)
    return Predictions(tuple(rows), np.array(labels), np.array(probabilities), splits, classes)


def _classes_of(header: Sequence[str]) -> tuple[str, ...]:
    """Class names from the columns p_<class>; ValueError if a column is missing or appears twice."""
    if missing := [name for name in _COLUMNS if name not in header]:
        raise ValueError(f"column {missing[0]!r} is missing")
    if len(set(header)) < len(header):
        raise ValueError("a column appears twice")
    classes = tuple(name[2:] for name in header if name.startswith("p_"))
    if len(classes) < 2:
        raise ValueError("there are fewer than two columns p_<class>")
    return classes


def _parsed(record: dict[str, str], classes: tuple[str, ...]) -> tuple[int, str, list[float]]:
    """Label, split and probabilities of one line; ValueError if one is invalid."""
    for column, allowed in (("label", classes), ("predicted", classes), ("split", SPLITS)):
        if record[column] not in allowed:
            raise ValueError(f"{column} {record[column]!r} is none of {', '.join(allowed)}")
    probabilities = []
    for column in (f"p_{name}" for name in classes):
        try:
            probabilities.append(float(record[column]))
        except ValueError:
            raise ValueError(f"{column} is {record[column]!r}, which is not a number") from None
    if not (all(p >= 0 for p in probabilities) and abs(sum(probabilities) - 1) <= _SUM_TOLERANCE):
        raise ValueError(f"the probabilities {probabilities} are not from 0 to 1 with sum 1")
    top = classes[probabilities.index(max(probabilities))]
    if record["predicted"] != top:
        raise ValueError(f"predicted is {record['predicted']!r}, but {top!r} is the most probable class")
    return classes.index(record["label"]), record["split"], probabilities


def checked_probabilities(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, classes: Sequence[str]
) -> tuple[Labels, Probabilities]:
    """Labels as int64 [n] and probabilities as float64 [n, k], n ≥ 0, or a DataError."""
    y, p = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    k = len(classes)
    if k < 2 or len(set(classes)) < k:
        raise DataError(f"Classes {list(classes)} are not two or more distinct names.", cure="Pass distinct names.")
    if y.ndim != 1 or p.shape != (len(y), k):
        raise DataError(
            f"Labels {y.shape} and probabilities {p.shape} do not match {k} classes.",
            cure=f"Pass labels [n] and probabilities [n, {k}].",
        )
    if not y.size:
        return np.zeros(0, np.int64), p
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= k:
        raise DataError(f"Labels are not integers from 0 to {k - 1}.", cure="Pass class indices.")
    with np.errstate(all="ignore"):  # sums of infinities are refused, without a warning
        wrong = ~((p >= 0).all(1) & (np.abs(p.sum(1) - 1) <= _SUM_TOLERANCE))  # NaN fails both
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"Probabilities of image {row} are {p[row].tolist()}: not finite, negative, or their sum is not 1.",
            cure="Pass probabilities (softmax), not logits.",
        )
    return y.astype(np.int64), p
