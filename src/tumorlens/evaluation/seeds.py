"""How far a mean over seeds, or a difference of two configurations over seeds, can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from tumorlens.core.errors import DataError
from tumorlens.core.files import Json
from tumorlens.evaluation.statistics import difference_test


def summarise_seeds(values: Sequence[float]) -> Json:
    """One number measured with several seeds.

    Returns
    -------
    dict
        `n`, `mean`, `sd` (n − 1 in the denominator; None for one value), `min`, `max`, `values`.

    Raises
    ------
    DataError
        There are no values, or one is no finite number.
    """
    found = [float(value) for value in values]
    if not found or not all(math.isfinite(value) for value in found):
        raise DataError(f"Cannot summarise {found}.", cure="Give one finite number a seed.")
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
    """Do two configurations differ over seeds? Paired t-test (Student, Biometrika 6, 1908).

    t = mean / (sd / √n) of the differences. It speaks of other seeds on the same images, not of other
    images, and takes the differences as normal, which a handful of seeds cannot show.

    Parameters
    ----------
    first, second
        One number a seed, in the same order of seeds.

    Returns
    -------
    dict
        `n`, `mean_difference` (second − first), `sd` of the differences (n − 1 in the denominator),
        `interval` (95 %), `statistic` (t, n − 1 degrees of freedom) and `p_value` (two-sided). One seed
        has no sd, interval, statistic or p: None. Differences that are all the same up to rounding have
        sd 0: if they are 0, p is 1; else interval, statistic and p are None. The formula's p would be
        0 there, but a score in steps of one image often repeats itself, and that proves nothing.

    Raises
    ------
    DataError
        No seeds, another number of them, or a number that is not finite.
    """
    one, two = np.asarray(first, np.float64).ravel(), np.asarray(second, np.float64).ravel()
    if not one.size or one.shape != two.shape or not np.isfinite([*one, *two]).all():
        raise DataError(
            f"Cannot pair {one.tolist()} with {two.tolist()}.", cure="Give both one finite number for each seed."
        )
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
    found |= {"sd": sd}
    return found | difference_test(found["mean_difference"], sd / math.sqrt(n), float(student.ppf(0.975)), student.sf)
