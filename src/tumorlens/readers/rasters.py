"""JPEG, PNG, TIFF, BMP and WebP → a slice for each page, as `read_image` reads them.

libtiff, which Pillow uses for compressed TIFF, also prints its own line about a damaged page to standard error; there
is no public way to silence it.
"""

from collections.abc import Iterator

from PIL import Image

from tumorlens.core.errors import ImageError
from tumorlens.readers.codestreams import check_jpeg
from tumorlens.readers.metadata import without_metadata
from tumorlens.readers.pixels import FORMATS, decoded, image_errors, resized, suppress_warnings
from tumorlens.readers.tiff_limits import check_tiff
from tumorlens.readers.types import Metadata, ReadContext, Slice, Unreadable


def read_raster(context: ReadContext) -> Iterator[Slice | Unreadable]:
    """The picture in a file, or the pages of a TIFF.

    Of an animated PNG or WebP, and of a JPEG with previews, the first picture is read.

    Raises
    ------
    ImageError
        Nothing in the file can be used. One damaged page of several is an Unreadable instead.
    """
    limits = context.limits
    with image_errors(limits.pixels):
        check_jpeg(context.stream)
        check_tiff(context.stream, limits)
        plain, exif = without_metadata(context.stream)
        image = Image.open(plain, formats=FORMATS)
    with image:
        pages = _count_pages(image, limits.frames)
        series = context.series.new() if pages > 1 else None
        for page in range(pages):
            try:
                with image_errors(limits.pixels):
                    image.seek(page)
                    picture, header = decoded(image, limits.pixels, exif)
                    pixels = resized(picture)
            except ImageError as error:
                if pages == 1:
                    raise
                yield Unreadable(context.source, page, f"page {page + 1} {error.what}", error.cure, series)
                continue
            metadata: Metadata = {
                "format": header.format,
                "width": header.width,
                "height": header.height,
            }
            index, count = (page, pages) if pages > 1 else (None, None)
            yield Slice(context.source, index, count, series, pixels, metadata)


def _count_pages(image: Image.Image, most: int) -> int:
    """Pages of the file; counting ends with a damaged one, whose error is raised when it is read."""
    if image.format != "TIFF":
        return 1
    # One by one: Pillow miscounts after a leap.
    for page in range(1, most + 1):
        try:
            with suppress_warnings():
                image.seek(page)
        except EOFError:
            return page
        except Exception:
            return page + 1
    raise ImageError(f"has more pages than the limit of {most:,}", cure="Split it.")
