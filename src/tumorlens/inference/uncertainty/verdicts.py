"""A classifier's outputs → calibrated probabilities, prediction sets and verdicts: numpy alone.

Four scores tell how little an answer can be trusted, each in standard deviations above the mean of validation
images. Three are distances from the images learned from: of the early layers' `statistics` (sequences, filters and
textures show there), of the direction of the `features` behind the decision (their length falls on foreign images,
which hides those; Mueller and Hein, ICML 2025), and of what the image itself looks like (`refusal.FACTS`). The
fourth is the log odds against the predicted class. Verdicts, the first that holds:

1. `refused: not a brain MRI`. The mean of the three distances is over a threshold.
2. `uncertain`. The prediction set holds several classes; or the calibrated probability is under 2/3; or one of five
   plain facts of the image (brightness and contrast, the head's height, width and their ratio) lies far outside those
   of the images learned from; or the *doubt* is over a threshold: the mean of the statistics' distance, once, and the
   odds, four times, and a quarter more where the answer is `notumor`.
3. `ok`.

The doubt is a mean, since most wrong answers on images of another source are somewhat strange and somewhat unsure at
once (as in Xia and Bouganis, ACCV 2022): with a threshold for each, several times as many went through. The plain
facts have a threshold of their own, since a network can be sure of a head that is too small or too dark for it while
its statistics move little. On an image of another source a sure "notumor" is the answer that does most harm, hence the
quarter. The thresholds are quantiles over validation images, so the share of like images that is held back is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tumorlens.core.errors import DataError, WeightsError
from tumorlens.core.files import Json
from tumorlens.inference.uncertainty.arrays import (
    CURE,
    Bools,
    Floats,
    number,
    packed,
    softmax,
    unpacked,
)
from tumorlens.inference.uncertainty.conformal import prediction_sets, quantile, scores
from tumorlens.inference.uncertainty.ood import (
    LOOKS,
    PLAIN,
    Bounds,
    Distance,
    Scale,
    image_facts,
)
from tumorlens.readers.pixels import SIZE, Pixels

HEALTHY = "notumor"  # the class whose wrong answer does most harm
OK, UNCERTAIN, REFUSED = "ok", "uncertain", "refused: not a brain MRI"
FEATURES, STATISTICS = 512, 1024  # numbers an image
PROBABLE = 2 / 3  # an answer that is wrong one time in three is never ok, at whatever coverage sets are asked for
ODDS = 4  # times that the odds count in the doubt, beside the distance once
STRICTER = 0.25  # added to the doubt of an answer "notumor"
_VERSION = 3
_UNLIKE = (
    "texture and contrast unlike the images learned from",
    "content unlike the images learned from",
    "colour, border or outline unlike the images learned from",
)
_PLAINLY = {
    "centre mean": "brighter or darker than the images learned from",
    "sd": "more or less contrast than in the images learned from",
    "height": "head taller or flatter in its field than in the images learned from",
    "width": "head wider or narrower in its field than in the images learned from",
    "aspect": "head of another shape than in the images learned from",
}


@dataclass(frozen=True, eq=False)
class Judgement:
    """What n images' answers are worth."""

    probabilities: Floats
    """float64 [n, k], calibrated; rows sum to 1."""
    sets: Bools
    """bool [n, k], prediction set at the coverage asked for; never empty."""
    verdicts: list[str]
    """`ok`, `uncertain` or `refused: not a brain MRI`."""
    reasons: list[str]
    """Why, a short phrase; empty for `ok`."""
    scores: Floats
    """float64 [n], distance from the training data, over which refusal has its threshold: 0 is the mean of validation
    images, and more is farther."""


@dataclass(frozen=True, eq=False)
class Trust:
    """What was learned on validation about a classifier's answers; see `fit_trust`."""

    classes: tuple[str, ...]
    temperature: float
    """Logits are divided by it."""
    nonconformity: Floats
    """float64 [m], sorted: the LAC score of each validation image's true class."""
    statistics: Distance
    features: Distance
    looks: Distance
    """Of the first 17 facts."""
    bounds: Bounds
    odds: Scale
    """Of the log odds against the predicted class."""
    refuse_above: float
    """Mean of the three distances over which an image is refused."""
    beyond_above: float
    """How far beyond its bounds one plain fact may lie, over which an image is uncertain."""
    doubt_above: float
    """Doubt over which an image is uncertain."""

    def judge(
        self,
        logits: npt.NDArray[np.floating],
        features: npt.NDArray[np.floating],
        statistics: npt.NDArray[np.floating],
        pixels: Pixels,
        *,
        coverage: float = 0.95,
    ) -> Judgement:
        """Judge n answers.

        Parameters
        ----------
        logits
            float32 [n, k].
        features
            float32 [n, 512], after global average pooling.
        statistics
            float32 [n, 1024]: spatial mean and sd of each channel after the stem, layer1, layer2 and layer3.
        pixels
            uint8 [n, 224, 224, 3], RGB: what the classifier saw.
        coverage
            Of the prediction sets (split conformal, LAC, marginal, empty ones filled), more than 0 and less than
            1. With fewer than coverage / (1 − coverage) validation images every set holds every class.

        Raises
        ------
        DataError
            Shapes do not fit, or a value is not finite.
        ConfigError
            The coverage is out of range.
        """
        self._check(logits, features, statistics, pixels)
        level = quantile(self.nonconformity, coverage)
        probabilities = softmax(logits, self.temperature) if len(logits) else np.zeros((0, len(self.classes)))
        sets = prediction_sets(scores(probabilities), level)
        facts = image_facts(pixels)
        distances = self.distances(features, statistics, facts)
        unsure = self.odds.of(odds_against(logits, self.temperature))
        beyond = self.bounds.beyond(facts)
        found = distances.mean(1)
        doubtful = self.doubt(distances[:, 0], logits) > self.doubt_above
        verdicts, reasons = [], []
        for i in range(len(found)):
            several = [name for name, held in zip(self.classes, sets[i], strict=True) if held]
            unlike = _UNLIKE[int(distances[i].argmax())]
            if found[i] > self.refuse_above:
                verdict, reason = REFUSED, unlike
            elif len(several) > 1:
                verdict, reason = UNCERTAIN, f"may be {', '.join(several[:-1])} or {several[-1]}"
            elif (top := probabilities[i].max()) < PROBABLE:
                verdict, reason = UNCERTAIN, f"unsure, probability {top:.2f}"
            elif beyond[i].max() > self.beyond_above:
                verdict, reason = UNCERTAIN, _PLAINLY[PLAIN[int(beyond[i].argmax())]]
            elif doubtful[i]:
                strange = distances[i, 0] >= unsure[i]
                verdict, reason = UNCERTAIN, _UNLIKE[0] if strange else f"unsure, probability {top:.2f}"
            else:
                verdict, reason = OK, ""
            verdicts.append(verdict)
            reasons.append(reason)
        return Judgement(probabilities, sets, verdicts, reasons, found)

    def distances(
        self,
        features: npt.NDArray[np.floating],
        statistics: npt.NDArray[np.floating],
        facts: npt.NDArray[np.floating],
    ) -> Floats:
        """float64 [n, 3]: scores of statistics, features and looks, the last from `image_facts` [n, 20]."""
        found = (
            self.statistics.scores(statistics),
            self.features.scores(directions(features)),
            self.looks.scores(facts[:, :LOOKS]),
        )
        return np.stack(found, 1)

    def doubt(self, strange: Floats, logits: npt.NDArray[np.floating]) -> Floats:
        """float64 [n], of the statistics' scores [n] and the logits [n, k]."""
        unsure = self.odds.of(odds_against(logits, self.temperature))
        healthy = np.array([name == HEALTHY for name in self.classes])[logits.argmax(1)]
        return np.asarray((strange + ODDS * unsure) / (1 + ODDS) + STRICTER * healthy)

    def to_json(self) -> Json:
        """A record for JSON, about 2.3 MB after 4,800 Training images, that `from_json` reads."""
        return {
            "version": _VERSION,
            "classes": list(self.classes),
            "temperature": self.temperature,
            "nonconformity": packed(self.nonconformity),
            "statistics": self.statistics.to_json(),
            "features": self.features.to_json(),
            "looks": self.looks.to_json(),
            "bounds": self.bounds.to_json(),
            "odds": self.odds.to_json(),
            "refuse_above": self.refuse_above,
            "beyond_above": self.beyond_above,
            "doubt_above": self.doubt_above,
        }

    @classmethod
    def from_json(cls, record: Json) -> Trust:
        """The record that `to_json` made.

        Raises
        ------
        WeightsError
            It is of another version, or a field is missing or damaged.
        """
        if not isinstance(record, dict) or record.get("version") != _VERSION:
            found = record.get("version") if isinstance(record, dict) else None
            raise WeightsError(f"The trust record is of version {found!r}, not {_VERSION}.", cure=CURE)
        classes = record.get("classes")
        if not isinstance(classes, list) or len(classes) < 2 or not all(isinstance(c, str) for c in classes):
            raise WeightsError(f"The trust record's classes are {classes!r}.", cure=CURE)
        nonconformity = unpacked(record.get("nonconformity"), (None,), "nonconformity").astype(np.float64)
        if not len(nonconformity) or (np.diff(nonconformity) < 0).any():
            raise WeightsError("The trust record's nonconformity scores are none or not sorted.", cure=CURE)
        return cls(
            classes=tuple(classes),
            temperature=number(record, "temperature", 1e-3, 1e3),
            nonconformity=nonconformity,
            statistics=Distance.from_json(record.get("statistics"), STATISTICS, "statistics"),
            features=Distance.from_json(record.get("features"), FEATURES, "features"),
            looks=Distance.from_json(record.get("looks"), LOOKS, "looks"),
            bounds=Bounds.from_json(record.get("bounds"), "bounds"),
            odds=Scale.from_json(record.get("odds"), "odds"),
            refuse_above=number(record, "refuse_above", -1e6, 1e6),
            beyond_above=number(record, "beyond_above", 0, 1e6),
            doubt_above=number(record, "doubt_above", -1e6, 1e6),
        )

    def _check(
        self,
        logits: npt.NDArray[np.floating],
        features: npt.NDArray[np.floating],
        statistics: npt.NDArray[np.floating],
        pixels: Pixels,
    ) -> None:
        n = len(logits)
        wanted = {
            "logits": (logits, (n, len(self.classes))),
            "features": (features, (n, FEATURES)),
            "statistics": (statistics, (n, STATISTICS)),
            "pixels": (pixels, (n, SIZE, SIZE, 3)),
        }
        for name, (values, shape) in wanted.items():
            if values.shape != shape:
                raise DataError(
                    f"{name} has shape {list(values.shape)}, not {list(shape)}.",
                    cure="Pass what the classifier gives for the same images.",
                )
        if pixels.dtype != np.uint8:
            raise DataError(f"pixels are {pixels.dtype}, not uint8.", cure="Pass levels from 0 to 255.")
        for name in ("logits", "features", "statistics"):
            if not np.isfinite(wanted[name][0]).all():
                bad = int((~np.isfinite(wanted[name][0])).any(1).argmax())
                raise DataError(
                    f"{name} of image {bad} hold NaN or infinity: the model's file is damaged.",
                    cure=CURE,
                )


def directions(features: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """float32 [n, 512], each row of length 1; rows of zeros stay."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, 1e-12), np.float32)


def odds_against(logits: npt.NDArray[np.floating], temperature: float) -> Floats:
    """float64 [n], ln((1 − p) / p) of the largest calibrated probability p, of logits [n, k], k ≥ 2."""
    z = np.sort(np.asarray(logits, np.float64) / temperature, 1)
    return np.asarray(np.logaddexp.reduce(z[:, :-1], axis=1) - z[:, -1])
