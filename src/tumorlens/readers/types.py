"""What every reader gives: slices or reasons, under limits; and grey values → uint8 [224, 224, 3]."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from tumorlens.readers.pixels import SIZE, Pixels

Plane = Literal["axial", "coronal", "sagittal"]
Values = npt.NDArray[Any]
Facts = dict[str, str | int | float]

#: Percentiles of the grey values that become black and white where a file names no window. Training pictures
#: were mostly scaled to their brightest spot, which leaves the brain dark; the last half percent holds vessels,
#: fat and artefacts, one of which must not decide the contrast of all the rest.
BLACK, WHITE = 0.5, 99.5
_BLOCK = 1_000_000  # values worked on at once
_SAMPLE = 2_000_000  # values that percentiles are taken from; more change nothing that is seen


@dataclass(frozen=True)
class Slice:
    """One picture to classify."""

    source: str
    """As shown in results: the path as given, `archive.zip/inner/a.png`, `-` for standard input."""
    index: int | None
    """0-based: of a NIfTI volume's slice the voxel index along its axis as stored, of a multi-frame file the
    frame, of a DICOM series InstanceNumber - 1; None for a plain image."""
    count: int | None
    """Slices or frames of that file; None for plain images and single DICOM files."""
    series: str | None
    """Running name of the volume or DICOM series it belongs to, `series-1`, …; None for plain images."""
    pixels: Pixels
    """uint8 [224, 224, 3], RGB."""
    facts: Facts
    """What may be shown: format, width, height, modality, …; nothing that identifies anybody."""


@dataclass(frozen=True)
class Unreadable:
    """A file, or slices of one, that could not be read."""

    source: str
    index: int | None
    """As a Slice's; of several frames that are missing, the last."""
    reason: str
    """Reads well after the file's name."""
    cure: str
    series: str | None = None
    """That it belongs to, as far as its file tells."""


@dataclass(frozen=True)
class ReadLimits:
    """What is read at most. Checked against headers before anything is decoded or inflated."""

    pixels: int = 25_000_000
    """Of one picture: 5,000 x 5,000; in DICOM every colour counts."""
    frames: int = 5_000
    """Frames, pages or slices of one file."""
    entries: int = 500_000
    """Files in one zip."""
    bytes: int = 400_000_000
    """Of one file as far as it must be held at once: a zip's entry, standard input, a DICOM file, one volume."""
    ratio: float = 200.0
    """Inflated over stored bytes; counts from `ratio_from` bytes on."""
    ratio_from: int = 64_000_000
    """Bytes that do no harm however well they were packed: masks and blank bitmaps are."""


class SeriesNames:
    """Hands out `series-1`, `series-2`, …, the same one for the same series."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}
        self._last = 0

    def new(self) -> str:
        """A name that no other volume has."""
        self._last += 1
        return f"series-{self._last}"

    def of(self, uid: str) -> str:
        """The name of a DICOM series. Only a hash of its identifier is kept."""
        key = hash(uid)
        if key not in self._known:
            self._known[key] = self.new()
        return self._known[key]


def contrast(values: Values) -> tuple[float, float]:
    """Grey values that become black and white where nothing else says so: the 0.5th and 99.5th percentile.

    Parameters
    ----------
    values
        A slice or volume of any shape and real dtype. Of a large one every n-th value is looked at.

    Returns
    -------
    tuple of float
        Their smallest and largest value where the percentiles coincide, as in a mask; (0, 0) where no value is
        finite.
    """
    flat = sample(values)
    if flat.dtype.kind == "f":
        flat = flat[np.isfinite(flat)]
    if flat.size == 0:
        return 0.0, 0.0
    with np.errstate(over="ignore"):  # between the ends of what a float can hold
        low, high = (float(v) for v in np.percentile(flat.astype(np.float64), (BLACK, WHITE)))
    return (low, high) if low < high else (float(flat.min()), float(flat.max()))


def sample(values: Values) -> Values:
    """At most two million of the values, evenly chosen, [n]."""
    flat = values.ravel(order="K")
    return flat[:: max(1, math.ceil(flat.size / _SAMPLE))]


def grey(values: Values, low: float, high: float) -> npt.NDArray[np.uint8]:
    """uint8 of the same shape: `low` and less is 0, `high` and more is 255, so is infinity; NaN is 0."""
    made = np.zeros(values.shape, np.uint8)
    if not low < high:
        return made
    for rows in blocks(values):  # float64 of a large picture at once would take a gigabyte
        with np.errstate(all="ignore"):  # extreme floats: clipped right after
            scaled = (values[rows].astype(np.float64) - low) * (255.0 / (high - low))
        made[rows] = np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255))
    return made


def blocks(values: Values) -> Iterator[slice]:
    """Slices along the first axis of about a million values each, the whole of an ordinary picture."""
    step = max(1, _BLOCK * len(values) // max(1, values.size))
    for start in range(0, len(values), step):
        yield slice(start, start + step)


def squared(picture: npt.NDArray[np.uint8], spacing: tuple[float, float]) -> Pixels:
    """Resize a slice of known physical size into the square that the model sees, without distorting it.

    The study stretches its pictures to a square. Nearly all of them are square heads, so that a slice of
    256 x 120 mm is more like them with black beside it than stretched.

    Parameters
    ----------
    picture
        uint8 [rows, columns] or [rows, columns, 3].
    spacing
        Distance of rows and of columns from one to the next, in any unit. Anything but two positive numbers
        counts as equal.

    Returns
    -------
    pixels
        uint8 [224, 224, 3], RGB, centred on black; antialiased bilinear as in the study.
    """
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        spacing = (1.0, 1.0)
    height, width = picture.shape[0] * spacing[0], picture.shape[1] * spacing[1]
    rows, columns = (max(1, round(SIZE * side / max(height, width))) for side in (height, width))
    image = Image.fromarray(picture).resize((columns, rows), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (SIZE, SIZE))
    canvas.paste(image.convert("RGB"), ((SIZE - columns) // 2, (SIZE - rows) // 2))
    return np.array(canvas)
