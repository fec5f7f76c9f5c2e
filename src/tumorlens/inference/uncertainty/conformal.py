"""Prediction sets by split conformal prediction; needs only numpy.

A set holds every class whose score is at most a quantile of the validation images' scores. If validation and new
images are exchangeable, it contains the true class with probability at least the target coverage, over the draw of both
(Vovk, Gammerman and Shafer 2005; Angelopoulos and Bates, arXiv 2107.07511). **Images are not exchangeable if
near-duplicates (twins) or slices of one patient are in both subsets:** images with twins in the training data are
easier than new ones, validation images have such twins too, and coverage on images without is below the target. No set
is valid on images from another scanner or sequence. Nor are validation images quite exchangeable with new ones if, as
here, they also chose the epoch and the temperature: with a thousand of them that costs tenths of a percentage point of
coverage, with a hundred up to two points.

The score is 1 − p(class), of the calibrated probability (LAC; Sadinle, Lei and Wasserman, JASA 114, 2019): the smallest
sets on average. benchmarks/robustness/conformal.py compares others.
"""

from __future__ import annotations

import math

import numpy as np

from tumorlens.core.errors import ConfigError
from tumorlens.inference.uncertainty.arrays import Bools, Floats


def scores(probabilities: Floats) -> Floats:
    """Nonconformity of every class, float64 [n, k] of probabilities [n, k], 0 to 1; high for unlikely classes."""
    return 1 - probabilities


def quantile(calibration: Floats, coverage: float) -> float:
    """The ⌈(n + 1) coverage⌉-th smallest of n validation scores; infinite if that is more than n.

    Raises
    ------
    ConfigError
        The coverage is not between 0 and 1.
    """
    if not 0 < coverage < 1:
        raise ConfigError(f"The coverage is {coverage}.", cure="Use a number between 0 and 1, such as 0.95.")
    # In floating point (n + 1) * 0.9 may be just above an integer.
    rank = math.ceil((len(calibration) + 1) * coverage - 1e-9)
    return float(np.sort(calibration)[rank - 1]) if rank <= len(calibration) else math.inf


def prediction_sets(found: Floats, thresholds: float | Floats) -> Bools:
    """The classes whose score is at most the threshold; the most likely class if there is none.

    A model that is more accurate than the target coverage would have empty sets for its least certain images; an empty
    set is of no use, and filling only adds coverage.

    Parameters
    ----------
    found
        float64 [n, k], from `scores`.
    thresholds
        One quantile (marginal), or one per class [k] (class-conditional, Mondrian).

    Returns
    -------
    bool [n, k]
    """
    sets = found <= thresholds
    empty = ~sets.any(1)
    sets[empty, found[empty].argmin(1)] = True
    return sets
