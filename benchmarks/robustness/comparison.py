"""Out-of-distribution scores compared: why the verdicts use the ones that they use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from tumorlens.core.files import Json
from tumorlens.inference.uncertainty.arrays import Floats, softmax
from tumorlens.inference.uncertainty.fitting import FEATURES_RANK, LabelledOutputs, TrainingOutputs
from tumorlens.inference.uncertainty.ood import N_DISTANCE_FEATURES, appearance_features, fit_distance
from tumorlens.inference.uncertainty.verdicts import UncertaintyModel, directions

_NEIGHBOUR = 10
Score = Callable[[LabelledOutputs], Floats]


def compare_scores(
    trust: UncertaintyModel,
    train: TrainingOutputs,
    validation: LabelledOutputs,
    families: Mapping[str, LabelledOutputs],
    *,
    kept: float = 0.99,
) -> Json:
    """Share of each family's images that each score places outside the validation images.

    Parameters
    ----------
    families
        By name: changed or foreign images; only families marked for fitting if anything is chosen by the result.
    kept
        Share of validation images that the threshold keeps.

    Returns
    -------
    dict
        By score, then by family, 0 to 1. On logits: `energy` (Liu et al., NeurIPS 2020) and `probability`
        (Hendrycks and Gimpel, ICLR 2017). On features: `neighbours` (10th nearest by cosine; Sun et al., ICML
        2022), `mahalanobis` (nearest class; Lee et al., NeurIPS 2018), `relative mahalanobis` (Ren et al.,
        arXiv 2106.09022). Then those in use: `features` (Mahalanobis on their directions), `statistics`, `looks`,
        and `refusal`, `bounds` and `doubt`, on which verdicts are based.
    """
    outside: Json = {}
    for name, score in scorers(trust, train, validation).items():
        limit = np.quantile(score(validation), kept)
        outside[name] = {family: float((score(a) > limit).mean()) for family, a in families.items() if len(a.labels)}
    return outside


def scorers(trust: UncertaintyModel, train: TrainingOutputs, validation: LabelledOutputs) -> dict[str, Score]:
    """By name, a function from outputs to float64 [n], higher for images further out of distribution."""
    classwise = fit_distance(train.features, validation.features, rank=FEATURES_RANK, labels=train.labels)
    whole = fit_distance(train.features, validation.features, rank=FEATURES_RANK)
    known = directions(train.features)

    def refusal(a: LabelledOutputs) -> Floats:
        return np.asarray(trust.distances(a.features, a.statistics, appearance_features(a.pixels)).mean(1))

    def doubt(a: LabelledOutputs) -> Floats:
        return trust.doubt(trust.statistics.scores(a.statistics), a.logits)

    return {
        "energy": lambda a: -np.logaddexp.reduce(np.asarray(a.logits, np.float64), axis=1),
        "probability": lambda a: -softmax(a.logits).max(1),
        "neighbours": lambda a: 1 - _kth_largest(directions(a.features) @ known.T, _NEIGHBOUR),
        "mahalanobis": lambda a: classwise.squared(a.features),
        "relative mahalanobis": lambda a: classwise.squared(a.features) - whole.squared(a.features),
        "statistics": lambda a: trust.statistics.scores(a.statistics),
        "features": lambda a: trust.features.scores(directions(a.features)),
        "looks": lambda a: trust.appearance.scores(appearance_features(a.pixels)[:, :N_DISTANCE_FEATURES]),
        "bounds": lambda a: trust.bounds.excess(appearance_features(a.pixels)).max(1),
        "refusal": refusal,
        "doubt": doubt,
    }


def _kth_largest(values: npt.NDArray[np.floating], k: int) -> Floats:
    k = min(k, values.shape[1])
    return np.asarray(np.partition(values, -k, 1)[:, -k], np.float64)
