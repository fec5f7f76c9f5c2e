"""Bootstrap intervals of accuracy and macro-F1, for one configuration and for the difference of two.

Images are resampled with replacement or, if `groups` is given, whole groups of them (patients, sets of
near-duplicates): the cluster bootstrap of Davison and Hinkley, Bootstrap Methods and their Application, 1997,
section 3.8, strategy 1. Everything below needs only sums over groups, and groups with equal sums are
interchangeable ("of one kind"); a resample is thus one multinomial draw of how often each kind occurs.

- One configuration, whose score lies near its upper bound and is skewed: studentised (bootstrap-t) intervals,
  estimate − t* · error with t* = (resample − estimate) / error of the resample (Efron and Tibshirani, An
  Introduction to the Bootstrap, 1993, section 12.5; Davison and Hinkley, section 5.2). Errors are linearised: the
  root of Σ u² over the drawn groups, u the group's sums times the score's gradient (Davison and Hinkley, section
  2.7.2; the sum of u is 0).
- Difference of two configurations, symmetric but determined by the few groups on which they disagree: percentile
  intervals whose levels are moved from α to Φ(t(α, df) · √(G / (G − 1))) (the expanded percentile interval of
  Hesterberg, The American Statistician 69, 2015). Hesterberg's df is G − 1 of G groups; here it is that of the
  error itself, 2 V² / var(V) with V = Σ u² and var(V) = Σ u⁴ − V² / G, at most G − 1 (Satterthwaite, Biometrics
  Bulletin 2, 1946).

benchmarks/intervals.py measures how often these intervals hold the true value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from tumorlens.core.errors import DataError
from tumorlens.evaluation.statistics import newcombe_paired, wilson

_FEW = 10  # discordant images, below which resamples vary too little
_CHUNK = 1 << 20  # counts drawn at a time, repeats x kinds: a few arrays of 8 MB
_NEGLIGIBLE = 1e-12  # a fraction below it is rounding: one image of a billion weighs more

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
#: From sums (r, d) to scores (r,) and their gradients (r, d).
Score = Callable[[Floats], tuple[Floats, Floats]]


def bootstrap_accuracy(
    correct: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    repeats: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Studentised bootstrap interval of one configuration's accuracy.

    If errors lie in so few groups (up to about three) that resamples without any error determine the bound,
    Wilson's interval is returned for n = (Σ size)² / Σ size² images: the worst case, in which a group is
    classified correctly or wrongly as a whole (effective sample size of Kish, Survey Sampling, 1965).

    Parameters
    ----------
    correct
        bool [n].
    groups
        Group of each image [n], any sortable ids (patients, or sets of near-duplicates); None if images are
        independent.
    repeats
        Number of resamples.
    seed
        Seed of the resampling.
    confidence
        Nominal coverage, between 0 and 1.

    Returns
    -------
    low, high
        As fractions, 0 to 1.

    Raises
    ------
    DataError
        All images are in one group.
    """
    right = np.asarray(correct, bool)
    sums = _group_sums(right.astype(np.int64), groups)
    n = _effective_size(sums[:, 1])
    return _resample(sums, _ratio, repeats, seed).studentised(confidence) or wilson(
        float(right.mean()) * n, n, confidence
    )


def bootstrap_difference(
    first_correct: npt.ArrayLike,
    second_correct: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    repeats: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the accuracy difference second − first on the same images.

    Without groups the plain one (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13); with
    groups the expanded one of the module's docstring. Resamples vary too little if fewer than ten images are
    discordant (with groups: if none is, as the expanded interval allows for few): the result is then
    `statistics.newcombe_paired`, with groups for their effective number of images.

    Parameters
    ----------
    first_correct, second_correct
        bool [n], image by image in the same order.
    groups, repeats, seed, confidence
        As in `bootstrap_accuracy`.

    Returns
    -------
    low, high
        As fractions, −1 to 1.

    Raises
    ------
    DataError
        All images are in one group.
    """
    first, second = np.asarray(first_correct, bool), np.asarray(second_correct, bool)
    gain = second.astype(np.int64) - first  # (n,), each -1, 0 or 1
    n = len(gain)
    group_of = np.arange(n) if groups is None else _group_indices(groups, n)
    if np.count_nonzero(gain) < (_FEW if groups is None else 1):
        weight = _effective_size(np.bincount(group_of)) / n  # of an image
        both, one, other = (weight * int(kind.sum()) for kind in (first & second, first & ~second, ~first & second))
        return newcombe_paired(both, one, other, weight * n - both - one - other, confidence)
    if groups is not None:
        return _resample(_group_sums(gain, groups), _ratio, repeats, seed).percentile(confidence)
    # Resampling n values of three kinds is a multinomial draw of the three counts.
    shares = np.array([np.sum(gain < 0), np.sum(gain == 0), np.sum(gain > 0)]) / n
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=repeats)  # (repeats, 3)
    tail = (1 - confidence) / 2
    low, high = np.quantile((drawn[:, 2] - drawn[:, 0]) / n, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_macro_f1(
    labels: npt.ArrayLike,
    predicted: npt.ArrayLike,
    classes: int,
    groups: npt.ArrayLike | None = None,
    repeats: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Studentised bootstrap interval of one configuration's macro-F1, as `metrics.measure` defines it.

    Each resample's mean is over the classes that have images in it. If errors lie in so few groups (up to about
    three) that resamples without any error determine the bound, the expanded percentile interval is returned. If
    every prediction is correct it is (1, 1), as no resample holds an error; the interval of the accuracy is more
    informative then.

    Parameters
    ----------
    labels, predicted
        int [n], 0 to `classes` − 1.
    classes
        Number of classes.
    groups, repeats, seed, confidence
        As in `bootstrap_accuracy`.

    Returns
    -------
    low, high
        As fractions, 0 to 1.

    Raises
    ------
    DataError
        All images are in one group.
    """
    found = _resample(_class_sums(labels, [predicted], classes, groups), _macro_f1, repeats, seed)
    return found.studentised(confidence) or found.percentile(confidence)


def bootstrap_macro_f1_difference(
    labels: npt.ArrayLike,
    first_predicted: npt.ArrayLike,
    second_predicted: npt.ArrayLike,
    classes: int,
    groups: npt.ArrayLike | None = None,
    repeats: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Expanded percentile bootstrap interval of the macro-F1 difference second − first on the same images.

    Parameters, errors and the score itself are those of `bootstrap_macro_f1`.

    Returns
    -------
    low, high
        As fractions, −1 to 1.
    """
    sums = _class_sums(labels, [first_predicted, second_predicted], classes, groups)
    return _resample(sums, _macro_f1_difference, repeats, seed).percentile(confidence)


@dataclass(frozen=True, eq=False)
class _Resampled:
    """A score, its linearised error, and both of each resample."""

    groups: int
    estimate: float
    error: float
    """Linearised standard error of `estimate`."""
    freedom: float
    """Degrees of freedom of `error`, 1 to groups − 1."""
    scores: Floats
    """(repeats,)."""
    errors: Floats
    """(repeats,), of each of `scores`."""

    def studentised(self, confidence: float) -> tuple[float, float] | None:
        """Bootstrap-t interval within 0 and 1, or None if a bound depends on resamples that do not vary."""
        off = self.scores - self.estimate
        # A resample that does not vary is infinitely far off, unless it equals the estimate.
        t = np.where(np.abs(off) < _NEGLIGIBLE, 0.0, np.copysign(np.inf, off))
        np.divide(off, self.errors, out=t, where=self.errors >= _NEGLIGIBLE)
        tail = (1 - confidence) / 2
        below, above = np.quantile(t, tail, method="lower"), np.quantile(t, 1 - tail, method="higher")
        if self.error < _NEGLIGIBLE or not np.isfinite([below, above]).all():
            return None
        low, high = np.clip(self.estimate - np.array([above, below]) * self.error, 0, 1)
        return float(low), float(high)

    def percentile(self, confidence: float) -> tuple[float, float]:
        """Expanded percentile interval."""
        quantile = stats.t.ppf((1 - confidence) / 2, self.freedom) * np.sqrt(self.groups / (self.groups - 1))
        tail = float(stats.norm.cdf(quantile))
        low, high = np.quantile(self.scores, [tail, 1 - tail])
        return float(low), float(high)


def _resample(sums: Ints, score: Score, repeats: int, seed: int) -> _Resampled:
    """Draw groups with replacement; `sums` (groups, d) holds each group's sums, `score` takes their total."""
    kinds, times = np.unique(sums.astype(np.float64), axis=0, return_counts=True)  # (kinds, d), (kinds,)
    n = len(sums)
    (estimate,), gradient = score((times @ kinds)[None])
    squares = (kinds @ gradient[0]) ** 2  # u² of each kind
    variance = float(times @ squares)
    spread = float(times @ squares**2) - variance**2 / n
    random = np.random.default_rng(seed)
    scores, errors = np.empty(repeats), np.empty(repeats)
    step = max(1, _CHUNK // len(kinds))
    for start in range(0, repeats, step):
        part = slice(start, min(start + step, repeats))
        drawn = random.multinomial(n, times / n, size=part.stop - start)  # (step, kinds)
        scores[part], gradients = score(drawn @ kinds)
        errors[part] = np.sqrt((drawn * (gradients @ kinds.T) ** 2).sum(1))
    return _Resampled(
        groups=n,
        estimate=float(estimate),
        error=float(np.sqrt(variance)),
        freedom=min(2 * variance**2 / spread, n - 1) if spread > 0 else n - 1,
        scores=scores,
        errors=errors,
    )


def _ratio(sums: Floats) -> tuple[Floats, Floats]:
    """The first column of (r, 2) divided by the second."""
    numerator, denominator = sums.T
    return numerator / denominator, np.stack([1 / denominator, -numerator / denominator**2], 1)


def _macro_f1(sums: Floats) -> tuple[Floats, Floats]:
    """Macro-F1 from (r, 3 k): images of each class, those classified correctly, and those predicted as the class."""
    support, hits, predicted = np.split(sums, 3, axis=1)  # (r, k) each
    f1 = 2 * hits / np.maximum(support + predicted, 1)  # a class that is neither true nor predicted has 0 hits
    present = support > 0
    weight = present / present.sum(1, keepdims=True)
    slope = weight / np.maximum(support + predicted, 1)
    return (weight * f1).sum(1), np.hstack([-f1 * slope, 2 * slope, -f1 * slope])


def _macro_f1_difference(sums: Floats) -> tuple[Floats, Floats]:
    """Of (r, 5 k): images of each class, then correct and predicted ones of the first model, then of the second."""
    k = sums.shape[1] // 5
    first, second = _macro_f1(sums[:, : 3 * k]), _macro_f1(np.delete(sums, slice(k, 3 * k), axis=1))
    by_support = second[1][:, :k] - first[1][:, :k]
    return second[0] - first[0], np.hstack([by_support, -first[1][:, k:], second[1][:, k:]])


def _effective_size(sizes: Ints) -> float:
    """Least effective number of independent images in groups of these sizes (Kish 1965)."""
    return float(sizes.sum()) ** 2 / float((sizes**2).sum())


def _group_sums(values: Ints, groups: npt.ArrayLike | None) -> Ints:
    """(groups, 2), the columns of `_ratio`: sum and number of each group's values."""
    group_of = _group_indices(groups, len(values))
    return np.stack([np.bincount(group_of, weights=values).astype(np.int64), np.bincount(group_of)], 1)


def _class_sums(
    labels: npt.ArrayLike, predictions: list[npt.ArrayLike], classes: int, groups: npt.ArrayLike | None
) -> Ints:
    """(groups, k + 2 k per prediction), the columns of `_macro_f1`."""
    y, *predicted = (np.asarray(values, np.int64) for values in (labels, *predictions))
    group_of = _group_indices(groups, len(y))
    n, width = int(group_of.max()) + 1, classes * (1 + 2 * len(predicted))
    first = group_of * width  # an image's first cell in the flat table
    cells = [first + y]
    for i, values in enumerate(predicted):
        hits, chosen = classes * (1 + 2 * i), classes * (2 + 2 * i)
        cells += [(first + hits + y)[values == y], first + chosen + values]
    return np.bincount(np.concatenate(cells), minlength=n * width).reshape(n, width)


def _group_indices(groups: npt.ArrayLike | None, n: int) -> npt.NDArray[np.intp]:
    """Each image's group as 0, 1, …; without groups each image is its own. DataError for a single group."""
    if groups is None:
        return np.arange(n)
    _, group_of = np.unique(groups, return_inverse=True)
    if not group_of.any():
        raise DataError("All images are in one group, so nothing can be resampled.", cure="Leave out the groups.")
    return group_of
