"""A picture of any depth and with any transparency → grey or RGB of 8 bits.

Pictures of 8 bits keep their values. Deeper ones are scaled by the percentiles that DICOM and NIfTI get, so that a few
hot pixels do not blacken the rest. What is transparent lies on black, as around a head.
"""

import sys
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from tumorlens.core.errors import ImageError
from tumorlens.readers.scaling import Values, blocks, contrast_range, to_uint8

_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_BITS, _PHOTOMETRIC = 258, 262  # tags of a TIFF
_NATIVE = sys.byteorder[0].upper()  # L or B
_SWAPPED = {"L": "B", "B": "L"}


def eight_bits(image: ImageFile.ImageFile) -> Image.Image:
    """The current page of an opened image as L or RGB, at its own size.

    Raises
    ------
    ImageError
        None of its values is a number.
    """
    values = _deep_colours(image)
    image.load()
    if values is None and image.mode in _DEEP_GREY:
        values = np.asarray(image)[..., None]
    if values is not None:
        return _scaled(values, image)
    visible = image.convert("RGBA") if image.has_transparency_data else None
    if visible is None or not visible.getchannel("A").getbbox():  # some programs leave the opacity at 0 everywhere
        return image if image.mode == "L" else image.convert("RGB")
    on_black = Image.new("RGB", image.size)
    on_black.paste(visible, mask=visible.getchannel("A"))
    return on_black


def _scaled(values: Values, image: Image.Image) -> Image.Image:
    """L or RGB of values [rows, columns, bands]; a second or fourth band is opacity."""
    clear, opacity, opaque = image.info.get("transparency"), None, 1
    if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
        values = -values.astype(np.float64)  # white is zero, which Pillow applies to 8 bits only
    if values.shape[2] in (2, 4):
        values, opacity, opaque = values[..., :-1], values[..., -1:], 65535
    elif clear is not None:
        opacity = (values != clear).any(axis=2, keepdims=True)
    if opacity is not None and not opacity.any():
        opacity = None  # unused
    if not np.isfinite(values).any():
        raise ImageError("holds values that are no numbers", cure="Save it with whole numbers.")
    seen = values if opacity is None else values[opacity[..., 0] > 0]
    picture = to_uint8(values, *contrast_range(seen))
    if opacity is not None:
        for rows in blocks(picture):
            picture[rows] = np.rint(picture[rows] * (opacity[rows] / opaque))
    return Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)


def _deep_colours(image: ImageFile.ImageFile) -> Values | None:
    """uint16 [rows, columns, bands] of a PNG or TIFF of 16 bits per colour; None of any other picture.

    Pillow decodes the high bytes only: here also the low ones, as high ones of the other byte order.
    """
    raw = [tile.args if isinstance(tile.args, str) else tile.args[0] for tile in image.tile if tile.args]
    tags: Any = getattr(image, "tag_v2", {})
    deep = set(tags.get(_BITS, ())) == {16} or (image.format == "PNG" and raw[:1] and raw[0].endswith(";16B"))
    if not deep or image.mode not in ("RGB", "RGBA") or raw[0].startswith("RGBa"):
        return None
    order = _NATIVE if raw[0].endswith("N") else "L" if image.format == "TIFF" and tags.prefix == b"II" else "B"
    if raw[0] == "LA;16B":  # four bytes per pixel, as RGBA has
        grey, low, alpha, low_alpha = np.moveaxis(_decoded_as(image, "RGBA"), 2, 0)
        return np.stack([grey << 8 | low, alpha << 8 | low_alpha], axis=2)
    high, low = (_decoded_as(image, "{};16" + half) for half in (order, _SWAPPED[order]))
    high <<= 8
    high |= low
    return high


def _decoded_as(image: ImageFile.ImageFile, raw_mode: str) -> Values:
    """uint16 [rows, columns, bands] of the current page, decoded by another raw mode of Pillow ({}: the bands)."""
    file: Any = image.fp
    at = file.tell()
    file.seek(0)
    with Image.open(file, formats=[str(image.format)]) as again:
        again.seek(image.tell())
        for i, tile in enumerate(again.tile):
            first, *rest = [tile.args] if isinstance(tile.args, str) else tile.args or ()
            mode = raw_mode.format(first.split(";")[0])
            again.tile[i] = tile._replace(args=(mode, *rest) if rest else mode)
        values = np.asarray(again).astype(np.uint16)
    file.seek(at)
    return values
