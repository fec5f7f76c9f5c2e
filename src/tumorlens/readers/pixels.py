"""A file → uint8 [224, 224, 3], and the preprocessing that every model of ours shares.

Preprocessing is the published one: RGB, Resize((224, 224)) with Pillow's antialiased bilinear
filter (what torchvision does to a PIL image), scale to [0, 1], Normalize(mean 0.5, std 0.5).
The aspect ratio is not kept, as in the study that we reproduce.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from tumorlens.core.cpu import usable_cores
from tumorlens.core.errors import ImageError

SIZE = 224  # pixels a side
THUMBNAIL = 32  # pixels a side; what near-duplicates are compared on
MEAN = 0.5
STD = 0.5
MAX_PIXELS = 64_000_000  # 8,000 x 8,000; far above any slice, far below what exhausts memory
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
READERS = min(6, usable_cores())  # threads that decode; on 16 cores more only wait for the interpreter
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")  # not whatever Pillow knows: EPS would start another program

#: The preprocessing as recorded beside every weights file and in every cache's key.
PREPROCESSING = {
    "input": "RGB",
    "size": [SIZE, SIZE],
    "resize": "bilinear, antialiased, aspect not kept",
    "scale": "1/255",
    "mean": [MEAN] * 3,
    "std": [STD] * 3,
}

_PHOTOMETRIC = 262  # TIFF's tag PhotometricInterpretation
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # of JPEG; 0 is stuffed into data, D0 to D7 restart within it
_SEGMENTS, _SCANS = 10_000, 100
_PIECE = 1 << 14  # bytes
_AT_ONCE = 1 << 24  # bytes

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageFacts:
    """What a file says of itself."""

    width: int
    """Pixels."""
    height: int
    """Pixels."""
    mode: str
    """Pillow's: L, RGB, RGBA, P, ..."""
    format: str
    tables: str
    """JPEG quantisation tables as 8 hex digits of their hash, which tell the encoder; empty for others."""


def read_image(path: Path, size: int = SIZE) -> tuple[Pixels, ImageFacts]:
    """Decode one image file completely and resize it.

    Parameters
    ----------
    path
        JPEG, PNG, BMP, TIFF or WebP file. The content decides, not the suffix.
    size
        Side of the result in pixels.

    Returns
    -------
    pixels
        uint8 [size, size, 3], RGB, 0 to 255.
    facts
        Size, mode and format as stored.

    Raises
    ------
    ImageError
        As `decode` does.
    """
    image, facts = decode(path, keep_grey=True)
    return resized(image, size), facts


def resized(image: Image.Image, size: int = SIZE) -> Pixels:
    """uint8 [size, size, 3] of a decoded image, RGB or L."""
    image = grey_band(image) or image  # nearly all are grey: one channel tells all three
    small = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.array(small if small.mode == "RGB" else Image.merge("RGB", (small,) * 3))  # a copy: torch wants its own


def grey_band(image: Image.Image) -> Image.Image | None:
    """The one channel, L, of a decoded image that is grey all over; None for one with colour."""
    if image.mode == "L":
        return image  # split() would copy it
    bands = image.split()
    return bands[0] if all(band == bands[0] for band in bands[1:]) else None


def decode(path: Path, *, keep_grey: bool = False) -> tuple[Image.Image, ImageFacts]:
    """Decode one image file completely, as RGB at its own size; with `keep_grey` 8-bit grey comes as L.

    A colour JPEG counts as grey where the mean colour of every block is.

    Raises
    ------
    ImageError
        The file is missing, empty, truncated, no image, or of zero or absurd size. The message
        is a reason that reads well after the file's name.
    """
    with explained():
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ImageError("no regular file", cure="Remove it.")
        if found.st_size == 0:
            raise ImageError("empty file (0 bytes)", cure="Download or copy it again.")
        with _opened(path, found.st_size) as file:
            check_jpeg(file)
            with Image.open(file, formats=FORMATS) as image:
                return decoded(image, keep_grey=keep_grey)


def _opened(path: Path, size: int) -> BinaryIO:
    """A file to read several times over: usual ones in memory, where that costs nothing."""
    return io.BytesIO(path.read_bytes()) if size <= _AT_ONCE else path.open("rb")


def decoded(
    image: Image.Image, max_pixels: int = MAX_PIXELS, *, keep_grey: bool = False
) -> tuple[Image.Image, ImageFacts]:
    """The picture that an opened file stands at, decoded as RGB at its own size; call it under `explained`.

    Raises
    ------
    ImageError
        It is smaller than 8 x 8 or larger than `max_pixels`, which the header tells before anything is decoded.
    """
    facts = ImageFacts(image.width, image.height, image.mode, image.format or "?", _tables(image))
    if image.width < 8 or image.height < 8:
        raise ImageError(f"only {image.width}x{image.height} pixels", cure="Leave it out.")
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"{image.width}x{image.height} pixels, over the limit of {max_pixels:,}", cure="Scale it down."
        )
    # No draft at a smaller size: it would change the pixels that the published pipeline sees.
    if keep_grey and image.mode == "RGB" and isinstance(image, JpegImageFile) and _without_chroma(image):
        image.draft("L", image.size)  # brightness alone, unchanged, in half the time
    if keep_grey and image.mode == "L":
        image.load()
        return image, facts
    return to_rgb(image), facts


def check_jpeg(file: BinaryIO) -> None:
    """Refuse a JPEG of more segments or scans than any picture needs; a file that is none passes.

    A scan of a progressive JPEG takes some 40 bytes, and as long to decode as the picture is large.

    Parameters
    ----------
    file
        At its start, where it is left.

    Raises
    ------
    ImageError
        The message is a reason that reads well after the file's name.
    """
    jpeg = file.read(2) == b"\xff\xd8"
    at, segments, scans = 2, 0, 0
    while jpeg:
        file.seek(at)
        piece = file.read(_PIECE)
        found = _MARKER.search(piece)
        if found is None:
            if len(piece) < 2:  # cut off: the decoder will tell
                break
            at += len(piece) - 1  # a marker may lie across
            continue
        at += found.end()
        marker = piece[found.end() - 1]
        if marker == 0xD9 and scans:  # what follows, such as a phone's video, is not decoded
            break
        segments, scans = segments + 1, scans + (marker == 0xDA)
        if segments > _SEGMENTS or scans > _SCANS:
            what = f"over {_SCANS} scans" if scans > _SCANS else f"over {_SEGMENTS:,} segments"
            raise needless("JPEG", what)
        if marker >= 0xC0 and marker not in (0xD8, 0xD9):  # the others have no content
            file.seek(at)
            at += max(2, int.from_bytes(file.read(2), "big"))
    file.seek(0)


def needless(kind: str, what: str) -> ImageError:
    """The error for a file whose headers ask for more than any picture does."""
    return ImageError(f"a {kind} of {what}, which no picture needs", cure="Save it again from a viewer.")


def _without_chroma(image: JpegImageFile) -> bool:
    """Whether an opened colour JPEG is grey: its blocks' means are, decoded at an eighth of its size."""
    file = image.fp
    if file is None:  # decoded already
        return False
    place = file.tell()
    file.seek(0)
    small = Image.open(file, formats=("JPEG",))
    small.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
    bands = small.split()
    file.seek(place)
    return bands[0] == bands[1] == bands[2]


@contextmanager
def explained(max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Turn whatever Pillow raises on a bad file into an ImageError, and keep its warnings off the screen.

    Raises
    ------
    ImageError
        The message is a reason that reads well after the file's name.
    """
    try:
        with hushed():
            yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image", cure="Remove it or convert it to JPEG or PNG.") from None
    except FileNotFoundError:
        raise ImageError("no such file", cure="Check the path.") from None
    except PermissionError:
        raise ImageError("may not be read", cure="Change the file's permissions.") from None
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))  # Pillow tells the product alone
        many = f"{int(count.group()):,} pixels" if count else "absurd size"
        raise ImageError(f"{many}, over the limit of {max_pixels:,}", cure="Scale it down.") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, MemoryError) as error:
        # Pillow's decoders raise all of these on damaged content.
        reason = str(error) or type(error).__name__
        raise ImageError(f"cannot be decoded ({reason})", cure="Download or copy it again.") from None


@contextmanager
def hushed() -> Iterator[None]:
    """Keep Pillow's warnings off the screen; around threads that decode, too, as each puts back what it found."""
    with warnings.catch_warnings():
        # Pillow warns of a bomb from 89 million pixels on; our own limit is stricter.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # Corrupt EXIF and palette transparency do not touch the pixels we use.
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        yield


def _tables(image: Image.Image) -> str:
    tables = getattr(image, "quantization", None)
    return hashlib.sha256(repr(sorted(tables.items())).encode()).hexdigest()[:8] if tables else ""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert as torchvision's ImageFolder does, but keep the range of 16-bit greyscale.

    Pillow's own conversion clips 16-bit values at 255, which turns such a slice white.
    """
    if image.mode in ("I;16", "I;16L", "I;16B", "I", "F"):
        values = np.array(image, dtype=np.float32)
        low, high = float(values.min()), float(values.max())
        if not high - low < 3e38:  # nor is NaN; float32 ends there
            raise ImageError("holds values that are no numbers", cure="Save it with whole numbers.")
        scale = 255.0 / (high - low) if high > low else 0.0
        # In place: such a picture may be large.
        if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
            np.subtract(high, values, out=values)  # white is zero, which Pillow heeds for 8 bits alone
        else:
            values -= low
        values *= scale
        image = Image.fromarray(np.rint(values, out=values).astype(np.uint8))
    return image.convert("RGB")


logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it says of a damaged file, the error says too
ImageFile.LOAD_TRUNCATED_IMAGES = False  # a half image is an error, whatever other libraries set
