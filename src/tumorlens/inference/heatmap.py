"""Pictures: a heatmap over its slice, with the prediction written below.

The colours run from dark violet over green to bright yellow along a path in OKLab (Björn Ottosson, "A perceptual
color space for image processing", 2020), cut into 255 steps of equal length there, so that equal differences of
heat look equal. Lightness rises all the way, so the order is visible to colour-blind readers and in grey print.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from tumorlens.core.errors import ConfigError
from tumorlens.readers.pixels import SIZE, Pixels

HeatArray = npt.NDArray[np.float32]

_LIGHTNESS = (0.28, 0.93)
_HUE = (300.0, 105.0)  # degrees, violet to yellow
_CHROMA = (0.11, 0.09, 0.165)  # at start, middle and end: inside sRGB everywhere
_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_TO_RGB = np.array([[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
                    [-0.0041960863, -0.7034186147, 1.7076147010]])  # fmt: skip
_SCALE = 2  # of the pictures, so that text is legible beside a slice
_GAP, _BAR, _FONT = 8, 12, 16  # pixels
_TICKS, _MARGIN = (1.0, 0.5, 0.0), 32  # labels of the colour scale, and their width in pixels


@lru_cache(maxsize=1)
def colormap() -> Pixels:
    """Colours for heat from 0 to 1, uint8 [256, 3], RGB."""
    t = np.linspace(0, 1, 4096)
    chroma = np.interp(t, (0, 0.5, 1), _CHROMA)
    hue = np.radians(_HUE[0] + t * (_HUE[1] - _HUE[0]))
    lab = np.stack([_LIGHTNESS[0] + t * (_LIGHTNESS[1] - _LIGHTNESS[0]), chroma * np.cos(hue), chroma * np.sin(hue)], 1)
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(lab, axis=0), axis=1))])
    even = np.stack([np.interp(np.linspace(0, along[-1], 256), along, lab[:, i]) for i in range(3)], 1)
    linear = np.clip((even @ _TO_LMS.T) ** 3 @ _TO_RGB.T, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    table: Pixels = (srgb * 255).round().astype(np.uint8)
    return table


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
    check_opacity(opacity)
    cover = opacity * heat[..., None]
    colour = colormap()[(heat * 255).round().astype(np.uint8)]
    return (pixels * (1 - cover) + colour * cover).round().astype(np.uint8)


def check_opacity(opacity: float) -> None:
    """Raise ConfigError unless it is from 0 to 1."""
    if not 0 <= opacity <= 1:
        raise ConfigError(f"--opacity {opacity} is out of range.", cure="Use a number from 0 to 1, such as 0.6.")


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
