"""Network outputs → calibrated probabilities, prediction sets and verdicts; needs only numpy.

Four scores say how uncertain a prediction is, each in standard deviations above the mean of validation images. Three
are distances from the training images: of the early layers' `statistics` (sequences, filters and textures show there),
of the direction of the `features` behind the decision (their length falls on out-of-distribution images, which hides
those; Mueller and Hein, ICML 2025), and of the image's own appearance (`ood.APPEARANCE_FEATURES`). The fourth is the
log odds against the predicted class. The verdict is the first that applies:

1. `refused: not a brain MRI`. The mean of the three distances is over a threshold.
2. `uncertain`. The prediction set holds several classes; or the calibrated probability is under 2/3; or one of five
   simple features (brightness and contrast, the head's height, width and their ratio) is far outside its range over the
   training images; or the *doubt* is over a threshold: the mean of the statistics' distance, with weight 1, and the log
   odds, with weight 4, plus a quarter if the prediction is `notumor`.
3. `ok`.

The doubt is a mean because most wrong predictions on images from another source are somewhat unusual and somewhat
unsure at once (as in Xia and Bouganis, ACCV 2022): with one threshold for each, several times as many were `ok`. The
simple features have a threshold of their own because a network can be sure of a head that is too small or too dark for
it while its statistics move little. On an image from another source a confident "notumor" does the most harm, hence the
quarter. The thresholds are quantiles over validation images, so the share of similar images that is held back is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tumorlens.core.errors import DataError, WeightsError
from tumorlens.core.files import Json
from tumorlens.inference.uncertainty.arrays import (
    EXPORT_AGAIN,
    Bools,
    Floats,
    number,
    pack_array,
    softmax,
    unpack_array,
)
from tumorlens.inference.uncertainty.conformal import prediction_sets, quantile, scores
from tumorlens.inference.uncertainty.ood import (
    BOUNDED_FEATURES,
    N_DISTANCE_FEATURES,
    Bounds,
    Distance,
    ZScore,
    appearance_features,
)
from tumorlens.readers.pixels import Pixels

NO_TUMOR = "notumor"  # the class whose wrong prediction does most harm
OK, UNCERTAIN, REFUSED = "ok", "uncertain", "refused: not a brain MRI"
FEATURES, STATISTICS = 512, 1024  # numbers per image
MIN_PROBABILITY = 2 / 3  # below it a prediction is never ok, whatever the coverage of the sets
ODDS_WEIGHT = 4  # of the log odds in the doubt; the distance has 1
NO_TUMOR_PENALTY = 0.25  # added to the doubt of the prediction "notumor"
_VERSION = 3
_UNLIKE = (
    "texture and contrast unlike the training images",
    "content unlike the training images",
    "colour, border or outline unlike the training images",
)
_OUT_OF_BOUNDS = {
    "centre mean": "brighter or darker than the training images",
    "sd": "more or less contrast than in the training images",
    "height": "head taller or flatter in its field than in the training images",
    "width": "head wider or narrower in its field than in the training images",
    "aspect": "head of another shape than in the training images",
}


@dataclass(frozen=True, eq=False)
class Classification:
    """The result for n images."""

    probabilities: Floats
    """float64 [n, k], calibrated; rows sum to 1."""
    sets: Bools
    """bool [n, k], prediction set at the target coverage; never empty."""
    verdicts: list[str]
    """`ok`, `uncertain` or `refused: not a brain MRI`."""
    reasons: list[str]
    """A short phrase; empty for `ok`."""
    scores: Floats
    """float64 [n], distance from the training data, which decides on refusal: in standard deviations above the mean of
    validation images."""


@dataclass(frozen=True, eq=False)
class UncertaintyModel:
    """Temperature, distances and thresholds of a classifier; made by `fit_uncertainty`."""

    classes: tuple[str, ...]
    temperature: float
    """Divides the logits."""
    nonconformity: Floats
    """float64 [m], sorted: the LAC score of each validation image's true class."""
    statistics: Distance
    features: Distance
    appearance: Distance
    """Of the first 17 appearance features; `looks` in JSON."""
    bounds: Bounds
    odds: ZScore
    """Of the log odds against the predicted class."""
    refuse_above: float
    """Threshold of the mean of the three distances; images over it are refused."""
    beyond_above: float
    """Threshold of the largest excess over the bounds; images over it are uncertain."""
    doubt_above: float
    """Threshold of the doubt; images over it are uncertain."""

    def assess(
        self,
        logits: npt.NDArray[np.floating],
        features: npt.NDArray[np.floating],
        statistics: npt.NDArray[np.floating],
        pixels: Pixels,
        *,
        coverage: float = 0.95,
    ) -> Classification:
        """Probabilities, prediction sets and verdicts for n images.

        Parameters
        ----------
        logits
            float32 [n, k].
        features
            float32 [n, 512], after global average pooling.
        statistics
            float32 [n, 1024]: spatial mean and sd of each channel after the stem, layer1, layer2 and layer3.
        pixels
            uint8 [n, 224, 224, 3], RGB: the input of the classifier.
        coverage
            Target coverage of the prediction sets (split conformal, LAC, marginal, empty ones filled), more than 0 and
            less than 1. With fewer than coverage / (1 − coverage) validation images every set holds every class.

        Raises
        ------
        DataError
            A value is not finite.
        ConfigError
            The coverage is out of range.
        """
        for name, values in {"logits": logits, "features": features, "statistics": statistics}.items():
            if (bad := ~np.isfinite(values).all(1)).any():
                raise DataError(
                    f"{name} of image {bad.argmax()} hold NaN or infinity: the model file is damaged.",
                    cure=EXPORT_AGAIN,
                )
        level = quantile(self.nonconformity, coverage)
        probabilities = softmax(logits, self.temperature) if len(logits) else np.zeros((0, len(self.classes)))
        sets = prediction_sets(scores(probabilities), level)
        appearance = appearance_features(pixels)
        distances = self.distances(features, statistics, appearance)
        unsure = self.odds.transform(log_odds_against(logits, self.temperature))
        excess = self.bounds.excess(appearance)
        score = distances.mean(1)
        doubtful = self.doubt(distances[:, 0], logits) > self.doubt_above
        verdicts, reasons = [], []
        for i in range(len(score)):
            members = [name for name, held in zip(self.classes, sets[i], strict=True) if held]
            unlike = _UNLIKE[int(distances[i].argmax())]
            if score[i] > self.refuse_above:
                verdict, reason = REFUSED, unlike
            elif len(members) > 1:
                verdict, reason = UNCERTAIN, f"may be {', '.join(members[:-1])} or {members[-1]}"
            elif (top := probabilities[i].max()) < MIN_PROBABILITY:
                verdict, reason = UNCERTAIN, f"unsure, probability {top:.2f}"
            elif excess[i].max() > self.beyond_above:
                verdict, reason = UNCERTAIN, _OUT_OF_BOUNDS[BOUNDED_FEATURES[int(excess[i].argmax())]]
            elif doubtful[i]:
                unusual = distances[i, 0] >= unsure[i]
                verdict, reason = UNCERTAIN, _UNLIKE[0] if unusual else f"unsure, probability {top:.2f}"
            else:
                verdict, reason = OK, ""
            verdicts.append(verdict)
            reasons.append(reason)
        return Classification(probabilities, sets, verdicts, reasons, score)

    def distances(
        self,
        features: npt.NDArray[np.floating],
        statistics: npt.NDArray[np.floating],
        appearance: npt.NDArray[np.floating],
    ) -> Floats:
        """float64 [n, 3]: scores of statistics, features and appearance, the last of `appearance_features` [n, 20]."""
        return np.column_stack(
            [
                self.statistics.scores(statistics),
                self.features.scores(directions(features)),
                self.appearance.scores(appearance[:, :N_DISTANCE_FEATURES]),
            ]
        )

    def doubt(self, distance: Floats, logits: npt.NDArray[np.floating]) -> Floats:
        """float64 [n], from the scores of the statistics [n] and the logits [n, k]."""
        unsure = self.odds.transform(log_odds_against(logits, self.temperature))
        healthy = np.array([name == NO_TUMOR for name in self.classes])[logits.argmax(1)]
        return np.asarray((distance + ODDS_WEIGHT * unsure) / (1 + ODDS_WEIGHT) + NO_TUMOR_PENALTY * healthy)

    def to_json(self) -> Json:
        """A record for JSON that `from_json` reads; about 2.3 MB after 4,800 training images."""
        return {
            "version": _VERSION,
            "classes": list(self.classes),
            "temperature": self.temperature,
            "nonconformity": pack_array(self.nonconformity),
            "statistics": self.statistics.to_json(),
            "features": self.features.to_json(),
            "looks": self.appearance.to_json(),
            "bounds": self.bounds.to_json(),
            "odds": self.odds.to_json(),
            "refuse_above": self.refuse_above,
            "beyond_above": self.beyond_above,
            "doubt_above": self.doubt_above,
        }

    @classmethod
    def from_json(cls, record: Json) -> UncertaintyModel:
        """The model of a record that `to_json` made.

        Raises
        ------
        WeightsError
            It has another version, or a field is missing or damaged.
        """
        if not isinstance(record, dict) or record.get("version") != _VERSION:
            found = record.get("version") if isinstance(record, dict) else None
            raise WeightsError(f"The uncertainty record has version {found!r}, not {_VERSION}.", cure=EXPORT_AGAIN)
        classes = record.get("classes")
        if not isinstance(classes, list) or len(classes) < 2 or not all(isinstance(c, str) for c in classes):
            raise WeightsError(f"The uncertainty record's classes are {classes!r}.", cure=EXPORT_AGAIN)
        nonconformity = unpack_array(record, "nonconformity", (None,)).astype(np.float64)
        if not len(nonconformity) or (np.diff(nonconformity) < 0).any():
            raise WeightsError(
                "The uncertainty record's nonconformity scores are empty or not sorted.", cure=EXPORT_AGAIN
            )
        return cls(
            classes=tuple(classes),
            temperature=number(record, "temperature", 1e-3, 1e3),
            nonconformity=nonconformity,
            statistics=Distance.from_json(record.get("statistics"), STATISTICS, "statistics"),
            features=Distance.from_json(record.get("features"), FEATURES, "features"),
            appearance=Distance.from_json(record.get("looks"), N_DISTANCE_FEATURES, "looks"),
            bounds=Bounds.from_json(record.get("bounds"), "bounds"),
            odds=ZScore.from_json(record.get("odds"), "odds"),
            refuse_above=number(record, "refuse_above", -1e6, 1e6),
            beyond_above=number(record, "beyond_above", 0, 1e6),
            doubt_above=number(record, "doubt_above", -1e6, 1e6),
        )


def directions(features: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """float32 [n, 512], each row of length 1; rows of zeros stay."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, 1e-12), np.float32)


def log_odds_against(logits: npt.NDArray[np.floating], temperature: float) -> Floats:
    """float64 [n], ln((1 − p) / p) of the largest calibrated probability p, of logits [n, k], k ≥ 2."""
    z = np.sort(np.asarray(logits, np.float64) / temperature, 1)
    return np.asarray(np.logaddexp.reduce(z[:, :-1], axis=1) - z[:, -1])
