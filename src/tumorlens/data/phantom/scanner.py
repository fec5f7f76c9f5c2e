"""The scanner behind the phantom: how a patient lies in it, and what it does to the signal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from tumorlens.data.phantom.planes import (
    SIDE,
    STEP,
    VIEWS,
    Field,
    ramp,
)
from tumorlens.data.phantom.rendering import AIR

_SIZES = ((256, 256), (256, 256), (256, 256), (240, 240), (256, 216), (224, 256))  # rows, columns
_LEVELS = 8192  # steps of the brightness curve, over 0 to 4 times fat's signal
_SPREAD = 4.5  # mm to either side within which the slices of one patient lie

# mm: depth of slices anywhere, of slices through the sella, and the field of view
_DEPTHS = {"axial": (-34.0, 48.0), "coronal": (-46.0, 42.0), "sagittal": (-42.0, 42.0)}
_SELLAR = {"axial": (-31.0, -21.0), "coronal": (3.0, 15.0), "sagittal": (-5.0, 5.0)}
_FIELDS = {"axial": (205.0, 235.0), "coronal": (210.0, 238.0), "sagittal": (220.0, 245.0)}


@dataclass(frozen=True)
class Scan:
    """One patient's examination: everything that an image shows beside anatomy and tumour."""

    view: str
    depth: float
    """Of the middle slice, mm."""
    sellar_depth: float
    """Where the middle slice lies if the sella is to be seen, mm."""
    size: tuple[int, int]
    """Rows and columns in pixels."""
    field: float
    """Field of view along the longer side, mm."""
    rotation: float
    """Degrees."""
    offset: tuple[float, float]
    """Of the head's middle from the image's, mm."""
    border: tuple[int, int]
    """Rows and columns left black at either edge, pixels."""
    bias: npt.NDArray[np.float32]
    """[4, 4], logarithm of the coil's sensitivity on a coarse grid."""
    noise: float
    """Sd of the receiver's noise, as a fraction of fat's signal."""
    gamma: float
    gain: float
    """Grey level of fat before the bias field."""


@lru_cache(maxsize=8)
def make_scan(seed: int, patient: int) -> Scan:
    """Draw one patient's examination; it depends on nothing but these two numbers."""
    rng = np.random.default_rng([seed, 3, patient])
    view = VIEWS[int(rng.integers(3))]
    anywhere, sellar = rng.uniform(*_DEPTHS[view]), rng.uniform(*_SELLAR[view])
    return Scan(
        view=view,
        depth=sellar if rng.random() < 0.45 else anywhere,
        sellar_depth=sellar,
        size=_SIZES[int(rng.integers(len(_SIZES)))],
        field=rng.uniform(*_FIELDS[view]),
        rotation=rng.normal(0, 4.0),
        offset=(rng.normal(0, 3.0), rng.normal(0, 3.0)),
        border=(int(rng.integers(1, 12)), int(rng.integers(1, 12))) if rng.random() < 0.25 else (0, 0),
        bias=rng.normal(0, 0.18, (4, 4)).astype(np.float32),
        noise=rng.uniform(0.008, 0.026),
        gamma=rng.uniform(0.8, 1.15),
        gain=rng.uniform(150, 270),
    )


def slice_depth(scan: Scan, label: str, slice_number: int) -> float:
    """Depth in mm of a patient's n-th slice: the middle one first, the others spread evenly around it."""
    middle = scan.sellar_depth if label == "pituitary" else scan.depth
    golden = 0.6180339887498949
    return middle + _SPREAD * (2 * ((0.5 + golden * slice_number) % 1.0) - 1)


def acquire(
    scan: Scan, signal: Field, lesion: Field, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Turn the signal of a plane into an image as stored.

    The coil's sensitivity falls off towards the neck and varies smoothly; noise is Rician (Gudbjartsson and
    Patz 1995: the magnitude of a complex signal with Gaussian noise in both channels).

    Parameters
    ----------
    signal
        float32 [192, 192], 0 to about 1.
    lesion
        float32 [192, 192], signed distance to the tumour in mm, positive inside.
    rng
        Source of the noise.

    Returns
    -------
    pixels
        uint8 [rows, columns].
    mask
        bool [rows, columns].
    """
    rows, columns = scan.size
    if scan.view != "axial":
        signal = signal * ramp(np.arange(SIDE, dtype=np.float32), SIDE + 4, SIDE - 34)[:, None]
    step = scan.field / max(rows, columns) / STEP  # drawn pixels per stored pixel
    angle = np.deg2rad(scan.rotation)
    c, s = step * float(np.cos(angle)), step * float(np.sin(angle))
    dx, dy = (SIDE / 2 - offset / STEP for offset in scan.offset)
    place = (c, -s, dx - c * columns / 2 + s * rows / 2, s, c, dy - s * columns / 2 - c * rows / 2)
    size, affine = (columns, rows), Image.Transform.AFFINE
    seen = np.array(Image.fromarray(signal).transform(size, affine, place, Image.Resampling.BILINEAR, fillcolor=AIR))
    inside = Image.fromarray(lesion).transform(size, affine, place, Image.Resampling.BILINEAR, fillcolor=-1000)
    seen *= _smooth(rows) @ np.exp(scan.bias) @ _smooth(columns).T
    both = rng.standard_normal((2, rows, columns), dtype=np.float32)
    both *= np.float32(scan.noise)
    both[0] += seen
    np.square(both, out=both)
    level = np.sqrt(both[0] + both[1])
    level *= np.float32(_LEVELS / 4)
    np.minimum(level, _LEVELS - 1, out=level)
    curve = scan.gain * np.linspace(0, 4, _LEVELS, endpoint=False) ** scan.gamma
    image = np.clip(curve + 0.5, 0, 255).astype(np.uint8)[level.astype(np.uint16)]
    top, left = scan.border
    if top:
        image[:top] = image[-top:] = 0
        image[:, :left] = image[:, -left:] = 0
    return image, np.asarray(inside) > 0


@lru_cache(maxsize=8)
def _smooth(n: int) -> Field:
    """[n, 4], weights that spread four values smoothly over n pixels (Gaussian kernel)."""
    gap = np.linspace(0, 3, n)[:, None] - np.arange(4)
    kernel = np.exp(-0.5 * (gap / 0.75) ** 2)
    return np.asarray(kernel / kernel.sum(1, keepdims=True), np.float32)
