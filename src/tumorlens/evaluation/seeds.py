"""Means over seeds, and differences of two configurations over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from tumorlens.core.files import Json
from tumorlens.evaluation.statistics import difference_test


def summarise_seeds(values: Sequence[float]) -> Json:
    """One metric, measured with several seeds.

    Returns
    -------
    dict
        `n`, `mean`, `sd` (n − 1 in the denominator; None for one value), `min`, `max`, `values`.
    """
    found = [float(value) for value in values]
    return {
        "n": len(found),
        # Rounding must not put the mean outside the range, as (3 * 0.1) / 3 would.
        "mean": min(max(math.fsum(found) / len(found), min(found)), max(found)),
        "sd": float(np.std(found, ddof=1)) if len(found) > 1 else None,
        "min": min(found),
        "max": max(found),
        "values": found,
    }


def paired_seeds(first: Sequence[float], second: Sequence[float]) -> Json:
    """Paired t-test of whether two configurations differ over seeds (Student, Biometrika 6, 1908).

    t = mean / (sd / √n) of the differences. It generalises to other seeds on the same images, not to other
    images, and assumes normal differences, which a handful of seeds cannot show.

    Parameters
    ----------
    first, second
        One number per seed, in the same order of seeds.

    Returns
    -------
    dict
        `n`, `mean_difference` (second − first), `sd` of the differences (n − 1 in the denominator),
        `interval` (95 %), `statistic` (t, n − 1 degrees of freedom) and `p_value` (two-sided). One seed
        has no sd, interval, statistic or p: None. Differences that are equal up to rounding have sd 0: if they
        are 0, p is 1; else interval, statistic and p are None. (The formula would give p = 0, but a score in steps
        of one image often repeats itself, which proves nothing.)
    """
    one, two = np.asarray(first, np.float64).ravel(), np.asarray(second, np.float64).ravel()
    n = len(one)
    gains = two - one
    rounding = 1e-12 * max(np.abs(one).max(), np.abs(two).max())
    gains[np.abs(gains) <= rounding] = 0
    found: Json = {"n": n, "mean_difference": float(gains.mean())}
    if n == 1:
        return found | {"sd": None, "interval": None, "statistic": None, "p_value": None}
    sd = float(np.std(gains, ddof=1))
    sd = 0.0 if sd <= rounding else sd
    student = stats.t(n - 1)
    test = difference_test(found["mean_difference"], sd / math.sqrt(n), float(student.ppf(0.975)), student.sf)
    return found | {"sd": sd} | test
