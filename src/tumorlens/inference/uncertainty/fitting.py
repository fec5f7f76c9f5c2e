"""Fits the uncertainty model: thresholds on validation images, distances on training images.

Methods and budgets were chosen on the image families reserved for fitting, for a fine-tuned network, and checked on a
weaker one of which only the last layer was trained; benchmarks/robustness/comparison.py repeats the comparison. No test
image and no family reserved for evaluation is read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tumorlens.core.errors import DataError
from tumorlens.inference.uncertainty.arrays import Floats, Ints, softmax
from tumorlens.inference.uncertainty.calibration import fit_temperature
from tumorlens.inference.uncertainty.conformal import quantile, scores
from tumorlens.inference.uncertainty.ood import (
    N_DISTANCE_FEATURES,
    appearance_features,
    fit_bounds,
    fit_distance,
    fit_z_score,
)
from tumorlens.inference.uncertainty.verdicts import MIN_PROBABILITY, UncertaintyModel, directions, log_odds_against
from tumorlens.readers.pixels import Pixels

# A high rank for the statistics: changes of grey levels and textures move them along directions in which the training
# images hardly differ.
STATISTICS_RANK, FEATURES_RANK, APPEARANCE_RANK = 800, 32, 8

FEWEST = 20  # training images, and validation images

# Shares of validation images over each threshold.
REFUSED_SHARE = 0.0025
OUT_OF_BOUNDS_SHARE = 0.005
DOUBT_SHARE = 0.0275  # at least, of the images that the other rules leave
WITHHELD_SHARE = 0.05  # over all rules, unless the others alone already exceed it

Array = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class TrainingOutputs:
    """The network's outputs for its training images."""

    labels: Ints
    """int64 [n]."""
    features: Array
    """float32 [n, 512]."""
    statistics: Array
    """float32 [n, 1024]."""
    appearance: Array
    """float32 [n, 20], `appearance_features` of the pixels."""


@dataclass(frozen=True, eq=False)
class LabelledOutputs:
    """The network's outputs for images, with their labels."""

    labels: Ints
    """int64 [n]; ignored for images that are not brain MRI."""
    logits: Array
    """float32 [n, k]."""
    features: Array
    """float32 [n, 512]."""
    statistics: Array
    """float32 [n, 1024]."""
    pixels: Pixels
    """uint8 [n, 224, 224, 3]."""


def fit_uncertainty(classes: Sequence[str], validation: LabelledOutputs, train: TrainingOutputs) -> UncertaintyModel:
    """Fit temperature, prediction sets and thresholds.

    Parameters
    ----------
    classes
        k names in the order of the logits.
    validation
        At least 20 validation images. A threshold for a share s needs about 1 / s images; with fewer it is the
        largest validation score, which no validation image exceeds.
    train
        At least 20 training images.

    Raises
    ------
    DataError
        There are too few images, or shapes do not match.
    """
    y, z = np.asarray(validation.labels), np.asarray(validation.logits, np.float64)
    for name, n in (("validation", len(y)), ("Training", len(train.labels))):
        if n < FEWEST:
            raise DataError(f"{n} {name} images are too few to fit on.", cure=f"Use {FEWEST} or more.")
    temperature = fit_temperature(z, y)
    probabilities = softmax(z, temperature)
    nonconformity = scores(probabilities)[np.arange(len(y)), y]
    appearance = appearance_features(validation.pixels)
    draft = UncertaintyModel(
        classes=tuple(classes),
        temperature=temperature,
        nonconformity=np.sort(nonconformity).astype(np.float32).astype(np.float64),  # as stored
        statistics=fit_distance(train.statistics, validation.statistics, rank=STATISTICS_RANK),
        features=fit_distance(
            directions(train.features), directions(validation.features), rank=FEATURES_RANK, labels=train.labels
        ),
        appearance=fit_distance(
            train.appearance[:, :N_DISTANCE_FEATURES], appearance[:, :N_DISTANCE_FEATURES], rank=APPEARANCE_RANK
        ),
        bounds=fit_bounds(train.appearance),
        odds=fit_z_score(log_odds_against(z, temperature)),
        refuse_above=0.0,
        beyond_above=0.0,
        doubt_above=0.0,
    )
    distances = draft.distances(validation.features, validation.statistics, appearance)
    excess = draft.bounds.excess(appearance).max(1)
    refuse_above = _threshold(distances.mean(1), REFUSED_SHARE)
    beyond_above = _threshold(excess, OUT_OF_BOUNDS_SHARE)
    left = (distances.mean(1) <= refuse_above) & (excess <= beyond_above) & (probabilities.max(1) >= MIN_PROBABILITY)
    doubt = draft.doubt(distances[:, 0], z)
    share = max(DOUBT_SHARE, 1 - (1 - WITHHELD_SHARE) / left.mean()) if left.any() else DOUBT_SHARE
    return replace(
        draft,
        refuse_above=refuse_above,
        beyond_above=beyond_above,
        doubt_above=_threshold(doubt[left] if left.any() else doubt, share),
    )


def _threshold(values: Floats, share: float) -> float:
    """The score that at most this share of images exceeds; the largest if there are too few images."""
    return min(quantile(values, 1 - share), float(values.max()))
