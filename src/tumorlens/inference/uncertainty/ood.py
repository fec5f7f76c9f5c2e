"""Out-of-distribution scores: how far an image is from the training images. Needs only numpy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tumorlens.core.errors import WeightsError
from tumorlens.core.files import Json
from tumorlens.inference.uncertainty.arrays import (
    EXPORT_AGAIN,
    Floats,
    number,
    pack_array,
    unpack_array,
)
from tumorlens.readers.pixels import Pixels

Singles = npt.NDArray[np.float32]

#: Features of the image itself, in the order of `appearance_features`. Lengths are fractions of half the image's side.
APPEARANCE_FEATURES = (
    "colour",  # mean over pixels of the largest difference between channels
    "mean",
    "sd",
    "border mean",  # over the outer 12 pixels
    "border sd",
    "corner mean",  # over squares of 32 pixels
    "centre mean",  # over the middle half of each side
    "centre sd",
    "dark share",  # of pixels under 0.08
    "bright share",  # of pixels over 0.75
    "fine texture",  # mean difference of neighbouring pixels, by the sd
    "coarse texture",  # the same 4 pixels apart
    "entropy",  # of a histogram of 16 bins, nats
    "centre x",  # of brightness
    "centre y",
    "spread x",  # sd of brightness along x
    "spread y",
    "height",  # ln(0.05 + h), h from the first row to the last that is not air, as a fraction of the side
    "width",  # the same of columns
    "aspect",  # height less width
)
N_DISTANCE_FEATURES = 17  # the first of them, which make the distance
#: A single one of these far outside its range over the training images makes a prediction uncertain.
BOUNDED_FEATURES = ("centre mean", "sd", "height", "width", "aspect")
_STEP = 4  # pixels between samples
_GRID = 56
_DARK = 0.08  # grey level; a row or column of which no more than 5 % is brighter is air


def appearance_features(pixels: Pixels) -> Singles:
    """Cheap features of the image itself: is it grey, dark at its border, with one large bright object?

    Parameters
    ----------
    pixels
        uint8 [n, 224, 224, 3].

    Returns
    -------
    float32 [n, 20]
        As named by APPEARANCE_FEATURES; grey levels from 0 to 1. Every fourth pixel is used.
    """
    n = len(pixels)
    sampled = pixels[:, 2::_STEP, 2::_STEP].astype(np.float32) / 255  # (n, 56, 56, 3)
    red, green, blue = (sampled[..., i] for i in range(3))
    grey = (red + green + blue) / 3
    beside = pixels[:, 2::_STEP, 3::_STEP].sum(3, dtype=np.int32).astype(np.float32) / 765
    colour = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    flat = grey.reshape(n, _GRID**2)
    sd = flat.std(1) + 0.02  # the constant keeps textures of nearly blank images finite
    bins = (flat * 15.999).astype(np.int64) + 16 * np.arange(n)[:, None]
    shares = np.bincount(bins.ravel(), minlength=16 * n).reshape(n, 16) / _GRID**2
    border, corner = flat[:, _BORDER], flat[:, _CORNER]
    centre = grey[:, _MIDDLE, _MIDDLE].reshape(n, (_GRID // 2) ** 2)
    total = flat.sum(1) + 1e-6
    place = np.linspace(-1, 1, _GRID, dtype=np.float32)
    along, down = grey.sum(1) / total[:, None], grey.sum(2) / total[:, None]
    x, y = along @ place, down @ place
    head = grey > _DARK
    height, width = (np.log(0.05 + _extent(head.mean(axis) > 0.05)) for axis in (2, 1))
    coarse = np.abs(np.diff(grey, axis=1)).mean((1, 2)) + np.abs(np.diff(grey, axis=2)).mean((1, 2))
    features = (
        colour.mean((1, 2)), flat.mean(1), sd, border.mean(1), border.std(1), corner.mean(1), centre.mean(1),
        centre.std(1), (flat < _DARK).mean(1), (flat > 0.75).mean(1), np.abs(beside - grey).mean((1, 2)) / sd,
        coarse / sd, -(shares * np.log(shares + 1e-9)).sum(1), x, y,
        np.sqrt(np.maximum(along @ place**2 - x**2, 0)), np.sqrt(np.maximum(down @ place**2 - y**2, 0)),
        height, width, height - width,
    )  # fmt: skip
    return np.stack(features, 1).astype(np.float32)


def _extent(held: npt.NDArray[np.bool_]) -> Floats:
    """float64 [n], from the first to the last True of each row [n, 56], as a fraction of 56; 0 without any."""
    span = _GRID - held.argmax(1) - held[:, ::-1].argmax(1)
    return np.where(held.any(1), span, 0) / _GRID


_EDGE = np.minimum(np.arange(_GRID), np.arange(_GRID)[::-1])  # distance of a row or column from the border
_BORDER, _CORNER = np.minimum.outer(_EDGE, _EDGE).ravel() < 3, np.maximum.outer(_EDGE, _EDGE).ravel() < 8
_MIDDLE = slice(_GRID // 4, 3 * _GRID // 4)


@dataclass(frozen=True)
class ZScore:
    """Standardizes a score by its mean and standard deviation on validation images."""

    mean: float
    sd: float

    def transform(self, score: Floats) -> Floats:
        """float64 [n]: standard deviations above the mean of validation images."""
        return (score - self.mean) / self.sd

    def to_json(self) -> Json:
        return {"mean": self.mean, "sd": self.sd}

    @classmethod
    def from_json(cls, record: Any, name: str) -> ZScore:
        """The record that `to_json` made; WeightsError if it is missing or damaged."""
        return cls(number(record, "mean", -1e6, 1e6, name), number(record, "sd", 1e-12, 1e6, name))


def fit_z_score(score: Floats) -> ZScore:
    """From the scores of validation images, [m], m ≥ 1."""
    return ZScore(float(score.mean()), max(float(score.std()), 1e-6))


@dataclass(frozen=True, eq=False)
class Bounds:
    """Range of each of BOUNDED_FEATURES over the training images: [5] each, in their order."""

    low: Singles
    """1st percentile."""
    middle: Singles
    """Median."""
    high: Singles
    """99th percentile."""

    def excess(self, features: npt.NDArray[np.floating]) -> Floats:
        """float64 [n, 5] for features [n, 20]: distance from the median, 1 at the 1st or 99th percentile."""
        away = np.asarray(features[:, _BOUNDED], np.float64) - self.middle
        return np.asarray(np.where(away < 0, away / (self.low - self.middle), away / (self.high - self.middle)))

    def to_json(self) -> Json:
        return {"low": pack_array(self.low), "middle": pack_array(self.middle), "high": pack_array(self.high)}

    @classmethod
    def from_json(cls, record: Any, name: str) -> Bounds:
        """The record that `to_json` made; WeightsError if it is missing or damaged."""
        low, middle, high = (
            unpack_array(record, key, (len(BOUNDED_FEATURES),), name) for key in ("low", "middle", "high")
        )
        if (low >= middle).any() or (middle >= high).any():
            raise WeightsError(f"The uncertainty record's {name!r} are not in order.", cure=EXPORT_AGAIN)
        return cls(low, middle, high)


_BOUNDED = [APPEARANCE_FEATURES.index(name) for name in BOUNDED_FEATURES]


def fit_bounds(features: npt.NDArray[np.floating]) -> Bounds:
    """From `appearance_features` [n, 20] of the training images, n ≥ 1."""
    low, middle, high = np.quantile(np.asarray(features[:, _BOUNDED], np.float64), [0.01, 0.5, 0.99], axis=0)
    room = 0.01  # least width, so that training images without spread cause no division by 0
    found = (np.minimum(low, middle - room), middle, np.maximum(high, middle + room))
    return Bounds(*(np.asarray(values, np.float32) for values in found))


@dataclass(frozen=True, eq=False)
class Distance:
    """Logarithm of a Mahalanobis distance, on the scale of validation images.

    The covariance is that of probabilistic principal component analysis (Tipping and Bishop, J. R. Statist.
    Soc. B 61, 1999): the directions of largest variance as measured, and the mean variance for all others. This
    regularizes what few images cannot determine, and needs d × r numbers instead of d × d. With one centre per class
    it is the class-conditional distance of Lee et al. (NeurIPS 2018): that to the nearest centre.
    """

    widths: Singles
    """[d], divisors of the values."""
    centres: Singles
    """[c, d], after that division."""
    directions: Singles
    """[d, r], orthogonal, each of length 1 / sd along it."""
    rest: float
    """Variance along every other direction."""
    scale: ZScore

    def scores(self, values: npt.NDArray[np.floating]) -> Floats:
        """float64 [n] of values [n, d]: 0 for the mean validation image, 1 a standard deviation above."""
        return self.scale.transform(np.log(self.squared(values)))

    def squared(self, values: npt.NDArray[np.floating]) -> Floats:
        """float64 [n], squared distance to the nearest centre, at least 1e-12."""
        scaled = np.asarray(values, np.float32) / self.widths
        found = [self._from(scaled - centre) for centre in self.centres]
        return np.asarray(np.maximum(np.min(found, 0), 1e-12), np.float64)

    def _from(self, away: Singles) -> Singles:
        along = away @ self.directions  # (n, r), in standard deviations
        inside = (along**2 / self._squared_lengths).sum(1)  # squared length within the directions
        return np.asarray((along**2).sum(1) + np.maximum((away**2).sum(1) - inside, 0) / self.rest)

    @cached_property
    def _squared_lengths(self) -> Singles:
        return np.asarray((self.directions**2).sum(0), np.float32)

    def to_json(self) -> Json:
        """Directions in float16, everything else in float32."""
        return {
            "widths": pack_array(self.widths),
            "centres": pack_array(self.centres),
            "directions": pack_array(self.directions, "float16"),
            "rest": self.rest,
            "scale": self.scale.to_json(),
        }

    @classmethod
    def from_json(cls, record: Any, d: int, name: str) -> Distance:
        """What `to_json` wrote, for values of length `d`; WeightsError if it is damaged."""
        widths, centres, directions = (
            unpack_array(record, key, shape, name)
            for key, shape in (("widths", (d,)), ("centres", (None, d)), ("directions", (d, None)))
        )
        if not len(centres) or (widths <= 0).any() or not (directions**2).sum(0).all():
            raise WeightsError(f"The uncertainty record's {name!r} is degenerate.", cure=EXPORT_AGAIN)
        rest = number(record, "rest", 1e-12, 1e12, name)
        return cls(widths, centres, directions, rest, ZScore.from_json(record.get("scale"), f"{name}.scale"))


def fit_distance(
    values: npt.NDArray[np.floating],
    validation: npt.NDArray[np.floating],
    *,
    rank: int,
    labels: npt.NDArray[np.integer] | None = None,
) -> Distance:
    """Fit a distance on training images, and its scale on validation images.

    Parameters
    ----------
    values
        float [n, d], n ≥ 2.
    validation
        float [m, d], m ≥ 1.
    rank
        Directions to keep; at most d − 1, so that a rest remains, and n / 6.
    labels
        int [n], for one centre per class; without, one centre for all.
    """
    x = np.asarray(values, np.float64)
    sd = x.std(0)
    widths = sd + 1e-3 * max(float(sd.mean()), 1e-6)  # a constant channel must not cause a division by 0
    x = x / widths
    of = np.zeros(len(x), np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    centres = np.stack([x[of == c].mean(0) for c in range(of.max() + 1)])
    spread, axes = np.linalg.eigh(np.cov((x - centres[of]).T, bias=True))  # ascending
    r = max(1, min(rank, x.shape[1] - 1, len(x) // 6))
    rest = max(float(spread[:-r].mean()), 1e-6)
    directions = axes[:, -r:] / np.sqrt(np.maximum(spread[-r:], rest))
    # As stored, so that a record read back gives the same verdicts.
    stored = directions.astype(np.float16).astype(np.float32)
    raw = Distance(widths.astype(np.float32), centres.astype(np.float32), stored, rest, ZScore(0.0, 1.0))
    return replace(raw, scale=fit_z_score(raw.scores(validation)))
