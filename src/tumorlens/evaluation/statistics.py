"""Confidence intervals and tests for proportions and for paired models, in closed form.

All of them take images as independent draws. Slices of one patient and near-duplicates are not, so on such data
intervals are too narrow and p-values too small; `tumorlens.evaluation.bootstrap` takes groups for that case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from tumorlens.core.files import Json

#: McNemar's test is exact for fewer discordant pairs than this, else it uses the chi-squared approximation.
EXACT_BELOW = 25

Bools = npt.NDArray[np.bool_]


def wilson(correct: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson, JASA 22, 1927; closed form).

    scipy's `binomtest(...).proportion_ci` takes integers only; effective sample sizes are not.

    Parameters
    ----------
    correct
        Successes, 0 to `n`.
    n
        Trials, at least 1; neither needs to be an integer (effective sample sizes).
    confidence
        Nominal coverage, between 0 and 1.

    Returns
    -------
    low, high
        0 ≤ low ≤ correct / n ≤ high ≤ 1.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and 1 the bound is the proportion itself; rounding would put it 1e-17 off.
    low = 0.0 if correct == 0 else min(centre - half, p)
    high = 1.0 if correct == n else max(centre + half, p)
    return low, high


def newcombe(
    first_correct: int, first_n: int, second_correct: int, second_n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of the difference first − second of two independent proportions.

    The hybrid score interval, which combines two Wilson intervals (Newcombe, Statistics in Medicine 17, 1998,
    873–890, method 10). It suits one model on two splits; for two models on one split see
    `bootstrap.bootstrap_difference`.

    Returns
    -------
    low, high
        −1 ≤ low ≤ difference ≤ high ≤ 1.
    """
    first, second = first_correct / first_n, second_correct / second_n
    low1, high1 = wilson(first_correct, first_n, confidence)
    low2, high2 = wilson(second_correct, second_n, confidence)
    difference = first - second
    return (
        difference - math.hypot(first - low1, high2 - second),
        difference + math.hypot(high1 - first, second - low2),
    )


def newcombe_paired(
    both: float, only_first: float, only_second: float, neither: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of the accuracy difference second − first on the same images, even if few or no pairs are discordant.

    The hybrid score interval for paired proportions (Newcombe, Statistics in Medicine 17, 1998, 2635–2650, method 10):
    two Wilson intervals and the correlation of the two models' correctness, with a continuity correction.

    Parameters
    ----------
    both, only_first, only_second, neither
        Number of images that both models, one alone or neither classifies correctly; 1 or more in all. Like `wilson`'s
        they need not be integers.

    Returns
    -------
    low, high
        −1 ≤ low ≤ difference ≤ high ≤ 1.
    """
    n = both + only_first + only_second + neither
    first, second = (both + only_first) / n, (both + only_second) / n
    low1, high1 = wilson(min(both + only_first, n), n, confidence)
    low2, high2 = wilson(min(both + only_second, n), n, confidence)
    product = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    excess = both * neither - only_first * only_second
    if excess > 0:
        excess = max(excess - n / 2, 0)
    correlation = excess / math.sqrt(product) if product > 0 else 0.0

    def combined(one: float, other: float) -> float:
        return math.sqrt(max(one * one - 2 * correlation * one * other + other * other, 0))

    difference = second - first
    return (
        max(difference - combined(second - low2, high1 - first), -1),
        min(difference + combined(high2 - second, first - low1), 1),
    )


def mcnemar(first_correct: npt.ArrayLike, second_correct: npt.ArrayLike) -> Json:
    """McNemar's test of whether two models have the same accuracy on the same images (Psychometrika 12, 1947).

    Only discordant images count, those that exactly one model classifies correctly. With fewer than 25 of them it is
    the exact two-sided binomial test, else chi-squared with one degree of freedom and Edwards' continuity correction
    (Psychometrika 13, 1948), which never overshoots equality here.

    Parameters
    ----------
    first_correct, second_correct
        bool [n], image by image in the same order.

    Returns
    -------
    dict
        `p_value` (0 to 1; 1 if no image is discordant), `statistic` (exact: the smaller discordant count; else
        chi-squared) and `method`.
    """
    first, second = np.asarray(first_correct, bool), np.asarray(second_correct, bool)
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
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


def delong(positive: npt.ArrayLike, first_scores: npt.ArrayLike, second_scores: npt.ArrayLike) -> Json:
    """DeLong's test of whether two models have the same area under the ROC curve on the same images.

    DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988. With V10 the share of the n negatives that
    score below a positive (ties count half) and V01 the share of the m positives above a negative, the
    area is the mean of V10, and the difference has the variance var(V10₂ − V10₁) / m +
    var(V01₂ − V01₁) / n. Both are differences of midranks, computed in O(n log n) (Sun and Xu, IEEE Signal
    Processing Letters 21, 2014). Images count as independent: with several slices per patient p is too small.

    Parameters
    ----------
    positive
        bool [n], whether the image is of the class that the scores are for; two or more are, two or more are not.
    first_scores, second_scores
        float [n], finite, in any unit: only their order counts.

    Returns
    -------
    dict
        `auc_first` and `auc_second` (0 to 1), `difference` (second − first), `interval` (95 %, −1 to 1),
        `statistic` (z) and `p_value` (two-sided). If both order the images alike, nothing varies: p is 1 and the
        interval has no width. If nothing varies but the areas differ, the difference has no standard error:
        interval, statistic and p are None.
    """
    is_positive, scores = np.asarray(positive, bool), np.asarray([first_scores, second_scores])
    m, n = int(np.sum(is_positive)), int(np.sum(~is_positive))
    (above1, below1), (above2, below2) = (_placements(is_positive, values) for values in scores)
    first, second = float(above1.sum() / (m * n)), float(above2.sum() / (m * n))
    difference = second - first
    # Placements are multiples of one half, so equal ones have a variance of exactly 0.
    variance = np.var(above2 - above1, ddof=1) / n**2 / m + np.var(below2 - below1, ddof=1) / m**2 / n
    found: Json = {"auc_first": first, "auc_second": second, "difference": difference}
    return found | difference_test(difference, math.sqrt(variance), NormalDist().inv_cdf(0.975), stats.norm.sf, limit=1)


def _placements(positive: Bools, scores: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], ...]:
    """Number of negatives below each positive [m], and of positives above each negative [n]; ties count half."""
    ranks = stats.rankdata(scores)  # midranks, from 1
    above = ranks[positive] - stats.rankdata(scores[positive])
    below = ranks[~positive] - stats.rankdata(scores[~positive])
    return above, np.sum(positive) - below


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for multiple comparisons (Holm, Scandinavian Journal of Statistics 6, 1979).

    The i-th smallest of m is multiplied by m − i + 1, then none may be below that of a smaller one. Rejecting
    if the result is at most α bounds the probability of any false rejection by α, however the tests depend on
    each other.

    Returns
    -------
    list of float
        0 to 1, none below its p-value, in the order given.
    """
    p = np.asarray(p_values, np.float64).ravel()
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return [float(value) for value in adjusted]


def difference_test(
    difference: float, error: float, quantile: float, tail: Callable[[float], Any], limit: float = math.inf
) -> Json:
    """Interval (95 %, within ±limit), statistic and two-sided p of a difference.

    Parameters
    ----------
    difference, error
        The estimate and its standard error, 0 or more.
    quantile
        0.975 quantile of the statistic's distribution.
    tail
        Survival function of that distribution.
    limit
        Largest possible absolute difference.
    """
    if error == 0:
        if difference:
            return {"interval": None, "statistic": None, "p_value": None}
        return {"interval": [0.0, 0.0], "statistic": 0.0, "p_value": 1.0}
    half = quantile * error
    return {
        "interval": [max(difference - half, -limit), min(difference + half, limit)],
        "statistic": difference / error,
        "p_value": min(2 * float(tail(abs(difference / error))), 1.0),
    }
