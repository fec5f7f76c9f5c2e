"""One file of a class folder → one image: pictures as `pixels` reads them, DICOM of one slice as `predict` shows it."""

from itertools import islice
from pathlib import Path

from PIL import Image

from tumorlens.core.errors import ImageError
from tumorlens.readers.formats import read_stream
from tumorlens.readers.pixels import SIZE, SUFFIXES, ImageHeader, Pixels, decode, grey_band, resized
from tumorlens.readers.signatures import HEADER, is_dicom
from tumorlens.readers.types import ReadContext, Unreadable


def read_single(path: Path, size: int = SIZE) -> tuple[Pixels, ImageHeader]:
    """`pixels.read_image` for a picture or a DICOM file of one slice: uint8 [size, size, 3], RGB, and its header.

    Raises
    ------
    ImageError
        As `decode_single`.
    """
    image, header = decode_single(path)
    return resized(image, size), header


def decode_single(path: Path) -> tuple[Image.Image, ImageHeader]:
    """Decode a picture at its own size, or a DICOM file of one slice at 224 x 224 pixels, padded to a square.

    Raises
    ------
    ImageError
        As `pixels.decode`; or the DICOM file cannot be read, or holds several frames.
    """
    if path.suffix.lower() in SUFFIXES or not is_dicom(_head(path)):
        return decode(path)
    with path.open("rb") as file:
        first, *more = islice(read_stream(ReadContext(file, path.name)), 2)
    if isinstance(first, Unreadable):
        raise ImageError(first.reason, cure=first.cure)
    if more:
        raise ImageError("DICOM of several frames", cure="Save the frames that show the class as single files.")
    image = Image.fromarray(first.pixels)
    width, height = int(first.metadata["width"]), int(first.metadata["height"])
    return grey_band(image) or image, ImageHeader(width, height, image.mode, "DICOM", "")


def _head(path: Path) -> bytes:
    try:
        if path.is_file():  # opening a pipe would wait for ever
            with path.open("rb") as file:
                return file.read(HEADER)
    except OSError:
        pass  # for which `decode` gives the reason
    return b""
