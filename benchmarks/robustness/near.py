"""Near shifts: a brain slice as another scanner, sequence or preprocessing would have left it.

Each is a pure function of a slice, uint8 [224, 224, 3], and a generator that draws its strength; it returns
uint8 [224, 224, 3] with the same label. They imitate looks, not physics: no sequence can be computed from
another. Grey levels below are fractions of 255.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from tumorlens.readers.pixels import SIZE, Pixels

Grey = npt.NDArray[np.float32]
Generator = np.random.Generator
_AIR = 0.06  # grey level under which a smoothed pixel counts as air


def to_grey(image: Pixels) -> Grey:
    """float32 [224, 224], 0 to 1: the mean of the channels."""
    return np.asarray(image.mean(2, dtype=np.float32) / 255, np.float32)


def to_pixels(values: npt.NDArray[np.floating]) -> Pixels:
    """uint8 [224, 224, 3] of grey [224, 224] or colour [224, 224, 3] levels, clipped to 0 to 1."""
    pixels = (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)


def head_of(grey: Grey) -> npt.NDArray[np.bool_]:
    """bool [224, 224]: the largest region that is not air, with its holes filled."""
    regions, n = ndimage.label(ndimage.gaussian_filter(grey, 2) > _AIR)
    if not n:
        return np.zeros(grey.shape, np.bool_)
    largest = 1 + int(np.argmax(np.bincount(regions.ravel())[1:]))
    return np.asarray(ndimage.binary_fill_holes(regions == largest), np.bool_)


def _levels(grey: Grey, levels: Grey | list[float], inside: npt.NDArray[np.bool_]) -> Grey:
    """Grey mapped by a curve through `levels`, evenly spaced over air to the head's 99th percentile."""
    if not inside.any():
        return grey
    top = max(float(np.percentile(grey[inside], 99)), 0.05)
    mapped = np.interp(grey / top, np.linspace(0, 1, len(levels)), levels)
    edge = ndimage.gaussian_filter(inside.astype(np.float32), 1)
    return np.asarray(mapped * edge + grey * (1 - edge) * 0.5, np.float32)


# --- for fitting -----------------------------------------------------------------------------------


def darker(image: Pixels, rng: Generator) -> Pixels:
    """Gamma 1.5 to 2.5."""
    return to_pixels(to_grey(image) ** rng.uniform(1.5, 2.5))


def brighter(image: Pixels, rng: Generator) -> Pixels:
    """Gamma 0.4 to 0.65."""
    return to_pixels(to_grey(image) ** rng.uniform(0.4, 0.65))


def blurred(image: Pixels, rng: Generator) -> Pixels:
    """Gaussian blur, sd 1.5 to 3 pixels."""
    return to_pixels(ndimage.gaussian_filter(to_grey(image), rng.uniform(1.5, 3)))


def sharpened(image: Pixels, rng: Generator) -> Pixels:
    """Unsharp mask, 1.5 to 3 times the detail under 2 pixels."""
    grey = to_grey(image)
    return to_pixels(grey + rng.uniform(1.5, 3) * (grey - ndimage.gaussian_filter(grey, 2)))


def noisy(image: Pixels, rng: Generator) -> Pixels:
    """Rician noise (Gudbjartsson and Patz, Magnetic Resonance in Medicine 34, 1995), sd 0.05 to 0.12."""
    grey, sd = to_grey(image), rng.uniform(0.05, 0.12)
    real, imaginary = rng.normal(0, sd, (2, *grey.shape))
    return to_pixels(np.hypot(grey + real, imaginary))


def tilted(image: Pixels, rng: Generator) -> Pixels:
    """Brightness that falls linearly across the image, to 0.2 to 0.5 at one side."""
    turn = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    along = (np.cos(turn) * x + np.sin(turn) * y + 1.42) / 2.84
    low = rng.uniform(0.2, 0.5)
    return to_pixels(to_grey(image) * (low + (1.3 - low) * along))


def tinted(image: Pixels, rng: Generator) -> Pixels:
    """Each channel scaled by 0.4 to 1, as a colour map would."""
    return to_pixels(to_grey(image)[..., None] * rng.uniform(0.4, 1, 3))


def zoomed(image: Pixels, rng: Generator) -> Pixels:
    """The middle 60 to 75 % of the image, enlarged."""
    extent = rng.uniform(0.6, 0.75)
    return _framed(image, (extent, extent))


def equalised(image: Pixels, rng: Generator) -> Pixels:
    """Half to all of the way to an equal histogram of the head."""
    grey = to_grey(image)
    inside = head_of(grey)
    if not inside.any():
        return to_pixels(grey)
    known = np.sort(grey[inside])
    ranks = np.searchsorted(known, grey, side="right") / len(known)
    share = rng.uniform(0.5, 1)
    return to_pixels(np.where(inside, share * ranks + (1 - share) * grey, grey))


def banded(image: Pixels, rng: Generator) -> Pixels:
    """A curve of grey levels that rises, falls and rises again: no sequence that exists."""
    grey = to_grey(image)
    low, high = rng.uniform(0.1, 0.4), rng.uniform(0.6, 1)
    return to_pixels(_levels(grey, [0, high, low, rng.uniform(0.3, 0.7), 1], head_of(grey)))


def windowed(image: Pixels, rng: Generator) -> Pixels:
    """A narrow window: all under 0.08 to 0.2 black, all over 0.4 to 0.65 white."""
    low, high = rng.uniform(0.08, 0.2), rng.uniform(0.4, 0.65)
    return to_pixels((to_grey(image) - low) / (high - low))


def faded(image: Pixels, rng: Generator) -> Pixels:
    """Contrast of 0.3 to 0.6 over a grey of 0.05 to 0.2."""
    return to_pixels(to_grey(image) * rng.uniform(0.3, 0.6) + rng.uniform(0.05, 0.2))


def posterised(image: Pixels, rng: Generator) -> Pixels:
    """Four to seven grey levels."""
    steps = int(rng.integers(3, 7))
    return to_pixels(np.round(to_grey(image) * steps) / steps)


def squeezed(image: Pixels, rng: Generator) -> Pixels:
    """One side at 60 to 80 % of its length, black beside it."""
    extent = 1 / rng.uniform(0.6, 0.8)
    return _framed(image, (extent, 1) if rng.integers(2) else (1, extent))


def moved(image: Pixels, rng: Generator) -> Pixels:
    """The head moved by 10 to 20 % of the side in any direction, partly out of the picture."""
    turn, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.2)
    return _framed(image, (1, 1), (far * np.cos(turn), far * np.sin(turn)))


def rotated(image: Pixels, rng: Generator) -> Pixels:
    """Turned by 15 to 45 degrees either way."""
    angle = rng.uniform(15, 45) * rng.choice([-1, 1])
    return np.array(Image.fromarray(image).rotate(angle, Image.Resampling.BICUBIC))


def warped(image: Pixels, rng: Generator) -> Pixels:
    """Bent smoothly: displacements with an sd of 3 to 7 pixels that change over about 20."""
    bend = ndimage.gaussian_filter(rng.normal(size=(2, SIZE, SIZE)), (0, 20, 20))
    place = np.mgrid[:SIZE, :SIZE] + bend / bend.std() * rng.uniform(3, 7)
    return to_pixels(ndimage.map_coordinates(to_grey(image), place, order=1))


# --- for judging -----------------------------------------------------------------------------------


def skull_stripped(image: Pixels, rng: Generator) -> Pixels:
    """Without the outer 14 to 20 % of the head's half-width, roughly scalp and skull."""
    grey = to_grey(image)
    depth = ndimage.distance_transform_edt(head_of(grey))
    brain = depth > rng.uniform(0.14, 0.2) * depth.max()
    return to_pixels(grey * ndimage.gaussian_filter(brain.astype(np.float32), 0.7))


def t2_like(image: Pixels, rng: Generator) -> Pixels:
    """Fluid bright, white matter dark."""
    grey = to_grey(image)
    return to_pixels(_levels(grey, [0.1, 0.95, 0.65, 0.4, 0.35, 0.5 * rng.uniform(0.8, 1.4)], head_of(grey)))


def flair_like(image: Pixels, rng: Generator) -> Pixels:
    """Fluid dark, grey matter brighter than white, lesions bright."""
    grey = to_grey(image)
    return to_pixels(_levels(grey, [0, 0.08, 0.5, 0.4, 0.6, rng.uniform(0.8, 1)], head_of(grey)))


def pd_like(image: Pixels, rng: Generator) -> Pixels:
    """Proton density: little contrast between bright tissues."""
    grey = to_grey(image)
    return to_pixels(_levels(grey, [0.1, 0.6, 0.75, 0.7, 0.65, rng.uniform(0.6, 0.8)], head_of(grey)))


def colour_composite(image: Pixels, rng: Generator) -> Pixels:
    """Three sequences as red, green and blue: the image, FLAIR-like, and another contrast of it."""
    flair, other = flair_like(image, rng), to_grey(image) ** rng.uniform(0.8, 1.3)
    return to_pixels(np.stack([to_grey(image), to_grey(flair), other * rng.uniform(0.7, 1)], 2))


def clahe(image: Pixels, rng: Generator) -> Pixels:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld, Graphics Gems IV, 1994), 8x8 tiles.

    The clip limit is 2 to 4 times the mean of the histogram's 256 bins.
    """
    grey = np.asarray(to_grey(image) * 255 + 0.5, np.uint8)
    tiles, side = 8, SIZE // 8
    counts = np.stack([
        np.bincount(tile.ravel(), minlength=256)
        for row in grey.reshape(tiles, side, tiles, side).swapaxes(1, 2)
        for tile in row
    ]).astype(np.float64)  # fmt: skip
    limit = rng.uniform(2, 4) * side * side / 256
    over = np.maximum(counts - limit, 0).sum(1, keepdims=True)
    curves = np.cumsum(np.minimum(counts, limit) + over / 256, 1).reshape(tiles, tiles, 256) / side**2
    place = np.clip((np.arange(SIZE) + 0.5) / side - 0.5, 0, tiles - 1)
    low = np.minimum(place.astype(int), tiles - 2)
    part = place - low
    mapped = np.zeros(grey.shape)
    for i in (0, 1):
        for j in (0, 1):
            weight = np.outer(part if i else 1 - part, part if j else 1 - part)
            mapped += weight * curves[(low + i)[:, None], (low + j)[None, :], grey]
    return to_pixels(mapped)


def butterworth(image: Pixels, rng: Generator) -> Pixels:
    """Low pass of order 2 in the frequency domain, cut off at 0.08 to 0.15 cycles a pixel."""
    grey = to_grey(image)
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None, :])
    gain = 1 / (1 + (frequency / rng.uniform(0.08, 0.15)) ** 4)
    return to_pixels(np.fft.irfft2(np.fft.rfft2(grey) * gain, s=grey.shape))


def clahe_butterworth(image: Pixels, rng: Generator) -> Pixels:
    """CLAHE, then the Butterworth filter: a chain that many published pipelines begin with."""
    return butterworth(clahe(image, rng), rng)


def wavelet(image: Pixels, rng: Generator) -> Pixels:
    """Soft thresholding of Haar details on three levels (Donoho, IEEE Trans. Inf. Theory 41, 1995).

    The threshold, 0.04 to 0.1 of the grey range, is many times these images' noise: it flattens texture.
    """
    return to_pixels(_shrunk(to_grey(image), rng.uniform(0.04, 0.1), levels=3))


def wide_field(image: Pixels, rng: Generator) -> Pixels:
    """The whole image at 55 to 75 % of its size in a black border, off the centre."""
    extent = 1 / rng.uniform(0.55, 0.75)
    return _framed(image, (extent, extent), (rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1)))


def low_resolution(image: Pixels, rng: Generator) -> Pixels:
    """Sampled at 48 to 80 pixels a side, then enlarged."""
    side = int(rng.integers(48, 81))
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
    return np.array(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def coil_bias(image: Pixels, rng: Generator) -> Pixels:
    """A surface coil's sensitivity: bright near one point of the edge, falling off within the head."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    away = np.hypot(x - 0.8 * np.cos(angle), y - 0.8 * np.sin(angle))
    return to_pixels(to_grey(image) * 1.9 * np.exp(-((away / rng.uniform(0.8, 1.3)) ** 2)))


def _framed(image: Pixels, extent: tuple[float, float], shift: tuple[float, float] = (0.0, 0.0)) -> Pixels:
    """A field of view of `extent` (x, y) times the image's, black outside; `shift` in fractions of the result."""
    left, top = (SIZE * ((1 - size) / 2 - size * move) for size, move in zip(extent, shift, strict=True))
    return np.array(
        Image.fromarray(image).transform(
            (SIZE, SIZE),
            Image.Transform.AFFINE,
            (extent[0], 0, left, 0, extent[1], top),
            Image.Resampling.BICUBIC,
        )
    )


def _shrunk(values: Grey, threshold: float, levels: int) -> Grey:
    """Haar transform, details moved towards 0 by `threshold`, and back; sides divide by 2 ** levels."""
    if not levels:
        return values
    rows = (values[::2] + values[1::2]) / 2, (values[::2] - values[1::2]) / 2
    (mean, across), (down, both) = (((r[:, ::2] + r[:, 1::2]) / 2, (r[:, ::2] - r[:, 1::2]) / 2) for r in rows)
    across, down, both = (np.sign(d) * np.maximum(np.abs(d) - threshold, 0) for d in (across, down, both))
    smaller = _shrunk(np.asarray(mean, np.float32), threshold, levels - 1)
    back = np.empty_like(values)
    for i, row in enumerate((1, -1)):
        for j, column in enumerate((1, -1)):
            back[i::2, j::2] = smaller + column * across + row * down + row * column * both
    return back


Make = Callable[[Pixels, Generator], Pixels]
FITTING: tuple[Make, ...] = (
    darker, brighter, blurred, sharpened, noisy, tilted, tinted, zoomed, equalised, banded, windowed, faded, posterised,
    squeezed, moved, rotated, warped,
)  # fmt: skip
JUDGING: tuple[Make, ...] = (
    skull_stripped, t2_like, flair_like, pd_like, colour_composite, clahe, butterworth, clahe_butterworth, wavelet,
    wide_field, low_resolution, coil_bias,
)  # fmt: skip
