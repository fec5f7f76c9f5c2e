"""Families of changed and foreign images, and which of them may be used for fitting.

Scores and budgets of `tumorlens.inference.uncertainty` were chosen on families marked `fit`; figures are reported for
families marked `judge`, which are disjoint from them. Two near ones for fitting resemble ones for judging:
`squeezed` shrinks one side about as much as `wide_field` shrinks both, and `banded` bends grey levels as the
sequence-like ones do, with other curves. Results on the judging families of `near` were seen between two versions of
the rules; those of `artefacts` are fresh. Files of a folder of foreign images are divided into halves by hash: one for
development, one for the final figure alone.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from robustness import artefacts, far, near
from robustness.near import Make
from tumorlens.core.errors import ConfigError
from tumorlens.data.phantom.generator import LABELS, VIEWS, make_slice
from tumorlens.data.phantom.scanner import make_scan
from tumorlens.readers.pixels import SIZE, Pixels, resized

Kind = Literal["near", "far"]
Use = Literal["fit", "judge"]
Half = Literal["look", "judge"]


@dataclass(frozen=True)
class Family:
    """One way to change or replace a brain slice."""

    name: str
    kind: Kind
    """`near`: still a brain MRI, with its label. `far`: not a brain MRI."""
    use: Use
    make: Make
    """(uint8 [224, 224, 3], generator) → uint8 [224, 224, 3]."""
    fresh: bool = False
    """For judging, and none of its results had been seen when the rules of the verdicts were fixed."""


def _family(kind: Kind, use: Use, makes: tuple[Make, ...], *, fresh: bool = False) -> list[Family]:
    return [Family(make.__name__, kind, use, make, fresh) for make in makes]


FAMILIES: tuple[Family, ...] = (
    *_family("near", "fit", near.FITTING),
    *_family("near", "judge", near.JUDGING),
    *_family("near", "judge", artefacts.JUDGING, fresh=True),
    *_family("far", "fit", far.FITTING),
    *_family("far", "judge", far.JUDGING),
)


def families(kind: Kind, use: Use) -> tuple[Family, ...]:
    """The families of one kind and use, in a fixed order."""
    return tuple(family for family in FAMILIES if family.kind == kind and family.use == use)


def changed(family: Family, pixels: Pixels, seed: int = 0) -> Pixels:
    """Apply a family to images.

    Parameters
    ----------
    pixels
        uint8 [n, 224, 224, 3].
    seed
        0 or more. Image i depends only on (seed, family, i).

    Returns
    -------
    Pixels
        uint8 [n, 224, 224, 3].
    """
    key = zlib.crc32(family.name.encode())
    made = [family.make(image, np.random.default_rng([seed, key, i])) for i, image in enumerate(pixels)]
    return np.stack(made) if made else np.zeros((0, SIZE, SIZE, 3), np.uint8)


def half_of(sha256: str) -> Half:
    """The half that a foreign file belongs to, from the hex SHA-256 of its bytes: by the first digit's parity.

    Raises
    ------
    ConfigError
        It is not a hexadecimal digest.
    """
    try:
        return "judge" if int(sha256[:1], 16) % 2 else "look"
    except ValueError:
        raise ConfigError(
            f"{sha256!r} is not a SHA-256.", cure="Pass the hexadecimal digest of the file's bytes."
        ) from None


def phantom_plane(view: str, n: int, seed: int = 0) -> tuple[Pixels, list[str]]:
    """Generated slices of one plane: the near-shift family "other plane", which cannot be made from slices.

    Parameters
    ----------
    view
        axial, coronal or sagittal.
    n
        Number of images: one per patient, classes in turn.

    Returns
    -------
    pixels
        uint8 [n, 224, 224, 3].
    labels
        n of glioma, meningioma, notumor and pituitary.

    Raises
    ------
    ConfigError
        The view is unknown, or n is below 1.
    """
    if view not in VIEWS or n < 1:
        raise ConfigError(f"{n} slices of {view!r} cannot be made.", cure=f"Use 1 or more of {', '.join(VIEWS)}.")
    pixels: list[Pixels] = []
    labels: list[str] = []
    patient = 0
    while len(pixels) < n:
        label = LABELS[len(pixels) % len(LABELS)]
        if make_scan(seed, patient).view == view:
            made = make_slice(seed, label, patient, 0)
            pixels.append(resized(Image.fromarray(made.pixels).convert("RGB")))
            labels.append(label)
        patient += 1
    return np.stack(pixels), labels
