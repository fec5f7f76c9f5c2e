"""Fit what `judging` needs: on validation images, and on the Training images for what is familiar.

The methods and budgets below were chosen on the families marked for fitting, for a fine-tuned network, and checked on a
weaker one of which only the last layer had learned; `compare_scores` repeats the comparison. Nothing here sees a test
image or a family marked for judging.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tumorlens.core.errors import DataError
from tumorlens.inference.uncertainty.arrays import Floats, Ints, softmax
from tumorlens.inference.uncertainty.calibration import check_labels, fit_temperature
from tumorlens.inference.uncertainty.conformal import quantile, scores
from tumorlens.inference.uncertainty.ood import (
    LOOKS,
    fit_bounds,
    fit_distance,
    fit_scale,
    image_facts,
)
from tumorlens.inference.uncertainty.verdicts import (
    PROBABLE,
    Trust,
    directions,
    odds_against,
)
from tumorlens.readers.pixels import Pixels

# A high rank for the statistics: shifts of grey levels and textures move them along directions in which the images
# learned from hardly differ.
STATISTICS_RANK, FEATURES_RANK, LOOKS_RANK = 800, 32, 8

# Shares of validation images over each threshold.
REFUSED = 0.0025
BEYOND = 0.005
DOUBTED = 0.0275  # of those that the other rules leave, or more:
HELD = 0.05  # what all rules hold back together, where the others alone do not already

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
    """float32 [n, 20], `refusal.image_facts` of the pixels."""


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
    odds, facts = odds_against(z, temperature), image_facts(pixels)
    draft = Trust(
        classes=tuple(classes),
        temperature=temperature,
        nonconformity=np.sort(own).astype(np.float32).astype(np.float64),  # as stored
        statistics=fit_distance(train.statistics, statistics, rank=STATISTICS_RANK),
        features=fit_distance(features_train, features_validation, rank=FEATURES_RANK, labels=train.labels),
        looks=fit_distance(train.looks[:, :LOOKS], facts[:, :LOOKS], rank=LOOKS_RANK),
        bounds=fit_bounds(train.looks),
        odds=fit_scale(odds),
        refuse_above=0.0,
        beyond_above=0.0,
        doubt_above=0.0,
    )
    distances, beyond = draft.distances(features, statistics, facts), draft.bounds.beyond(facts).max(1)
    refuse_above, beyond_above = _upper(distances.mean(1), REFUSED), _upper(beyond, BEYOND)
    left = (distances.mean(1) <= refuse_above) & (beyond <= beyond_above) & (probabilities.max(1) >= PROBABLE)
    doubt = draft.doubt(distances[:, 0], z)
    share = max(DOUBTED, 1 - (1 - HELD) / left.mean()) if left.any() else DOUBTED
    return replace(
        draft,
        refuse_above=refuse_above,
        beyond_above=beyond_above,
        doubt_above=_upper(doubt[left] if left.any() else doubt, share),
    )


def _upper(values: Floats, share: float) -> float:
    """The score that all but this share of images stay at or under; the largest where they are too few."""
    return min(quantile(values, 1 - share), float(values.max()))
