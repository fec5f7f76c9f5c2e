"""Predictions of one configuration: probabilities per image, and the CSV file that holds them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tumorlens.core.errors import DataError, RunError
from tumorlens.core.files import csv_line, writing

PARTS = ("train", "validation", "test")
_SUM_TOLERANCE = 1e-4  # a softmax of float32, written with 9 digits, stays far below
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
