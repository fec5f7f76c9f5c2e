"""How far a measured proportion, a difference of two, or a mean over seeds can be trusted.

All of them take images as independent draws. Slices of one patient and near-duplicates are not,
so on such data intervals are too narrow and p-values too small; `bootstrap_difference` takes
groups for that case.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from tumorlens.errors import DataError
from tumorlens.runs import Json

#: From this many discordant pairs on, McNemar's test uses its chi-squared approximation.
EXACT_BELOW = 25
_CHUNK = 1 << 22  # indices drawn at a time by the grouped bootstrap: 32 MB

Bools = npt.NDArray[np.bool_]


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson, JASA 22, 1927; closed form).

    Parameters
    ----------
    correct
        Successes, 0 to `n`.
    n
        Trials, at least 1.
    confidence
        Nominal coverage, between 0 and 1.

    Returns
    -------
    low, high
        0 ≤ low ≤ correct / n ≤ high ≤ 1.

    Raises
    ------
    DataError
        `n` or `correct` is out of range.
    """
    if n < 1 or not 0 <= correct <= n:
        raise DataError(f"No interval for {correct} of {n}.", cure="Measure at least one image.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and 1 the bound is the proportion itself; rounding would leave it 1e-17 beside.
    low = 0.0 if correct == 0 else min(centre - half, p)
    high = 1.0 if correct == n else max(centre + half, p)
    return low, high


def newcombe(
    first_correct: int, first_n: int, second_correct: int, second_n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of the difference first − second of two independent proportions.

    The hybrid score interval, which joins two Wilson intervals (Newcombe, Statistics in Medicine 17,
    1998, method 10). For one model on two parts; for two models on one part see `bootstrap_difference`.

    Returns
    -------
    low, high
        −1 ≤ low ≤ difference ≤ high ≤ 1.

    Raises
    ------
    DataError
        A count is out of range.
    """
    first, second = first_correct / max(first_n, 1), second_correct / max(second_n, 1)
    low1, high1 = wilson(first_correct, first_n, confidence)
    low2, high2 = wilson(second_correct, second_n, confidence)
    difference = first - second
    return (
        difference - math.hypot(first - low1, high2 - second),
        difference + math.hypot(high1 - first, second - low2),
    )


def mcnemar(first_correct: npt.ArrayLike, second_correct: npt.ArrayLike) -> Json:
    """Are two models, tested on the same images, equally often right (McNemar, Psychometrika 12, 1947)?

    Only discordant images count, those that one model alone gets right. Under 25 of them the exact
    two-sided binomial test is used, else chi-squared with one degree of freedom and Edwards'
    continuity correction (Psychometrika 13, 1948), which never overshoots equality here.

    Parameters
    ----------
    first_correct, second_correct
        bool [n], image by image in the same order.

    Returns
    -------
    dict
        `p_value` (0 to 1; 1 where no image is discordant), `statistic` (exact: the smaller discordant
        count; else chi-squared) and `method`.

    Raises
    ------
    DataError
        No images, or another number of them.
    """
    first, second = _paired(first_correct, second_correct)
    only_first = int(np.sum(first & ~second))
    only_second = int(np.sum(second & ~first))
    discordant = only_first + only_second
    if discordant < EXACT_BELOW:
        fewer = min(only_first, only_second)
        p = float(stats.binomtest(fewer, discordant, 0.5).pvalue) if discordant else 1.0
        return {"p_value": min(p, 1.0), "statistic": float(fewer), "method": "exact binomial"}
    statistic = max(abs(only_first - only_second) - 1, 0) ** 2 / discordant
    return {
        "p_value": float(stats.chi2.sf(statistic, 1)),
        "statistic": float(statistic),
        "method": "chi-squared, continuity corrected",
    }


def bootstrap_difference(
    first_correct: npt.ArrayLike,
    second_correct: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    repeats: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the accuracy difference second − first on the same images.

    Images, or whole groups of them where `groups` is given, are drawn with replacement (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; groups: the cluster bootstrap of
    Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8, strategy 1).

    Parameters
    ----------
    first_correct, second_correct
        bool [n], image by image in the same order.
    groups
        Group of each image [n], any sortable ids: patients, or sets of near-duplicates.
    repeats
        Number of resamples.
    seed
        Makes the result repeatable.
    confidence
        Nominal coverage, between 0 and 1.

    Returns
    -------
    low, high
        As fractions, −1 to 1.

    Raises
    ------
    DataError
        No images, unequal lengths, no resample, or fewer than two groups.
    """
    first, second = _paired(first_correct, second_correct)
    if repeats < 1:
        raise DataError(f"repeats = {repeats}: nothing to resample.", cure="Say 1 or more.")
    gain = second.astype(np.int64) - first  # (n,), each -1, 0 or 1
    random = np.random.default_rng(seed)
    if groups is None:
        n = len(gain)
        # Resampling n values of three kinds is a multinomial draw of the three counts.
        shares = np.array([np.sum(gain < 0), np.sum(gain == 0), np.sum(gain > 0)]) / n
        drawn = random.multinomial(n, shares, size=repeats)  # (repeats, 3)
        differences = (drawn[:, 2] - drawn[:, 0]) / n
    else:
        differences = _resample_groups(gain, np.asarray(groups), repeats, random)
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return float(low), float(high)


def _resample_groups(
    gain: npt.NDArray[np.int64], groups: npt.NDArray[Any], repeats: int, random: np.random.Generator
) -> npt.NDArray[np.float64]:
    if groups.shape != gain.shape:
        raise DataError(f"{groups.size} groups for {len(gain)} images.", cure="Give each image one group.")
    _, group_of = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group_of)  # (groups,)
    gains = np.bincount(group_of, weights=gain)
    if len(sizes) < 2:
        raise DataError("All images are in one group, so nothing can be resampled.", cure="Leave the groups out.")
    found = []
    step = max(1, _CHUNK // len(sizes))
    for start in range(0, repeats, step):
        chosen = random.integers(len(sizes), size=(min(step, repeats - start), len(sizes)))
        found.append(gains[chosen].sum(1) / sizes[chosen].sum(1))
    return np.concatenate(found)


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


def _paired(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[Bools, Bools]:
    """Both as bool [n] with the same n ≥ 1."""
    one, two = np.asarray(first), np.asarray(second)
    for values in (one, two):
        if values.ndim != 1 or not np.isin(values, (0, 1)).all():
            raise DataError("Right or wrong must be one true or false an image.", cure="Pass bool arrays [n].")
    if one.shape != two.shape or not one.size:
        raise DataError(
            f"Two models were tested on {one.size} and {two.size} images, so nothing can be paired.",
            cure="Test both on the same images, at least one.",
        )
    return one.astype(bool), two.astype(bool)
