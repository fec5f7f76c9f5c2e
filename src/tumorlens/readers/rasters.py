"""JPEG, PNG, TIFF, BMP and WebP, stretched to a square as the study does. Of a TIFF every page is read."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import BinaryIO

from PIL import Image, _imaging

from tumorlens.core.errors import ImageError
from tumorlens.readers.pixels import (
    FORMATS,
    check_jpeg,
    decoded,
    explained,
    resized,
)
from tumorlens.readers.tiff_limits import check_tiff
from tumorlens.readers.types import (
    ReadLimits,
    SeriesNames,
    Slice,
    Unreadable,
)


def read_raster(stream: BinaryIO, source: str, limits: ReadLimits, names: SeriesNames) -> Iterator[Slice | Unreadable]:
    """The picture in a file, or the pages of a TIFF.

    Of an animated PNG or WebP, and of a JPEG with previews, the first picture is taken.

    Raises
    ------
    ImageError
        Nothing in the file can be used. A damaged page among others is Unreadable.
    """
    with explained(limits.pixels):
        check_jpeg(stream)
        check_tiff(stream, limits)
        image = Image.open(stream, formats=FORMATS)
    if image.format == "TIFF":
        _hush_libtiff()
    with image:
        pages = _pages(image, limits)
        series = names.new() if pages > 1 else None
        for page in range(pages):
            try:
                with explained(limits.pixels):
                    if pages > 1:
                        image.seek(page)
                    picture, facts = decoded(image, limits.pixels, keep_grey=True)
                    pixels = resized(picture)
            except ImageError as error:
                if pages == 1:
                    raise
                yield Unreadable(source, page, f"page {page + 1} {error.what}", error.cure, series)
                continue
            about: dict[str, str | int | float] = {
                "format": "JPEG" if facts.format == "MPO" else facts.format,
                "width": facts.width,
                "height": facts.height,
            }
            index, count = (page, pages) if pages > 1 else (None, None)
            yield Slice(source, index, count, series, pixels, about)


@cache
def _hush_libtiff() -> None:
    """Keep libtiff from printing why it fails, which Pillow raises too; no stream is touched, so threads may print."""
    # A Pillow that hides its libtiff is left as it is.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def _pages(image: Image.Image, limits: ReadLimits) -> int:
    """Pages that the file has; one that is damaged is the last, and gives its reason when its turn comes."""
    if image.format != "TIFF":
        return 1
    # One by one: Pillow miscounts after a leap.
    for page in range(1, limits.frames + 1):
        try:
            with explained():
                try:
                    image.seek(page)
                except EOFError:
                    return page
        except ImageError:
            return page + 1
    raise ImageError(f"has more pages than the limit of {limits.frames:,}", cure="Split it.")
