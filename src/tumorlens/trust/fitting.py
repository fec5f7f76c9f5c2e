"""Fit what `judging` needs: on validation images, and on the Training images for what is familiar.

The methods and budgets below were chosen once, on the families marked for fitting; `compare_scores` repeats the
comparison. Nothing here sees a test image or a family marked for judging.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tumorlens.errors import DataError
from tumorlens.images import Pixels
from tumorlens.trust.arrays import Floats, Ints, softmax
from tumorlens.trust.calibration import check_labels, fit_temperature
from tumorlens.trust.conformal import quantile, scores
from tumorlens.trust.judging import HEALTHY, Trust, directions, odds_against
from tumorlens.trust.refusal import fit_distance, fit_scale, image_facts

STATISTICS_RANK, FEATURES_RANK, LOOKS_RANK = 256, 32, 8

# Shares of validation images over a threshold. Test images exceed them: scores are centred on validation, and many
# test images are less like Training. The goals are 1 % of test images refused, and 5 % held back in all.
REFUSED = 0.0025
UNCERTAIN = 0.0125  # of images predicted as a tumour
UNCERTAIN_HEALTHY = 0.1  # of images predicted as notumor

Singles = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Learned:
    """What the network makes of the images that it learned from."""

    labels: Ints
    """int64 [n]."""
    features: Singles
    """float32 [n, 512]."""
    statistics: Singles
    """float32 [n, 1024]."""
    looks: Singles
    """float32 [n, 17], `refusal.image_facts` of the pixels."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What the network makes of images, with their true classes."""

    labels: Ints
    """int64 [n]; not looked at for images that are no brain MRI."""
    logits: Singles
    """float32 [n, k]."""
    features: Singles
    """float32 [n, 512]."""
    statistics: Singles
    """float32 [n, 1024]."""
    pixels: Pixels
    """uint8 [n, 224, 224, 3]."""


def fit_trust(
    classes: Sequence[str],
    labels: npt.ArrayLike,
    logits: Singles,
    features: Singles,
    statistics: Singles,
    pixels: Pixels,
    *,
    train: Learned,
) -> Trust:
    """Fit temperature, prediction sets and thresholds.

    Parameters
    ----------
    classes
        k names in the order of the logits.
    labels, logits, features, statistics, pixels
        Of the validation images, as `Answers` has them; at least 20. A threshold for a share s needs about
        1 / s images: with fewer it is the largest validation score, and keeps all of them.
    train
        The Training images that the network learned from, at least 20.

    Raises
    ------
    DataError
        Too few images, or shapes that do not fit.
    """
    y, z = np.asarray(labels), np.asarray(logits, np.float64)
    check_labels(z, y)
    for name, n in (("validation", len(y)), ("Training", len(train.labels))):
        if n < 20:
            raise DataError(f"{n} {name} images are too few to fit on.", cure="Give 20 or more.")
    if z.shape[1] != len(classes):
        raise DataError(f"{z.shape[1]} logits do not fit {len(classes)} classes.", cure="Give one a class.")
    temperature = fit_temperature(z, y)
    probabilities = softmax(z, temperature)
    own = scores(probabilities)[np.arange(len(y)), y]
    features_train, features_validation = directions(train.features), directions(features)
    odds = odds_against(z, temperature)
    draft = Trust(
        classes=tuple(classes),
        temperature=temperature,
        nonconformity=np.sort(own).astype(np.float32).astype(np.float64),  # as stored
        statistics=fit_distance(train.statistics, statistics, rank=STATISTICS_RANK),
        features=fit_distance(features_train, features_validation, rank=FEATURES_RANK, labels=train.labels),
        looks=fit_distance(train.looks, image_facts(pixels), rank=LOOKS_RANK),
        odds=fit_scale(odds),
        refuse_above=0.0,
        doubt_above=0.0,
        stricter=0.0,
    )
    distances = draft.distances(features, statistics, pixels)
    doubt = (distances[:, 0] + draft.odds.of(odds)) / 2
    healthy = np.array([name == HEALTHY for name in classes])[z.argmax(1)]
    limit = _upper(doubt if healthy.all() else doubt[~healthy], UNCERTAIN)
    return replace(
        draft,
        refuse_above=_upper(distances.mean(1), REFUSED),
        doubt_above=limit,
        stricter=max(limit - _upper(doubt[healthy], UNCERTAIN_HEALTHY), 0.0) if healthy.any() else 0.0,
    )


def _upper(values: Floats, share: float) -> float:
    """The score that all but this share of images stay at or under; the largest where they are too few."""
    return min(quantile(values, 1 - share), float(values.max()))
