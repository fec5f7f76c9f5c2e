"""An image file → uint8 [224, 224, 3], and the preprocessing that all our models share.

Preprocessing is the published one: RGB, Resize((224, 224)) with Pillow's antialiased bilinear filter (as torchvision
resizes a PIL image), scale to [0, 1], Normalize(mean 0.5, std 0.5). The aspect ratio is not kept, as in the study that
we reproduce.
"""

import hashlib
import io
import logging
import math
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from tumorlens.core.cpu import usable_cores
from tumorlens.core.errors import ImageError
from tumorlens.readers.codestreams import check_jpeg
from tumorlens.readers.depth import eight_bits
from tumorlens.readers.metadata import orientation, without_metadata

SIZE = 224  # pixels per side
THUMBNAIL = 32  # pixels per side; near-duplicates are found on thumbnails of this size
MEAN = 0.5
STD = 0.5
MAX_PIXELS = 64_000_000  # 8,000 x 8,000; far above any slice, far below what exhausts memory
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp"})
READERS = min(6, usable_cores())  # decoding threads; more of them, tried on 16 cores, only wait for Python's lock
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")  # not all that Pillow reads: EPS would start Ghostscript

#: The preprocessing, as recorded with every weights file and in the key of every cache.
PREPROCESSING = {
    "input": "RGB",
    "size": [SIZE, SIZE],
    "resize": "bilinear, antialiased, aspect not kept",
    "scale": "1/255",
    "mean": [MEAN] * 3,
    "std": [STD] * 3,
}

#: What turns a picture upright, by its orientation in EXIF; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_LONGEST = 3.0  # long over short side of a picture of known pixel spacing
_IN_MEMORY = 1 << 24  # bytes of the largest file that is read into memory at once

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageHeader:
    """What the header of an image file declares."""

    width: int
    """Pixels."""
    height: int
    """Pixels."""
    mode: str
    """Pillow's: L, RGB, RGBA, P, ..."""
    format: str
    tables: str
    """First 8 hex digits of the SHA-256 of the JPEG quantization tables, which identify the encoder; else empty."""


def read_image(path: Path, size: int = SIZE) -> tuple[Pixels, ImageHeader]:
    """Decode one image file completely and resize it.

    Parameters
    ----------
    path
        JPEG, PNG, BMP, TIFF or WebP file, recognized by its content, not its suffix.
    size
        Pixels per side of the result.

    Returns
    -------
    pixels
        uint8 [size, size, 3], RGB, 0 to 255.
    header
        Size, mode and format as stored.

    Raises
    ------
    ImageError
        As `decode`.
    """
    image, header = decode(path)
    return resized(image, size), header


def resized(image: Image.Image, size: int = SIZE) -> Pixels:
    """uint8 [size, size, 3] of a decoded image, RGB or L."""
    image = grey_band(image) or image  # nearly all are grey: resizing one channel is enough
    small = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.array(small if small.mode == "RGB" else Image.merge("RGB", (small,) * 3))  # writable, as torch needs


def grey_band(image: Image.Image) -> Image.Image | None:
    """The single channel, mode L, of a decoded image without colour; None if any pixel has colour."""
    if image.mode == "L":
        return image  # split() would copy it
    bands = image.split()
    return bands[0] if all(band == bands[0] for band in bands[1:]) else None


def plausible_spacing(shape: tuple[int, int], spacing: Sequence[float]) -> tuple[float, float] | None:
    """Distance between rows and between columns, if a picture of this shape can have them; otherwise None.

    Parameters
    ----------
    shape
        Rows and columns, pixels.
    spacing
        As the file records it: between rows, between columns, in any unit. It must be two positive numbers, and may
        make the picture at most three times as long as wide, unless it is stored even longer.
    """
    if len(spacing) != 2 or not all(math.isfinite(step) and step > 0 for step in spacing):
        return None
    (rows, columns), (down, across) = shape, spacing
    stored, shown = rows / columns, rows * down / (columns * across)
    longest = max(_LONGEST, stored, 1 / stored)
    return (down, across) if 1 / longest <= shown * 1.001 and shown <= longest * 1.001 else None


def decode(path: Path) -> tuple[Image.Image, ImageHeader]:
    """Decode one image file completely, upright and at its own size: 8-bit grey as L, everything else as RGB.

    A colour JPEG counts as grey if the mean colour of every 8 x 8 block is grey.

    Raises
    ------
    ImageError
        The file is missing, empty, truncated, not an image, under 8 x 8 pixels or over `MAX_PIXELS`. The message is a
        reason that reads well after the file's name.
    """
    with image_errors():
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ImageError("no regular file", cure="Remove it.")
        if found.st_size == 0:
            raise ImageError("empty file (0 bytes)", cure="Download or copy it again.")
        # Read several times over: from memory unless it is large.
        with io.BytesIO(path.read_bytes()) if found.st_size <= _IN_MEMORY else path.open("rb") as file:
            check_jpeg(file)
            plain, exif = without_metadata(file)
            with Image.open(plain, formats=FORMATS) as image:
                return decoded(image, exif=exif)


def decoded(
    image: ImageFile.ImageFile, max_pixels: int = MAX_PIXELS, exif: bytes = b""
) -> tuple[Image.Image, ImageHeader]:
    """Decode the current page of an opened image as `decode` does; within `image_errors`.

    `exif` is the EXIF block that `without_metadata` has removed from the file.

    Raises
    ------
    ImageError
        By its header it is smaller than 8 x 8 pixels or larger than `max_pixels`.
    """
    tables = repr(sorted(getattr(image, "quantization", {}).items()))
    digest = hashlib.sha256(tables.encode()).hexdigest()[:8] if tables != "[]" else ""
    header = ImageHeader(image.width, image.height, image.mode, image.format or "?", digest)
    if image.width < 8 or image.height < 8:
        raise ImageError(f"only {image.width}x{image.height} pixels", cure="Leave it out.")
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"{image.width}x{image.height} pixels, over the limit of {max_pixels:,}", cure="Scale it down."
        )
    # No draft at a smaller size: the pixels would differ from those of the published pipeline.
    if image.mode == "RGB" and isinstance(image, JpegImageFile) and _without_chroma(image):
        image.draft("L", image.size)  # decodes luminance only, unchanged, in half the time
    picture = eight_bits(image)
    # Pillow turns a TIFF itself; a WebP's EXIF block is left to it.
    turn = _TURNS.get(1 if image.format == "TIFF" else orientation(exif or image.info.get("exif", b"")))
    return picture if turn is None else picture.transpose(turn), header


def _without_chroma(image: JpegImageFile) -> bool:
    """Whether an opened colour JPEG is grey, by the mean of each 8 x 8 block: decoded at an eighth of its size."""
    file: Any = image.fp
    at = file.tell()
    file.seek(0)
    small = Image.open(file, formats=("JPEG",))
    small.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
    bands = small.split()
    file.seek(at)
    return bands[0] == bands[1] == bands[2]


@contextmanager
def image_errors(max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Turn whatever Pillow raises on a bad file into an ImageError, and suppress its warnings.

    Raises
    ------
    ImageError
        The message is a reason that reads well after the file's name.
    """
    try:
        with suppress_warnings():
            yield
    except UnidentifiedImageError:
        raise ImageError("not an image", cure="Remove it or convert it to JPEG or PNG.") from None
    except (FileNotFoundError, PermissionError) as error:
        raise open_error(error) from None
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))  # Pillow reports the product only
        many = f"{int(count.group()):,} pixels" if count else "absurd size"
        raise ImageError(f"{many}, over the limit of {max_pixels:,}", cure="Scale it down.") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, MemoryError) as error:
        # Pillow's decoders raise all of these on damaged content.
        reason = str(error) or type(error).__name__
        raise ImageError(f"cannot be decoded ({reason})", cure="Download or copy it again.") from None


def open_error(error: OSError | ValueError) -> ImageError:
    """Why a path cannot be opened, as an ImageError to raise."""
    if isinstance(error, FileNotFoundError):
        return ImageError("no such file", cure="Check the path.")
    if isinstance(error, PermissionError):
        return ImageError("may not be read", cure="Change its permissions.")
    return ImageError(
        f"cannot be opened ({getattr(error, 'strerror', '') or 'not a usable name'})", cure="Check the path."
    )


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Suppress Pillow's warnings. Enter it around decoding threads too: each restores the filters that it found."""
    with warnings.catch_warnings():
        # Pillow warns of a decompression bomb from 89 million pixels on; our own limit is lower.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # Corrupt EXIF and palette transparency do not affect the pixels that we use.
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        yield


logging.getLogger("PIL").addHandler(logging.NullHandler())  # an error reports the same of a damaged file
ImageFile.LOAD_TRUNCATED_IMAGES = False  # half an image is an error, whatever other libraries set
