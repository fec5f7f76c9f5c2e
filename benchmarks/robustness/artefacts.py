"""Near families, second group: acquisition artefacts, and what viewers do to a slice before it is saved.

As in `near`, each is a pure function of a slice, uint8 [224, 224, 3], and a generator that draws its strength. All
are for judging. They were written after results on the families of `near` had been seen, but no results on them had
been seen when the rules of the verdicts were fixed: they give the fairer figures.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from robustness.near import (
    Generator,
    Make,
    to_grey,
    to_pixels,
)
from tumorlens.readers.pixels import SIZE, Pixels


def ghosted(image: Pixels, rng: Generator) -> Pixels:
    """Periodic motion: fainter copies of the head along one axis, 28 to 75 pixels apart.

    Lines of the frequency domain have a phase that swings by 0.4 to 0.8 rad, once in 3 to 8 lines (Wood and
    Henkelman, Medical Physics 12, 1985).
    """
    grey, axis = to_grey(image), int(rng.integers(2))
    swing = rng.uniform(0.4, 0.8) * np.sin(2 * np.pi * np.arange(SIZE) / rng.uniform(3, 8) + rng.uniform(0, 6))
    phase = np.exp(1j * swing)[:, None] if axis == 0 else np.exp(1j * swing)[None, :]
    return to_pixels(np.abs(np.fft.ifft(np.fft.fft(grey, axis=axis) * phase, axis=axis)))


def wrapped(image: Pixels, rng: Generator) -> Pixels:
    """A field of view of 60 to 85 % along one axis: what lies outside is folded in from the other side."""
    axis = int(rng.integers(2))
    grey = np.moveaxis(to_grey(image), axis, 0)
    width = int(rng.uniform(0.6, 0.85) * SIZE)
    left = (SIZE - width) // 2
    folded = np.zeros((width, SIZE), np.float32)
    np.add.at(folded, (np.arange(SIZE) - left) % width, grey)
    whole = np.zeros((SIZE, SIZE), np.float32)
    whole[left : left + width] = folded
    return to_pixels(np.moveaxis(whole, 0, axis))


def anisotropic(image: Pixels, rng: Generator) -> Pixels:
    """Voxels 5 to 10 pixels long along one axis: a plane reformatted from thick slices."""
    count = int(SIZE / rng.uniform(5, 10))
    size = (count, SIZE) if rng.integers(2) else (SIZE, count)
    return np.array(
        Image.fromarray(image).resize(size, Image.Resampling.BOX).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    )


def aperture(image: Pixels, rng: Generator) -> Pixels:
    """Black outside a circle whose radius is 70 to 90 % of half the side."""
    away = np.hypot(*np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j])
    return to_pixels(to_grey(image) * (away < rng.uniform(0.7, 0.9)))


def jpeg(image: Pixels, rng: Generator) -> Pixels:
    """Compressed at JPEG quality 5 to 20."""
    kept = io.BytesIO()
    Image.fromarray(image).save(kept, "JPEG", quality=int(rng.integers(5, 21)))
    return np.array(Image.open(kept))


def annotated(image: Pixels, rng: Generator) -> Pixels:
    """A screenshot: lines of text in all corners, a scale at one side, and a mark."""
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    ink = (255, 255, 255) if rng.random() < 0.7 else (255, 255, 0)
    font = ImageFont.load_default(size=int(rng.integers(8, 13)))
    for x, anchor in ((4, "l"), (SIZE - 5, "r")):
        for y in (8, 20, SIZE - 21, SIZE - 9):
            words = f"{rng.choice(['SE', 'IM', 'TR', 'TE', 'W', 'Mag'])}: {rng.integers(1, 5000)}"
            pen.text((x, y), words, fill=ink, font=font, anchor=f"{anchor}m")
    pen.line((SIZE - 10, 50, SIZE - 10, SIZE - 50), fill=ink)
    for y in range(50, SIZE - 49, 12):
        pen.line((SIZE - 15, y, SIZE - 10, y), fill=ink)
    x, y = rng.uniform(60, 160, 2).tolist()
    pen.line((x - 8, y, x + 8, y), fill=ink)
    pen.line((x, y - 8, x, y + 8), fill=ink)
    return np.array(picture)


JUDGING: tuple[Make, ...] = (ghosted, wrapped, anisotropic, aperture, jpeg, annotated)
