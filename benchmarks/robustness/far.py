"""Far families: images that do not look like brain MRI, which a classifier must refuse.

Each is a pure function of a slice, uint8 [224, 224, 3], and a generator; most ignore the slice and draw
everything. A mirrored brain is still a brain and is not among them.
"""

from __future__ import annotations

import string

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from robustness.near import (
    Generator,
    Make,
    head_of,
    to_grey,
    to_pixels,
)
from tumorlens.readers.pixels import SIZE, Pixels

_SHAPE = (SIZE, SIZE)


def _scaled(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """From 0 to 1 by the whole range of each channel."""
    low, high = values.min((0, 1)), values.max((0, 1))
    return np.asarray((values - low) / np.maximum(high - low, 1e-9))


def _power_law(rng: Generator, exponent: float, channels: int) -> npt.NDArray[np.floating]:
    """[224, 224, channels], 0 to 1: noise whose amplitude falls as frequency ** -exponent."""
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None, :])
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.normal(size=(channels, *_SHAPE))) * frequency**-exponent
    return _scaled(np.moveaxis(np.fft.irfft2(spectrum, s=_SHAPE), 0, 2))


# --- for fitting -----------------------------------------------------------------------------------


def white_noise(_: Pixels, rng: Generator) -> Pixels:
    """Grey values of each pixel alone."""
    return to_pixels(rng.random(_SHAPE))


def colour_noise(_: Pixels, rng: Generator) -> Pixels:
    """Colours of blocks of 1 to 16 pixels."""
    block = int(rng.integers(1, 17))
    small = rng.random((SIZE // block + 1, SIZE // block + 1, 3))
    return to_pixels(small.repeat(block, 0).repeat(block, 1)[:SIZE, :SIZE])


def smooth_noise(_: Pixels, rng: Generator) -> Pixels:
    """Noise blurred with an sd of 3 to 12 pixels."""
    return to_pixels(_scaled(ndimage.gaussian_filter(rng.random(_SHAPE), rng.uniform(3, 12))))


def gradient(_: Pixels, rng: Generator) -> Pixels:
    """A ramp in any direction."""
    turn = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[: SIZE * 1.0, : SIZE * 1.0]
    return to_pixels(_scaled(np.cos(turn) * x + np.sin(turn) * y))


def blank(_: Pixels, rng: Generator) -> Pixels:
    """One grey level, with or without a trace of noise."""
    return to_pixels(np.clip(rng.random() + rng.normal(0, rng.choice([0, 0.01]), _SHAPE), 0, 1))


def checker(_: Pixels, rng: Generator) -> Pixels:
    """A chessboard of fields of 8 to 40 pixels, two grey levels."""
    field = int(rng.integers(8, 41))
    place = np.add.outer(np.arange(SIZE) // field, np.arange(SIZE) // field) % 2
    dark, light = np.sort(rng.random(2)).tolist()
    return to_pixels(np.where(place, dark, light))


def blobs(_: Pixels, rng: Generator) -> Pixels:
    """Two to five bright ellipses on black, as parts of a body might lie there."""
    image = Image.new("L", _SHAPE)
    pen = ImageDraw.Draw(image)
    for _i in range(int(rng.integers(2, 6))):
        x, y, a, b = *rng.uniform(30, 194, 2), *rng.uniform(12, 60, 2)
        pen.ellipse((x - a, y - b, x + a, y + b), fill=int(rng.integers(60, 256)))
    grey = ndimage.gaussian_filter(np.asarray(image, np.float32) / 255, 2)
    return to_pixels(grey + rng.normal(0, 0.02, _SHAPE))


def scrambled(image: Pixels, rng: Generator) -> Pixels:
    """A brain slice cut into 16 or 64 tiles in random order."""
    n = int(rng.choice([4, 8]))
    side = SIZE // n
    tiles = image.reshape(n, side, n, side, 3).swapaxes(1, 2).reshape(n * n, side, side, 3)
    mixed = tiles[rng.permutation(n * n)]
    return mixed.reshape(n, n, side, side, 3).swapaxes(1, 2).reshape(SIZE, SIZE, 3)


# --- for judging -----------------------------------------------------------------------------------


def salt_and_pepper(_: Pixels, rng: Generator) -> Pixels:
    """Black and white pixels on grey."""
    values = rng.random(_SHAPE)
    share = rng.uniform(0.1, 0.5)
    return to_pixels(np.where(values < share / 2, 0, np.where(values > 1 - share / 2, 1, rng.random())))


def texture(_: Pixels, rng: Generator) -> Pixels:
    """Noise with the 1/f amplitudes of natural images (Field, JOSA A 4, 1987), grey."""
    return to_pixels(_power_law(rng, rng.uniform(0.8, 1.4), 1)[..., 0])


def photograph_like(_: Pixels, rng: Generator) -> Pixels:
    """Coloured 1/f noise with three to eight flat coloured shapes before it."""
    image = Image.fromarray(to_pixels(_power_law(rng, rng.uniform(1, 1.6), 3)))
    pen = ImageDraw.Draw(image)
    for _i in range(int(rng.integers(3, 9))):
        corners = [tuple(point) for point in rng.integers(0, SIZE, (int(rng.integers(3, 6)), 2)).tolist()]
        pen.polygon(corners, fill=tuple(rng.integers(0, 256, 3).tolist()))
    return np.array(image)


def text(_: Pixels, rng: Generator) -> Pixels:
    """A page of random letters, dark on light or light on dark."""
    dark = bool(rng.random() < 0.5)
    image = Image.new("L", _SHAPE, 0 if dark else 255)
    pen, letters = ImageDraw.Draw(image), np.array(list(string.ascii_letters + "    "))
    font = ImageFont.load_default(size=int(rng.integers(10, 25)))
    for top in range(4, SIZE, 28):
        pen.text((4, top), "".join(rng.choice(letters, 30)), fill=255 if dark else 0, font=font)
    return to_pixels(np.asarray(image, np.float32) / 255)


def drawing(_: Pixels, rng: Generator) -> Pixels:
    """Lines, boxes and circles, dark on light or light on dark."""
    dark = bool(rng.random() < 0.5)
    image = Image.new("L", _SHAPE, 0 if dark else 255)
    pen, ink = ImageDraw.Draw(image), 255 if dark else 0
    for i in range(int(rng.integers(6, 16))):
        x, y = np.sort(rng.integers(0, SIZE, (2, 2)), 1).tolist()
        box = (x[0], y[0], x[1] + 1, y[1] + 1)
        if i % 3:
            (pen.rectangle if i % 3 == 1 else pen.ellipse)(box, outline=ink, width=2)
        else:
            pen.line(box, fill=ink, width=2)
    return to_pixels(np.asarray(image, np.float32) / 255)


def stripes(_: Pixels, rng: Generator) -> Pixels:
    """A sine grating with a period of 6 to 60 pixels."""
    turn, period = rng.uniform(0, np.pi), rng.uniform(6, 60)
    y, x = np.mgrid[: SIZE * 1.0, : SIZE * 1.0]
    return to_pixels(0.5 + 0.5 * np.sin(2 * np.pi * (np.cos(turn) * x + np.sin(turn) * y) / period))


def cells(_: Pixels, rng: Generator) -> Pixels:
    """A mosaic of flat cells around 20 to 120 points, as leaves, stones or tissue under a microscope."""
    seeds = np.zeros(_SHAPE, np.bool_)
    seeds[tuple(rng.integers(0, SIZE, (2, int(rng.integers(20, 121)))))] = True
    away, (rows, columns) = ndimage.distance_transform_edt(~seeds, return_indices=True)
    return to_pixels(rng.random(_SHAPE)[rows, columns] * np.exp(-away / rng.uniform(20, 60)))


def inverted(image: Pixels, _: Generator) -> Pixels:
    """A brain slice, black for white."""
    return 255 - image


def ct_like(image: Pixels, rng: Generator) -> Pixels:
    """A brain slice with a CT's contrast: a saturated ring of bone, thin dim skin, a flat brain within."""
    grey = to_grey(image)
    depth = ndimage.distance_transform_edt(head_of(grey))
    unit = max(float(depth.max()), 1.0)
    bone = np.clip(1 - np.abs(depth / unit - 0.13) / rng.uniform(0.06, 0.09), 0, 1) ** 0.3
    brain = (depth / unit > 0.2) * (0.42 + 0.12 * (ndimage.gaussian_filter(grey, 1.2) - 0.3))
    skin = ((depth > 0) & (depth / unit <= 0.08)) * 0.3
    return to_pixels(np.maximum(bone, brain + skin) + rng.normal(0, 0.015, _SHAPE) * (depth > 0))


def chest_like(_: Pixels, rng: Generator) -> Pixels:
    """The bright and dark fields of a chest film: body to the edge, two dark lungs, ribs, a spine."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    film = 0.6 + 0.15 * _power_law(rng, 1.6, 1)[..., 0]
    for side in (-1, 1):
        a, b = rng.uniform(0.28, 0.36), rng.uniform(0.55, 0.7)
        lung = ((x - side * rng.uniform(0.4, 0.46)) / a) ** 2 + ((y + 0.05) / b) ** 2
        film -= rng.uniform(0.35, 0.5) / (1 + np.exp(12 * (lung - 1)))
    film += 0.08 * (np.sin((y + 0.35 * np.abs(x)) * rng.uniform(18, 26)) > 0.4) + 0.15 * np.exp(-((x / 0.12) ** 2))
    return to_pixels(ndimage.gaussian_filter(film, 1.5))


FITTING: tuple[Make, ...] = (
    white_noise, colour_noise, smooth_noise, gradient, blank, checker, blobs, scrambled,
)  # fmt: skip
JUDGING: tuple[Make, ...] = (
    salt_and_pepper, texture, photograph_like, text, drawing, stripes, cells, inverted, ct_like, chest_like,
)  # fmt: skip
