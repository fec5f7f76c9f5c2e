"""Calibration, prediction sets and verdicts, measured where nothing was fitted: test images and judging families."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy import stats

from robustness.conformal import SCORES, class_quantiles, nonconformity
from robustness.selective import risk_coverage
from tumorlens.core.errors import DataError
from tumorlens.core.files import Json
from tumorlens.evaluation.statistics import wilson
from tumorlens.inference.uncertainty.arrays import (
    Bools,
    Floats,
    Ints,
    softmax,
)
from tumorlens.inference.uncertainty.calibration import (
    brier,
    expected_calibration_error,
    log_loss,
    reliability,
    reliability_equal_mass,
)
from tumorlens.inference.uncertainty.conformal import prediction_sets, quantile
from tumorlens.inference.uncertainty.fitting import LabelledOutputs
from tumorlens.inference.uncertainty.verdicts import (
    NO_TUMOR,
    OK,
    REFUSED,
    Classification,
    UncertaintyModel,
)

COVERAGES = (0.9, 0.95, 0.99)


def evaluate_trust(
    trust: UncertaintyModel,
    validation: LabelledOutputs,
    test: LabelledOutputs,
    *,
    twin_free: Bools,
    near: Mapping[str, LabelledOutputs],
    far: Mapping[str, LabelledOutputs],
    groups: npt.ArrayLike | None = None,
) -> Json:
    """All figures on calibration, prediction sets and verdicts.

    Parameters
    ----------
    validation
        Images that `trust` was fitted on: they give the scores for APS and class-conditional sets.
    test
        Unchanged test images, at least one.
    twin_free
        bool [n]: test images without a twin among the training images.
    near, far
        By family, outputs for changed test images (labels kept) and for images that are not brain MRI.
    groups
        Group of each test image [n], for the bootstrap of the adaptive calibration error.

    Returns
    -------
    dict
        `parts`: `official` and `twin_free`, each from `measure_part`. `far`: from `refusals`. `near`: from
        `near_shift`.

    Raises
    ------
    DataError
        There are no test images, or shapes do not match.
    """
    if twin_free.shape != test.labels.shape or not len(test.labels):
        raise DataError(
            f"{len(test.labels)} test images and {twin_free.shape} flags do not match.", cure="Pass one flag per image."
        )
    ids = None if groups is None else np.asarray(groups)
    parts = {}
    for name, held in (("official", np.ones(len(twin_free), np.bool_)), ("twin_free", twin_free)):
        if held.any():
            parts[name] = measure_part(trust, validation, chosen(test, held), None if ids is None else ids[held])
    return {"parts": parts, "near": near_shift(trust, near), "far": refusals(trust, far)}


def chosen(answers: LabelledOutputs, held: Bools) -> LabelledOutputs:
    """Some of the images, in the same order."""
    return LabelledOutputs(*(getattr(answers, name)[held] for name in LabelledOutputs.__dataclass_fields__))


def assess(trust: UncertaintyModel, answers: LabelledOutputs) -> Classification:
    """Verdicts and prediction sets at the default coverage."""
    return trust.assess(answers.logits, answers.features, answers.statistics, answers.pixels)


def measure_part(
    trust: UncertaintyModel, validation: LabelledOutputs, part: LabelledOutputs, groups: npt.ArrayLike | None = None
) -> Json:
    """Calibration, prediction sets, selective prediction and verdicts on a subset of unchanged images.

    Returns
    -------
    dict
        `n`, `accuracy`. `before` and `after` temperature scaling: `ece`, `adaptive_ece` and its `interval`, `brier`,
        `log_loss`, `reliability` (bins of equal mass). `conformal`: from `measure_sets`. `selective`: from
        `risk_coverage`. `refused`, `deferred` (refused or uncertain): n, rate and Wilson's interval.
        `silent_error_rate`: wrong and `ok`, as a share of all images. `accuracy_ok`: of those with the verdict `ok`.
    """
    assessment = assess(trust, part)
    right = assessment.probabilities.argmax(1) == part.labels
    ok = np.array([verdict == OK for verdict in assessment.verdicts])
    found: Json = {"n": len(right), "accuracy": float(right.mean())}
    for name, temperature in (("before", 1.0), ("after", trust.temperature)):
        p = softmax(part.logits, temperature)
        found[name] = {
            **calibration_errors(p, part.labels, groups),
            "brier": brier(p, part.labels),
            "log_loss": log_loss(p, part.labels),
            "reliability": reliability_equal_mass(p.max(1), right),
        }
    return found | {
        "temperature": trust.temperature,
        "conformal": measure_sets(
            softmax(validation.logits, trust.temperature), validation.labels, assessment.probabilities, part.labels
        ),
        "selective": risk_coverage(assessment.probabilities.max(1), right),
        "refused": _rate([verdict == REFUSED for verdict in assessment.verdicts]),
        "deferred": _rate(~ok),
        "silent_error_rate": float((~right & ok).mean()),
        "accuracy_ok": float(right[ok].mean()) if ok.any() else None,
    }


def calibration_errors(
    probabilities: Floats, labels: Ints, groups: npt.ArrayLike | None = None, repeats: int = 1000, seed: int = 0
) -> Json:
    """Both calibration errors of the predicted class, the adaptive one with a percentile bootstrap interval (95 %).

    Parameters
    ----------
    probabilities
        float64 [n, k], n ≥ 1; rows sum to 1.
    labels
        int [n].
    groups
        Group of each image [n], such as patients or twins: whole groups are resampled.
    repeats, seed
        Number of resamples, and the seed that makes them repeatable.

    Returns
    -------
    dict
        `ece`, `adaptive_ece`, its `interval`, and `n`. Resampled images repeat, which biases the interval further
        upwards: its upper end is conservative.
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    ids = np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    members = np.split(np.argsort(ids, kind="stable"), np.cumsum(np.bincount(ids))[:-1])
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(repeats):
        drawn = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        values.append(expected_calibration_error(reliability_equal_mass(confidence[drawn], correct[drawn])))
    low, high = np.percentile(values, [2.5, 97.5])
    return {
        "ece": expected_calibration_error(reliability(confidence, correct)),
        "adaptive_ece": expected_calibration_error(reliability_equal_mass(confidence, correct)),
        "interval": [float(low), float(high)],
        "n": len(labels),
    }


def measure_sets(validation: Floats, validation_labels: Ints, test: Floats, test_labels: Ints) -> Json:
    """Coverage and size of prediction sets at 90, 95 and 99 %.

    Parameters
    ----------
    validation, test
        float64 [m, k] and [n, k], calibrated probabilities.
    validation_labels, test_labels
        int64 [m] and [n].

    Returns
    -------
    dict
        By score (`lac`, `aps`), then `marginal` and `class_conditional`, then nominal coverage: observed `coverage`,
        `by_class` too (None without images), `mean_set_size`, `singletons`; `empty`, the share of sets that had to be
        filled, and `coverage_unfilled`, before that. For marginal sets `expected` is the 95 % interval in which
        `coverage_unfilled` should lie if images were exchangeable (see `coverage_interval`); twins, and patients in
        both splits, violate that.
    """
    return {
        kind: {
            mode: {
                str(coverage): _sets(
                    nonconformity(validation, kind),
                    validation_labels,
                    nonconformity(test, kind),
                    test_labels,
                    coverage,
                    mode,
                )
                for coverage in COVERAGES
            }
            for mode in ("marginal", "class_conditional")
        }
        for kind in SCORES
    }


def _sets(known: Floats, known_labels: Ints, found: Floats, labels: Ints, coverage: float, mode: str) -> Json:
    own = known[np.arange(len(known)), known_labels]
    k = found.shape[1]
    marginal = mode == "marginal"
    level = quantile(own, coverage) if marginal else class_quantiles(own, known_labels, k, coverage)
    sets, unfilled = prediction_sets(found, level), found <= level
    covered = sets[np.arange(len(labels)), labels]
    return {
        "coverage": float(covered.mean()),
        "coverage_unfilled": float((unfilled[np.arange(len(labels)), labels]).mean()),
        "by_class": [float(covered[labels == c].mean()) if (labels == c).any() else None for c in range(k)],
        "mean_set_size": float(sets.sum(1).mean()),
        "singletons": float((sets.sum(1) == 1).mean()),
        "empty": float((~unfilled.any(1)).mean()),
        **({"expected": coverage_interval(len(own), len(labels), coverage)} if marginal else {}),
    }


def coverage_interval(validation: int, test: int, coverage: float) -> list[float]:
    """Interval of the coverage observed on `test` exchangeable images in 95 % of draws, given `validation` images.

    The coverage of one threshold is Beta(r, m + 1 − r) over the draw of m validation images, with r = ⌈(m + 1)
    coverage⌉ (Vovk, ACML 2012), and the number covered of n test images is binomial: together beta-binomial
    (Angelopoulos and Bates, arXiv 2107.07511, section 3.2). It assumes scores without ties.
    """
    rank = int(np.ceil((validation + 1) * coverage - 1e-9))
    if rank > validation:
        return [1.0, 1.0]
    low, high = stats.betabinom(test, rank, validation + 1 - rank).ppf([0.025, 0.975])
    return [float(low / test), float(high / test)]


def refusals(trust: UncertaintyModel, far: Mapping[str, LabelledOutputs]) -> Json:
    """Share of images that are not brain MRI and are refused.

    Returns
    -------
    dict
        `rate`, the share refused over all images, its `interval` (Wilson), the `lowest` of a family, and each family
        under `families`.
    """
    families = {name: _rate([v == REFUSED for v in assess(trust, answers).verdicts]) for name, answers in far.items()}
    return {**_pooled(families), "families": families}


def near_shift(trust: UncertaintyModel, near: Mapping[str, LabelledOutputs]) -> Json:
    """Silent errors on changed brain slices: wrong, yet with the verdict `ok`.

    Returns
    -------
    dict
        Over the tumour images of all families, equally weighted: `silent_error_rate` with Wilson's `interval` (too
        narrow: each slice is in every family), `silent_notumor_rate` (predicted notumor and `ok`), `deferred` and
        `accuracy`; `n`; and the same under `families`, with `healthy_deferred` for the others.
    """
    healthy = trust.classes.index(NO_TUMOR) if NO_TUMOR in trust.classes else -1
    families: Json = {}
    for name, answers in near.items():
        assessment = assess(trust, answers)
        predicted = assessment.probabilities.argmax(1)
        ok = np.array([verdict == OK for verdict in assessment.verdicts], np.bool_)
        tumour = answers.labels != healthy
        wrong = predicted != answers.labels
        families[name] = {
            "n": int(tumour.sum()),
            "accuracy": _share(~wrong[tumour]),
            "silent_error_rate": _share((wrong & ok)[tumour]),
            "silent_notumor_rate": _share((wrong & ok & (predicted == healthy))[tumour]),
            "deferred": _share(~ok[tumour]),
            "refused": _share(np.array([v == REFUSED for v in assessment.verdicts], np.bool_)[tumour]),
            "healthy_deferred": _share(~ok[~tumour]),
        }
    filled = [family for family in families.values() if family["n"]]
    n = sum(family["n"] for family in filled)
    pooled: Json = {"n": n, "families": families}
    for key in ("accuracy", "silent_error_rate", "silent_notumor_rate", "deferred"):
        pooled[key] = sum(family["n"] * family[key] for family in filled) / n if n else None
    if n:
        pooled["interval"] = list(wilson(round(pooled["silent_error_rate"] * n), n))
    return pooled


def _share(values: Bools) -> float | None:
    return float(values.mean()) if len(values) else None


def _rate(values: npt.ArrayLike) -> Json:
    held = np.asarray(values, np.bool_)
    n, count = len(held), int(held.sum())
    return {"n": n, "count": count, "rate": count / n, "interval": list(wilson(count, n))} if n else {"n": 0}


def _pooled(rates: Mapping[str, Json]) -> Json:
    filled = {name: rate for name, rate in rates.items() if rate["n"]}
    if not filled:
        return {"n": 0, "rate": None}
    n, count = (sum(rate[key] for rate in filled.values()) for key in ("n", "count"))
    lowest = min(filled, key=lambda name: filled[name]["rate"])
    return {"n": n, "rate": count / n, "interval": list(wilson(count, n)), "lowest": lowest}
