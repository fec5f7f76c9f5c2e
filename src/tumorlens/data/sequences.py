"""Which MR sequence and plane an image shows, as far as its thumbnail tells, and how far they give the class away.

Two linear classifiers (multinomial logistic regression) on 158 numbers of a 32 x 32 grey thumbnail. They were fitted by
benchmarks/sequences.py to 390 training images of version 1, labelled by eye by engineers, not radiologists. On other
data sets their accuracy is not known. `sequences.json` holds the coefficients and the cross-validated accuracy.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tumorlens.core.files import Json
from tumorlens.data.index import ImageRecord
from tumorlens.readers.pixels import THUMBNAIL, Pixels

UNKNOWN = "unknown"
UNKNOWN_BELOW = 0.6  # probability
_FOLDS = 5
_BLOCK = 2048  # thumbnails at a time
_RADIUS = np.hypot(*np.meshgrid(*[np.arange(THUMBNAIL) - (THUMBNAIL - 1) / 2] * 2))
_RING = np.digitize(_RADIUS, (3, 6, 9, 12, 14, 16))  # 0 is the centre
_PERCENTILES = np.array([2, 10, 25, 40, 60, 75, 90, 98])

Floats = npt.NDArray[np.float64]


def looks(thumbnails: Pixels) -> Floats:
    """Numbers that tell sequences and planes apart: float64 [n, 158].

    Levels are relative to the image's 98th percentile. The numbers are means of 4 x 4 pixels of the average of the
    thumbnail and its mirror image, and of their difference (symmetry tells planes apart); percentiles in rings around
    the centre, of the whole, and of the slopes between neighbouring pixels; the brightness; and a histogram.

    Parameters
    ----------
    thumbnails
        uint8 [n, 32, 32], grey.
    """
    n = len(thumbnails)
    bright = _percentiles(thumbnails.reshape(n, -1))[:, -1].astype(np.float32)
    levels = np.clip(thumbnails / np.maximum(bright, 1)[:, None, None], 0, 1.5)
    mirrored = levels[:, :, ::-1]
    halves = np.concatenate([(levels + mirrored) / 2, np.abs(levels - mirrored)], 1)[:, :, : THUMBNAIL // 2]
    pooled = halves.reshape(n, THUMBNAIL // 2, 4, THUMBNAIL // 8, 4).mean((2, 4)).reshape(n, -1)
    slopes = np.hypot(np.diff(levels, axis=1)[:, :, :-1], np.diff(levels, axis=2)[:, :-1])
    regions = [levels[:, ring == _RING] for ring in range(7)]
    regions += [levels.reshape(n, -1), slopes[:, _RING[:-1, :-1] < 3], slopes.reshape(n, -1)]
    percentiles = [_percentiles(region) for region in regions]
    brightness = np.stack([thumbnails.mean((1, 2)), bright], 1) / 255
    histogram = np.stack([((levels >= i / 10) & (levels < (i + 1) / 10)).mean((1, 2)) for i in range(12)], 1)
    return np.concatenate([pooled, *percentiles, brightness, histogram], 1)


def estimate(thumbnails: Pixels) -> tuple[list[str], list[str]]:
    """The sequence (T1 with contrast, T1, T2, FLAIR, other) and the plane (axial, coronal, sagittal) of each image.

    An estimate with a probability of less than 0.6 is `unknown`.

    Parameters
    ----------
    thumbnails
        uint8 [n, 32, 32], grey.
    """
    model = _models()
    found: tuple[list[str], list[str]] = ([], [])
    for start in range(0, len(thumbnails), _BLOCK):
        x = (looks(thumbnails[start : start + _BLOCK]) - model["mean"]) / model["sd"]
        for names, kind in zip(found, ("sequence", "plane"), strict=True):
            scores = x @ np.array(model[kind]["weights"]).T + model[kind]["bias"]
            odds = np.exp(scores - scores.max(1, keepdims=True))
            best = np.where(odds.max(1) / odds.sum(1) >= UNKNOWN_BELOW, odds.argmax(1), -1)
            names += np.array([*model[kind]["names"], UNKNOWN])[best].tolist()
    return found


def sequence_tables(rows: Sequence[ImageRecord], thumbnails: Pixels) -> Json:
    """How sequence and plane are spread over the classes, for audit.json.

    Returns
    -------
    dict
        `sequence_by_class` and `plane_by_class`: number of images by class and estimate. `sequence_estimator`: what the
        estimator was fitted to, and its cross-validated accuracy. `class_from_sequence`: share of images (`accuracy`)
        whose class is the most frequent one among images of the same sequence and plane in the other four of five
        folds of whole groups, and the share of the largest class (`majority`); `tumour_or_not` is the same for the
        question whether the class is `notumor`, None if there is no such class. None with fewer than five groups.
    """
    labels = np.array([row.label for row in rows])
    sequences, planes = estimate(thumbnails)
    groups = np.unique([row.group for row in rows], return_inverse=True)[1]
    found: Json = {
        "sequence_by_class": _counts(labels.tolist(), sequences),
        "plane_by_class": _counts(labels.tolist(), planes),
        "sequence_estimator": _models()["about"],
        "class_from_sequence": None,
    }
    if groups.max() + 1 >= _FOLDS:
        cells, healthy = list(zip(sequences, planes, strict=True)), labels == "notumor"
        found["class_from_sequence"] = {
            **_predictable(cells, labels, groups % _FOLDS),
            "tumour_or_not": _predictable(cells, healthy, groups % _FOLDS) if 0 < healthy.sum() < len(rows) else None,
        }
    return found


def _counts(labels: Sequence[str], values: Sequence[str]) -> dict[str, dict[str, int]]:
    """Number of images by label and value, the most frequent value first and `unknown` last."""
    counts = Counter(zip(labels, values, strict=True))
    columns = sorted(Counter(values).items(), key=lambda item: (item[0] == UNKNOWN, -item[1]))
    return {label: {name: counts[label, name] for name, _ in columns} for label in sorted(set(labels))}


def _predictable(
    cells: Sequence[tuple[str, str]], labels: npt.NDArray[np.generic], folds: npt.NDArray[np.int64]
) -> dict[str, float]:
    """Share of labels that are the most frequent one of their cell in the other folds, and of the largest class."""
    entries, right = list(zip(cells, labels.tolist(), folds.tolist(), strict=True)), 0
    for fold in range(_FOLDS):
        counts = Counter((cell, label) for cell, label, own in entries if own != fold)
        best = {cell: label for (cell, label), _ in sorted(counts.items(), key=lambda item: item[1])}
        right += sum(best.get(cell) == label for cell, label, own in entries if own == fold)
    largest = max(Counter(labels.tolist()).values())
    return {"accuracy": right / len(entries), "majority": largest / len(entries)}


def _percentiles(region: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Eight percentiles of each row of [n, m], by nearest rank: faster than interpolated ones."""
    return np.sort(region, axis=1)[:, (region.shape[1] - 1) * _PERCENTILES // 100]


@cache
def _models() -> Json:
    found: Json = json.loads(Path(__file__).with_name("sequences.json").read_text(encoding="utf-8"))
    return found
