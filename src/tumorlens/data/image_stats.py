"""The record of an image file: all that the index and the audit need, from decoding it once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tumorlens.readers.pixels import SIZE, THUMBNAIL, Pixels, grey_band
from tumorlens.readers.single import decode_single

_COLOUR_STEP = 20  # grey levels between channels; JPEG's chroma noise stays below
_BLACK = 10  # grey levels; JPEG's noise around a black border stays below
_BORDER = 14  # pixels of 224 on each side


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One usable image of a data set, and what the index and the audit need to know about its file."""

    path: str
    """Relative to the data set's root, with forward slashes."""
    sha256: str
    """Of the file's bytes, hex."""
    bytes: int
    width: int
    """Pixels, as stored."""
    height: int
    """Pixels, as stored."""
    mode: str
    """Pillow's mode as stored: L, RGB, RGBA, P, ..."""
    tables: str
    """Hash of the JPEG quantisation tables, hex; empty for other formats."""
    colour: float
    """Share of pixels, 0 to 1, that are visibly not grey (channels differ by over 20 levels)."""
    brightness: float
    """Mean grey level, 0 to 255."""
    border: float
    """Share of black pixels (at most 10), 0 to 1, in the frame of 1/16 of each side."""
    pixels: str
    """SHA-256 of the pixels and their size, hex: equal for pixel-identical images. Of a grey image (see
    `readers.pixels.decode`) one channel is hashed, however the file stores it."""
    label: str
    part: str
    """`Training`, `Validation` or `Testing`: the folder that the file lies in."""
    split: str = ""
    """`train`, `validation` or `test`; empty if the protocol leaves the image out."""
    group: str = ""
    """Images of one group are near-duplicates or of one patient."""
    twin: str = ""
    """Path of the most similar other image of the splits train and validation."""
    similarity: float | None = None
    """Cosine of both thumbnails, -1 to 1, in the orientation that fits best."""
    transformation: str = ""
    """That orientation: `direct`, `mirrored`, ..."""
    patient: str = ""
    """Patient, if the user names them."""


def measure_image(path: Path) -> tuple[ImageRecord, Pixels]:
    """Decode a file; returns its record, still without place, hash and label, and its thumbnail, grey, uint8 [32, 32].

    Raises
    ------
    ImageError
        The file cannot be used; the message reads well after the file's name.
    """
    image, facts = decode_single(path)
    band = grey_band(image)
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode() + (band or image).tobytes())
    small = (band or image).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    grey = small.convert("L")
    levels = np.asarray(grey)
    black = levels <= _BLACK
    of_frame = np.count_nonzero(black) - np.count_nonzero(black[_BORDER:-_BORDER, _BORDER:-_BORDER])
    record = ImageRecord(
        path="",
        sha256="",
        bytes=path.stat().st_size,
        width=facts.width,
        height=facts.height,
        mode=facts.mode,
        tables=facts.tables,
        colour=0.0 if band else colour_share(np.asarray(small)),
        brightness=round(float(levels.mean()), 3),
        border=round(of_frame / (SIZE**2 - (SIZE - 2 * _BORDER) ** 2), 4),
        pixels=digest.hexdigest(),
        label="",
        part="",
    )
    return record, np.array(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR))


def colour_share(pixels: Pixels) -> float:
    """Share of pixels (0 to 1) of a uint8 [h, w, 3] image that are visibly not grey."""
    red, green, blue = np.moveaxis(pixels, 2, 0)
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    return float(np.mean(high - low > _COLOUR_STEP))
