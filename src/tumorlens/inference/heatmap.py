"""Pictures: a heatmap over its slice, with the prediction written below.

The colours run from dark violet over green to bright yellow along a path in OKLab (Björn Ottosson, "A perceptual
color space for image processing", 2020), cut into 255 steps of equal length there, so that equal differences of
heat look equal. Lightness rises all the way, so the order is visible to colour-blind readers and in grey print.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from tumorlens.readers.pixels import SIZE, Pixels

HeatArray = npt.NDArray[np.float32]

#: Colours for heat from 0 to 1: 256 times RRGGBB. tests/inference/test_heatmap.py derives them.
_COLOURS = bytes.fromhex(
    "321556331657331858331959331a5a331b5b331c5c331d5d331e5e331f5f332060332161322262322363322464322565322666322767"
    "322868322969322a6a322b6b312c6b312d6c312e6d312f6e31306f3031703032713033723034722f35732f36742f38752f39762e3a77"
    "2e3b772e3c782d3d792d3e7a2d3f7a2c407b2c417c2c427d2b437d2b447e2a457f2a467f2a4780294881294981284a82284b83274c83"
    "274d84264e84264f8525508625518624528724538723548823568822578921588921598a205a8a205b8b1f5c8b1f5d8c1e5e8c1d5f8d"
    "1d608d1c618e1c628e1b638e1b648f1a658f1a6690196790196890186991186a91176b91176c92176d92166e92166f93167093167193"
    "167294157394157494157594167695167795167895167995167a96177b96177c96187d96187e96197f971a80971a81971b82971c8397"
    "1d84971e85981f8698208798218898228998238a98248b98258c99268d99288d99298e992a8f992b90992d91992d92992d939a2d949a"
    "2c959a2c969a2c979a2c989b2c999b2c9a9b2d9b9b2d9c9b2d9d9b2d9e9b2d9f9b2ea09b2ea19c2fa29c2fa39c30a49c30a59c31a69c"
    "32a79b32a89b33a99b34aa9b35ab9b36ac9b37ad9b38ae9b39af9b3ab09a3bb19a3cb29a3db29a3eb39a40b49941b59942b69944b798"
    "45b89846b99848ba9749ba974bbb974cbc964ebd964fbe9651bf9552bf9554c09456c19457c29459c3935bc4935cc4925ec59260c691"
    "62c79163c79065c88f67c98f69ca8e6bca8e6ccb8d6ecc8d70cd8c72cd8b74ce8b76cf8a78d0897ad0897bd1887dd2887fd28781d386"
    "83d48585d48587d58489d5838bd6838dd7828fd78191d88093d98095d97f97da7e99da7d9bdb7d9ddb7c9fdc7ba1dd7aa3dd79a5de79"
    "a7de78a9df77abdf76aee075b0e075b2e174b4e173b6e272b8e271bae370bce370bee46fc0e46ec2e46dc4e56cc6e56bc9e66bcbe66a"
    "cde669cfe768d1e767d3e866d5e866d7e865d9e964dbe963dee962e0ea62e2ea61e4ea60e6eb5fe8eb5eeaeb5eecec5deeec5cf0ec5c"
    "f2ed5bf4ed5af7ed5af9ed59"
)
_SCALE = 2  # of the pictures, so that text is legible beside a slice
_GAP, _BAR, _FONT = 8, 12, 16  # pixels
_TICKS, _MARGIN = (1.0, 0.5, 0.0), 32  # labels of the colour scale, and their width in pixels


def colormap() -> Pixels:
    """Colours for heat from 0 to 1, uint8 [256, 3], RGB."""
    return np.frombuffer(_COLOURS, np.uint8).reshape(256, 3)


def class_heatmap(heatmap: HeatArray, label: int, against: int | None = None) -> HeatArray:
    """The evidence for a class at each place.

    Parameters
    ----------
    heatmap
        float32 [K, 7, 7], class activation maps of one image, signed.
    label, against
        Index of the class, and of another one whose map is subtracted first, for the evidence for one over the
        other.

    Returns
    -------
    array
        float32 [224, 224], 0 to 1: negative evidence is set to 0 (as in Grad-CAM; Selvaraju et al., ICCV 2017, eq.
        2), the map upsampled bilinearly and divided by its maximum; all 0 if there is no positive evidence.
    """
    chosen = heatmap[label] if against is None else heatmap[label] - heatmap[against]
    heat = upsample(np.maximum(chosen, 0))
    top = float(heat.max())
    return heat / top if top > 0 else heat


def upsample(heat: npt.NDArray[np.floating], size: int = SIZE) -> HeatArray:
    """float32 [size, size], bilinear between the centres of the cells."""
    image = Image.fromarray(np.ascontiguousarray(heat, np.float32))
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR))


def overlay(pixels: Pixels, heat: HeatArray, opacity: float = 0.6) -> Pixels:
    """The slice under its heatmap: a pixel of heat h gets its colour with the opacity times h.

    Parameters
    ----------
    pixels
        uint8 [224, 224, 3].
    heat
        float32 [224, 224], 0 to 1.
    opacity
        0 to 1.
    """
    cover = opacity * heat[..., None]
    colour = colormap()[(heat * 255).round().astype(np.uint8)]
    return (pixels * (1 - cover) + colour * cover).round().astype(np.uint8)


def picture(pixels: Pixels, heat: HeatArray | None, caption: Sequence[str], opacity: float = 0.6) -> Image.Image:
    """The slice, its overlay and the colour scale side by side, with lines of text below.

    Parameters
    ----------
    pixels
        uint8 [224, 224, 3].
    heat
        float32 [224, 224], 0 to 1; None for the slice only.
    caption
        Lines of text.
    """
    side = SIZE * _SCALE
    font = ImageFont.load_default(size=_FONT)
    width = side if heat is None else 2 * side + 2 * _GAP + _BAR + _MARGIN
    canvas = Image.new("RGB", (width, side + 2 * _GAP + (_FONT + 6) * len(caption)))
    canvas.paste(_large(pixels), (0, 0))
    pen = ImageDraw.Draw(canvas)
    if heat is not None:
        canvas.paste(_large(overlay(pixels, heat, opacity)), (side + _GAP, 0))
        ramp = colormap()[np.linspace(255, 0, side).round().astype(int)]  # [side, 3], hottest on top
        left = width - _MARGIN - _BAR
        canvas.paste(Image.fromarray(np.repeat(ramp[:, None], _BAR, 1)), (left, 0))
        for tick in _TICKS:
            y = (side - 1) * (1 - tick)
            pen.line([(left + _BAR, y), (left + _BAR + 3, y)], "white")
            anchor = {1.0: "la", 0.0: "ld"}.get(tick, "lm")  # the outer ones inside the picture
            pen.text((left + _BAR + 6, y), f"{tick:g}", "white", font, anchor=anchor)
    for i, text in enumerate(caption):
        pen.text((_GAP, side + _GAP + i * (_FONT + 6)), _fitting(text, font, width - 2 * _GAP), "white", font)
    return canvas


def _large(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels).resize((SIZE * _SCALE, SIZE * _SCALE), Image.Resampling.BICUBIC)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, shortened to the width of the picture."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
