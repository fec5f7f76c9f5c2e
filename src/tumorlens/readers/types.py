"""What every reader takes and returns: a context, limits, slices or reasons."""

import itertools
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from tumorlens.readers.companions import Skipped
from tumorlens.readers.pixels import SIZE, Pixels

Plane = Literal["axial", "coronal", "sagittal"]
Metadata = dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a DICOM image lies, and what tells it from others at the same place. Empty for other formats."""

    position: float | None = None
    """mm along the normal of its plane, or its number in a stack; None if the header has neither."""
    orientation: tuple[float, ...] = ()
    """Direction cosines of its rows and columns, 6 numbers; empty if the header has none."""
    traits: tuple[str, ...] = ()
    """Values of `places.TRAITS`; an empty one if the header has none."""
    times: tuple[float, ...] = ()
    """Seconds or counts that grow from one repetition to the next."""
    image: int | None = None
    """Hash of its identifier, which copies share; None if the header has none."""


@dataclass(frozen=True)
class Slice:
    """One image to classify."""

    source: str
    """File name as shown in results: the path as given, `archive.zip/inner/a.png`, `-` for standard input."""
    index: int | None
    """0-based: of a NIfTI volume's slice the voxel index along its axis as stored, of a multi-frame file the
    frame, of a DICOM series InstanceNumber - 1; None for a plain image."""
    count: int | None
    """Slices or frames of that file; None for plain images and single DICOM files."""
    series: str | None
    """Name of its volume or DICOM series, `series-1`, `series-2`, …; None for plain images."""
    pixels: Pixels
    """uint8 [224, 224, 3], RGB."""
    metadata: Metadata
    """What may be shown: format, width, height, modality, …; nothing that identifies a person."""
    instance: int | None = None
    """InstanceNumber of a DICOM file with one frame, 1 to 65535; None for everything else."""
    place: Place = Place()
    header_verdict: tuple[str, str] | None = None
    """Verdict, `refused` or `uncertain`, and reason if the header says that it is no slice of a brain MRI."""


@dataclass(frozen=True)
class Unreadable:
    """A file, or slices of one, that could not be read."""

    source: str
    index: int | None
    """As a Slice's; of several missing frames, the last."""
    reason: str
    """Reads well after the file's name."""
    cure: str
    series: str | None = None
    """Its series, if the file could be read so far."""
    instance: int | None = None
    """As a Slice's."""
    place: Place = Place()


@dataclass(frozen=True)
class ReadLimits:
    """What is read at most. Checked against headers before anything is decoded or decompressed."""

    pixels: int = 25_000_000
    """Of one picture: 5,000 x 5,000; in DICOM every colour counts."""
    frames: int = 5_000
    """Frames, pages or slices of one file."""
    entries: int = 500_000
    """Files in one zip."""
    bytes: int = 400_000_000
    """Of what must be held in memory at once: a zip's entry, standard input, a DICOM file, one volume."""
    ratio: float = 200.0
    """Decompressed over compressed bytes; applies above `ratio_from` bytes."""
    ratio_from: int = 64_000_000
    """Bytes that are harmless at any ratio: masks and blank images compress that well."""

    def is_bomb(self, decompressed: int, compressed: int) -> bool:
        """Whether so many bytes from so few are refused as a decompression bomb."""
        return decompressed > self.ratio_from and decompressed > self.ratio * compressed


class SeriesNames:
    """Hands out `series-1`, `series-2`, …, the same name for the same series."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._known: dict[int, str] = defaultdict(self.new)  # by hash: no identifier of a DICOM series is kept

    def new(self) -> str:
        """A name that no other volume has."""
        return f"series-{next(self._numbers)}"

    def of(self, uid: str) -> str:
        """The name of a DICOM series."""
        return self._known[hash(uid)]


@dataclass(frozen=True)
class ReadContext:
    """One file to read, and how."""

    stream: BinaryIO
    """Seekable, at its start."""
    source: str
    """File name as shown in results."""
    plane: Plane = "axial"
    """Of the slices of NIfTI volumes."""
    limits: ReadLimits = field(default_factory=ReadLimits)
    series: SeriesNames = field(default_factory=SeriesNames)
    """Shared by all files of one job."""
    skipped: Skipped | None = None
    """Counts the files of a zip that are no pictures; if None, they are errors."""
    volume: int | None = None
    """Which volume of a file or series of several is read, from 1; by default the first of a NIfTI file, and all of
    a DICOM series."""
    chosen: Collection[tuple[str, int | None]] | None = None
    """Source and index of the DICOM images to read; None for all."""
    survey: bool = False
    """Read headers only: DICOM images without pixels, and nothing of other formats."""


def fit_square(picture: npt.NDArray[np.uint8], spacing: tuple[float, float] | None) -> Pixels:
    """Resize a slice to the model's input size; one of known pixel spacing is padded to a square, not stretched.

    The study stretches its images to a square. Nearly all of them are square heads, so a slice of 256 x 120 mm
    resembles them more with black at its sides than stretched.

    Parameters
    ----------
    picture
        uint8 [rows, columns] or [rows, columns, 3].
    spacing
        Distance between rows and between columns, positive, in any unit, as `pixels.plausible_spacing` returns it;
        None if unknown: the picture is stretched to a square, as in the study.

    Returns
    -------
    pixels
        uint8 [224, 224, 3], RGB, centred on black; antialiased bilinear as in the study.
    """
    down, across = spacing or (1 / picture.shape[0], 1 / picture.shape[1])
    height, width = picture.shape[0] * down, picture.shape[1] * across
    rows, columns = (max(1, round(SIZE * side / max(height, width))) for side in (height, width))
    image = Image.fromarray(picture).resize((columns, rows), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (SIZE, SIZE))
    canvas.paste(image.convert("RGB"), ((SIZE - columns) // 2, (SIZE - rows) // 2))
    return np.array(canvas)
